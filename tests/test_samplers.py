"""cascade/samplers.py against closed forms (the exact denoiser of a Gaussian) and against diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from cascade.denoiser import Denoise, Denoised
from cascade.samplers import SAMPLERS, ddim, ddpm, dpmpp_2m
from cascade.schedules import Cosine, DiscreteTable, alpha_sigma, uniform_grid
from cascade.thresholding import static, threshold

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

INF = math.inf
ODE = ["ddim", "dpmpp_2m", "heun"]
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_ode_sampler = pytest.mark.parametrize("name", ODE)

# Data N(MEAN, diag DEVIATION^2), a pixel per channel.
MEAN = torch.tensor([0.3, -0.2, 0.5, 0.0], dtype=torch.float64).reshape(1, 4, 1, 1)
DEVIATION = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64).reshape(1, 4, 1, 1)


def posterior_mean(z: Tensor, logsnr: float, mean: Tensor = MEAN, deviation: Tensor = DEVIATION) -> Denoised:
    """E[x | z], the exact denoiser."""
    alpha, sigma = alpha_sigma(logsnr)
    variance = alpha**2 * deviation**2 + sigma**2
    return Denoised(mean + alpha * deviation**2 / variance * (z - alpha * mean))


def flow(z: Tensor, t: float, s: float, mean: Tensor = MEAN, deviation: Tensor = DEVIATION) -> Tensor:
    """Where the probability flow ODE takes z from level t to level s: the same quantile of the Gaussian there."""

    def marginal(logsnr: float) -> tuple[Tensor, Tensor]:
        alpha, sigma = alpha_sigma(logsnr)
        return alpha * mean, (alpha**2 * deviation**2 + sigma**2).sqrt()

    (mean_t, deviation_t), (mean_s, deviation_s) = marginal(t), marginal(s)
    return mean_s + deviation_s * (z - mean_t) / deviation_t


def noise() -> Tensor:
    return torch.randn(2, 4, 1, 1, dtype=torch.float64)


def no_noise(step: int) -> Tensor:
    raise AssertionError("a deterministic sampler asks for no noise")


def recorded(denoise: Denoise, calls: list[tuple[Tensor, float]]) -> Denoise:
    def record(z: Tensor, logsnr: float) -> Denoised:
        calls.append((z, logsnr))
        return denoise(z, logsnr)

    return record


def levels(low: float, high: float, steps: int) -> list[float]:
    """Evenly spaced levels: `steps` steps inside, and the last to +inf."""
    return [*np.linspace(low, high, steps + 1).tolist(), INF]


# The probability flow


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_method(name: str, order: int) -> None:
    """Measured before the last step, which returns x0 and would add an error that no step count lessens."""
    z, steps, errors = noise(), [32, 64, 128, 256], []
    for count in steps:
        grid = levels(-8, 8, count)
        reached = list(SAMPLERS[name](posterior_mean, z, grid, no_noise))[-2].z
        errors.append((reached - flow(z, grid[0], grid[-2])).abs().amax(dim=(0, 2, 3)))
    slopes = -torch.stack(errors).log().diff(dim=0) / math.log(2)
    assert ((slopes > order - 0.15) & (slopes < order + 0.3)).all(), slopes
    assert (errors[-1] < (0.05, 2e-3)[order - 1]).all()


@every_ode_sampler
def test_the_image_is_the_quantile_of_its_noise(name: str) -> None:
    z, grid = noise(), levels(-12, 16, 400)
    *_, last = SAMPLERS[name](posterior_mean, z, grid, no_noise)
    torch.testing.assert_close(last.z, flow(z, grid[0], INF), rtol=0, atol=0.05 if name == "ddim" else 2e-3)


@every_ode_sampler
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_single_image_is_drawn_exactly_in_any_number_of_steps(name: str, steps: int) -> None:
    """For data that is one point the path is straight, so that no method errs."""
    point = torch.zeros_like(DEVIATION)
    z, grid = noise(), uniform_grid(Cosine(), steps)
    for step in SAMPLERS[name](lambda z, t: posterior_mean(z, t, deviation=point), z, grid, no_noise):
        wanted = flow(z, grid[0], grid[step.index + 1], deviation=point)
        torch.testing.assert_close(step.z, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun"])
@pytest.mark.parametrize("steps", [8, 16, 32])
def test_second_order_beats_first_on_the_default_grid(name: str, steps: int) -> None:
    grid, z = uniform_grid(Cosine(), steps), noise()
    wanted = flow(z, grid[0], INF)
    error, first_order = (
        (list(SAMPLERS[method](posterior_mean, z, grid, no_noise))[-1].z - wanted).square().mean().sqrt()
        for method in (name, "ddim")
    )
    assert error < first_order


def test_the_number_of_passes() -> None:
    for name, passes in (("ddim", 7), ("ddpm", 7), ("dpmpp_2m", 7), ("heun", 13)):
        calls = []
        list(SAMPLERS[name](recorded(posterior_mean, calls), noise(), levels(-8, 8, 6), lambda i: noise()))
        assert len(calls) == passes


# The ancestral sampler


def ancestral_variance(grid: list[float], deviation: Tensor, **settings: float) -> list[Tensor]:
    """The exact variance of z after every step, without sampling.

    For a Gaussian around 0 every step is linear in z and in its noise, so that a batch whose row k has a 1 in the k-th
    of all these inputs, and else 0, shows the weight of each.
    """
    steps = len(grid) - 1
    alpha, sigma = alpha_sigma(grid[0])

    def unit(row: int) -> Tensor:
        z = torch.zeros(steps, 4, 1, 1, dtype=torch.float64)
        z[row] = 1
        return z

    z = unit(0) * (alpha**2 * deviation**2 + sigma**2).sqrt()
    run = ddpm(lambda z, t: posterior_mean(z, t, 0 * MEAN, deviation), z, grid, lambda step: unit(step + 1), **settings)
    return [step.z.square().sum(dim=0, keepdim=True) for step in run]


@pytest.mark.parametrize("interpolation", [0.0, 0.2, 1.0])
def test_the_variance_drawn_converges_to_that_of_the_data(interpolation: float) -> None:
    errors = []
    for steps in (200, 400, 800):
        found = ancestral_variance(uniform_grid(Cosine(), steps), DEVIATION, interpolation=interpolation)[-1]
        errors.append((found / DEVIATION**2 - 1).abs())
    slopes = -torch.stack(errors).log().diff(dim=0) / math.log(2)
    assert (slopes > 0.8).all(), slopes
    assert (errors[-1] < 0.05).all(), errors[-1]


def test_the_smaller_variance_is_exact_for_one_image_and_the_larger_for_noise() -> None:
    """DDPM, section 3.2: the two choices are the optimal ones for data that is a point and for data that is N(0, I)."""
    grid = uniform_grid(Cosine(), 6)
    for deviation, exact, other in ((0.0, 0.0, 1.0), (1.0, 1.0, 0.0)):
        data = torch.full_like(DEVIATION, deviation)
        for t, right, wrong in zip(
            grid[1:-1],
            ancestral_variance(grid, data, interpolation=exact),
            ancestral_variance(grid, data, interpolation=other),
            strict=False,
        ):
            alpha, sigma = alpha_sigma(t)
            wanted = torch.full_like(DEVIATION, alpha**2 * deviation**2 + sigma**2)
            torch.testing.assert_close(right, wanted, rtol=1e-9, atol=1e-12)
            assert ((wrong / wanted - 1).abs() > 1e-3).all()


def test_the_mean_is_kept_exactly() -> None:
    grid = uniform_grid(Cosine(), 5)
    z = alpha_sigma(grid[0])[0] * MEAN
    for step in ddpm(posterior_mean, z, grid, lambda i: torch.zeros_like(MEAN)):
        torch.testing.assert_close(step.z, alpha_sigma(grid[step.index + 1])[0] * MEAN, rtol=1e-9, atol=1e-12)


def test_a_learned_variance_is_an_interpolation_per_pixel() -> None:
    grid, z, draws = levels(-6, 6, 8), noise(), [noise() for _ in range(9)]
    fractions = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64).reshape(1, 4, 1, 1)

    def learned(z: Tensor, t: float) -> Denoised:
        return Denoised(posterior_mean(z, t).x0, fractions.expand_as(z))

    found = list(ddpm(learned, z, grid, draws.__getitem__))
    for channel in range(4):
        fixed = ddpm(posterior_mean, z, grid, draws.__getitem__, interpolation=fractions[0, channel].item())
        for ours, wanted in zip(found, fixed, strict=True):
            torch.testing.assert_close(ours.z[:, channel], wanted.z[:, channel], rtol=1e-12, atol=1e-12)
    told = ddpm(learned, z, grid, draws.__getitem__, interpolation=0.5)
    fixed = ddpm(posterior_mean, z, grid, draws.__getitem__, interpolation=0.5)
    assert all(torch.equal(ours.z, wanted.z) for ours, wanted in zip(told, fixed, strict=True))


def test_the_fixed_variance_lies_a_fifth_of_the_way_by_default() -> None:
    grid, z, draws = levels(-6, 6, 8), noise(), [noise() for _ in range(9)]
    runs = [ddpm(posterior_mean, z, grid, draws.__getitem__, **by) for by in ({}, {"interpolation": 0.2})]
    by_default, a_fifth = (torch.stack([step.z for step in run]) for run in runs)
    assert torch.equal(by_default, a_fifth)


def test_fresh_noise_is_asked_for_once_a_step_but_the_last() -> None:
    asked = []
    list(ddpm(posterior_mean, noise(), levels(-6, 6, 5), lambda step: asked.append(step) or noise()))
    assert asked == [0, 1, 2, 3, 4]


# diffusers


def model(z: Tensor, logsnr: float) -> Tensor:
    """Some x0, far from linear in z."""
    return torch.tanh(1.3 * z + 0.2 * math.sin(logsnr))


BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
every_table = pytest.mark.parametrize("kind", BETAS)
float32_tables = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def close(ours: list[Tensor], theirs: list[Tensor], error: float) -> None:
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=0, atol=error)


def with_our_digits(scheduler: SchedulerMixin, table: list[float]) -> SchedulerMixin:
    """Their table, which is float32, in float64: `test_schedules.py` shows that the two are the same."""
    alphas_cumprod = torch.tensor(table, dtype=torch.float64).sigmoid()
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), alphas_cumprod, rtol=5e-5, atol=1e-12)
    scheduler.alphas_cumprod = alphas_cumprod
    return scheduler


def same_steps(sampler: Callable, scheduler: SchedulerMixin, table: list[float], steps: int, error: float) -> None:
    scheduler.set_timesteps(steps)
    z = start = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    wanted = []
    for t in scheduler.timesteps.tolist():
        z = scheduler.step(model(z, table[t]), t, z).prev_sample
        wanted.append(z)
    grid = [table[t] for t in scheduler.timesteps.tolist()] + [INF]
    close([step.z for step in sampler(lambda z, t: Denoised(model(z, t)), start, grid, no_noise)], wanted, error)


@every_table
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_ddim_is_that_of_diffusers(kind: str, steps: int) -> None:
    from diffusers import DDIMScheduler

    table = DiscreteTable(kind).levels().tolist()
    scheduler = with_our_digits(DDIMScheduler(prediction_type="sample", clip_sample=False, **BETAS[kind]), table)
    same_steps(ddim, scheduler, table, steps, 1e-10)


@float32_tables
@every_table
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_dpmpp_2m_is_that_of_diffusers(kind: str, steps: int) -> None:
    """Theirs computes in float32."""
    from diffusers import DPMSolverMultistepScheduler

    settings = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
    scheduler = DPMSolverMultistepScheduler(prediction_type="sample", **settings, **BETAS[kind])
    same_steps(dpmpp_2m, scheduler, DiscreteTable(kind).levels().tolist(), steps, 1e-5)


@every_table
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("steps", [2, 10, 100])
def test_the_ancestral_sampler_is_that_of_diffusers(variance: str, kind: str, steps: int) -> None:
    from diffusers import DDPMScheduler

    table = DiscreteTable(kind).levels().tolist()
    scheduler = with_our_digits(
        DDPMScheduler(prediction_type="sample", clip_sample=False, variance_type=variance, **BETAS[kind]), table
    )
    scheduler.set_timesteps(steps)
    grid = [table[t] for t in scheduler.timesteps.tolist()] + [INF]
    z = start = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)

    def raw(z: Tensor, logsnr: float) -> Tensor:
        return torch.sin(3 * z + logsnr)  # a network's output in [-1, 1]

    def denoise(z: Tensor, logsnr: float) -> Denoised:
        return Denoised(model(z, logsnr), (raw(z, logsnr) + 1) / 2 if variance == "learned_range" else None)

    def draw(step: int) -> Tensor:
        return torch.randn(start.shape, generator=ours, dtype=torch.float64)

    wanted = []
    for t in scheduler.timesteps.tolist():
        output = model(z, table[t])
        if variance == "learned_range":
            output = torch.cat([output, raw(z, table[t])], dim=1)
        z = scheduler.step(output, t, z, generator=theirs).prev_sample
        wanted.append(z)
    interpolation = {"fixed_small": 0.0, "fixed_large": 1.0, "learned_range": None}[variance]
    found = ddpm(denoise, start, grid, draw, interpolation=interpolation)
    close([step.z for step in found], wanted, 1e-9)


# The contract


@every_sampler
def test_every_step_is_yielded_as_it_is_made(name: str) -> None:
    grid, calls = levels(-6, 6, 4), []
    run = SAMPLERS[name](recorded(posterior_mean, calls), noise(), grid, lambda i: noise())
    assert not calls
    first = next(run)
    assert len(calls) == (2 if name == "heun" else 1)
    steps = [first, *run]
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]
    assert [step.logsnr for step in steps] == grid[:-1]
    for step, after in pairwise(steps):
        assert any(z is step.z and logsnr == after.logsnr for z, logsnr in calls)
        torch.testing.assert_close(posterior_mean(step.z, after.logsnr).x0, after.x0)
    torch.testing.assert_close(steps[-1].z, steps[-1].x0, rtol=1e-12, atol=1e-12)


@every_sampler
def test_what_after_step_returns_takes_the_place_of_z(name: str) -> None:
    grid, calls, reached = levels(-6, 6, 4), [], []
    put = [noise() for _ in range(5)]

    def after_step(z: Tensor, logsnr: float) -> Tensor:
        reached.append(logsnr)
        return put[len(reached) - 1]

    steps = list(SAMPLERS[name](recorded(posterior_mean, calls), noise(), grid, lambda i: noise(), after_step))
    assert reached == grid[1:]
    assert all(step.z is z for step, z in zip(steps, put, strict=True))
    for z, logsnr in zip(put[:-1], grid[1:-1], strict=True):
        assert any(called is z and level == logsnr for called, level in calls)


@every_sampler
def test_after_step_sees_the_z_of_its_step(name: str) -> None:
    grid, z, draws, seen = levels(-6, 6, 4), noise(), [noise() for _ in range(5)], []
    plain = list(SAMPLERS[name](posterior_mean, z, grid, draws.__getitem__))
    list(SAMPLERS[name](posterior_mean, z, grid, draws.__getitem__, lambda z, t: seen.append(z) or z))
    assert torch.equal(torch.stack(seen), torch.stack([step.z for step in plain]))


@every_sampler
def test_eps_is_that_of_the_thresholded_x0(name: str) -> None:
    def raw(z: Tensor, logsnr: float) -> Denoised:
        return Denoised(3 * model(z, logsnr))

    grid, z = levels(-4, 4, 6), noise()
    previous = [z]
    for step in SAMPLERS[name](threshold(raw, static), z, grid, lambda i: 0 * z):
        t, s = step.logsnr, grid[step.index + 1]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
        assert step.x0.abs().max() <= 1
        eps = (previous[-1] - alpha_t * step.x0) / sigma_t
        if name == "ddim" or s == INF:
            torch.testing.assert_close(step.z, alpha_s * step.x0 + sigma_s * eps, rtol=1e-9, atol=1e-12)
        elif name == "ddpm":  # the posterior's mean is DDIM's step with less of eps
            part = alpha_t * sigma_s**2 / (alpha_s * sigma_t)
            torch.testing.assert_close(step.z, alpha_s * step.x0 + part * eps, rtol=1e-9, atol=1e-12)
        previous.append(step.z)
    assert previous[-1].abs().max() == 1
    unbounded = [*SAMPLERS[name](raw, z, grid, lambda i: 0 * z)][-1]
    assert (unbounded.z - previous[-1]).abs().max() > 0.1


@every_sampler
def test_float32_stays_float32_and_agrees_with_float64(name: str) -> None:
    grid, z, draws = levels(-6, 6, 8), torch.randn(2, 3, 4, 4), torch.randn(8, 2, 3, 4, 4)

    def run(dtype: torch.dtype) -> Tensor:
        steps = SAMPLERS[name](lambda z, t: Denoised(model(z, t)), z.to(dtype), grid, lambda i: draws[i].to(dtype))
        return torch.stack([step.z for step in steps])

    assert run(torch.float32).dtype == torch.float32
    torch.testing.assert_close(run(torch.float32).double(), run(torch.float64), rtol=1e-5, atol=1e-5)


@every_sampler
@pytest.mark.parametrize(
    "grid",
    [[], [INF], [0.0], [-4.0, 0.0, 4.0], [4.0, 0.0, INF], [0.0, 0.0, INF], [0.0, math.nan, INF], [0.0, INF, INF]],
)
def test_odd_grids_are_refused(name: str, grid: list[float]) -> None:
    def never(z: Tensor, logsnr: float) -> Denoised:
        raise AssertionError("the grid is looked at first")

    with pytest.raises(ValueError, match="step grid must rise strictly in logsnr and end at"):
        list(SAMPLERS[name](never, noise(), grid, no_noise))
