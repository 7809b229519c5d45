"""cascade/schedules.py: log-SNR schedules against their closed forms and against diffusers, and step grids."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cascade.schedules import (
    Cosine,
    DiscreteTable,
    InterpolatedCosine,
    LinearBeta,
    Schedule,
    alpha_sigma,
    uniform_grid,
    validate_grid,
)

INF = math.inf
SCHEDULES = [
    Cosine(),
    Cosine(-15, 10, shift=2 * math.log(64 / 256)),
    InterpolatedCosine(),
    InterpolatedCosine(-10, 10, shift_clean=1.0, shift_noisy=-5.0),
    LinearBeta(),
    LinearBeta(1e-6, 0.01, 2000),
    DiscreteTable("linear"),
    DiscreteTable("cosine"),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
times = st.floats(0, 1)


# Schedules


@every_schedule
def test_logsnr_falls_with_time(schedule: Schedule) -> None:
    for dtype in (torch.float32, torch.float64):
        levels = schedule(torch.linspace(0, 1, 2001, dtype=dtype))
        assert levels.isfinite().all()
        assert (levels.diff() < 0).all()


@every_schedule
@given(t=times)
def test_time_inverts_the_schedule(schedule: Schedule, t: float) -> None:
    level = schedule(t)
    assert type(level) is float
    assert type(schedule.time(level)) is float
    assert schedule.time(level) == pytest.approx(t, abs=1e-12)


@every_schedule
@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_tensors_keep_shape_and_dtype_and_agree_with_floats(schedule: Schedule, shape: tuple[int, ...]) -> None:
    for dtype, level_error, time_error in ((torch.float32, 5e-3, 1e-6), (torch.float64, 1e-10, 1e-12)):
        t = torch.rand(shape, dtype=dtype)
        level, again = schedule(t), schedule.time(schedule(t))
        assert (level.shape, level.dtype, again.shape, again.dtype) == (shape, dtype, shape, dtype)
        wanted = [schedule(float(one)) for one in t.flatten()]
        assert level.flatten().tolist() == pytest.approx(wanted, abs=level_error)
        torch.testing.assert_close(again, t, rtol=0, atol=time_error)


@given(low=st.floats(-20, -5), high=st.floats(5, 20), shift=st.floats(-6, 6))
def test_bounds_hold_after_the_shift(low: float, high: float, shift: float) -> None:
    schedule = Cosine(low, high, shift)
    assert (schedule(0.0), schedule(1.0)) == pytest.approx((high, low), abs=1e-9)
    assert (schedule.time(high), schedule.time(low)) == pytest.approx((0, 1), abs=1e-12)


@given(t=st.floats(0.001, 0.999))
def test_the_unbounded_cosine_is_its_closed_form(t: float) -> None:
    alpha, sigma = alpha_sigma(Cosine(-70, 70)(t))
    assert (alpha, sigma) == pytest.approx((math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)), abs=1e-12)


@given(t=st.floats(0.01, 0.99), size=st.sampled_from([32, 64, 256, 1024]))
def test_the_shift_is_added_where_the_bounds_do_not_bite(t: float, size: int) -> None:
    shift = 2 * math.log(64 / size)
    assert Cosine(-70, 70, shift)(t) == pytest.approx(Cosine(-70, 70)(t) + shift, abs=1e-9)


@given(t=times)
def test_the_interpolated_cosine_is_the_noisier_one_near_noise(t: float) -> None:
    blend, clean, noisy = InterpolatedCosine(-20, 20, 0.5, -4), Cosine(shift=0.5), Cosine(shift=-4)
    assert blend(t) == pytest.approx((1 - t) * clean(t) + t * noisy(t), abs=1e-9)
    if 0.05 < t < 0.95:
        assert noisy(t) < blend(t) < clean(t)
        assert (abs(blend(t) - noisy(t)) < abs(blend(t) - clean(t))) == (t > 0.5)


def test_the_default_interpolation_runs_to_more_noise() -> None:
    assert InterpolatedCosine().shift_noisy < InterpolatedCosine().shift_clean
    assert InterpolatedCosine()(0.9) < Cosine()(0.9)


@pytest.mark.parametrize(("start", "end", "steps"), [(1e-4, 0.02, 1000), (1e-6, 0.01, 2000)])
def test_linear_beta_is_the_limit_of_the_discrete_betas(start: float, end: float, steps: int) -> None:
    schedule = LinearBeta(start, end, steps)
    bar = np.cumprod(1 - np.linspace(start, end, steps))
    found = np.array([schedule(i / (steps - 1)) for i in range(steps)])
    # The integral leaves out half a step, which counts in the first few, and the beta^2 / 2 of -log(1 - beta).
    np.testing.assert_allclose(found[20:], np.log(bar / (1 - bar))[20:], rtol=0, atol=0.08)
    assert schedule(0.0) == pytest.approx(-math.log(math.expm1(start)))


@pytest.mark.parametrize(("kind", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_the_table_is_diffusers(kind: str, theirs: str) -> None:
    from diffusers import DDPMScheduler

    for steps in (1000, 200):
        wanted = DDPMScheduler(num_train_timesteps=steps, beta_schedule=theirs).alphas_cumprod
        table = DiscreteTable(kind, steps)
        ours = torch.from_numpy(table.levels()).sigmoid()
        torch.testing.assert_close(ours, wanted.double(), rtol=5e-5, atol=1e-12)
        at_times = [alpha_sigma(table(i / (steps - 1)))[0] ** 2 for i in (0, 1, steps // 2, steps - 1)]
        assert at_times == pytest.approx(ours[[0, 1, steps // 2, steps - 1]].tolist(), rel=1e-9)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_index_is_the_step_and_fractional_between_steps(kind: str) -> None:
    table = DiscreteTable(kind, 100)
    levels = table.levels()
    assert levels.dtype == np.float64
    assert [table.index(level) for level in levels.tolist()] == pytest.approx(range(100), abs=1e-9)
    assert table.index(0.75 * levels[30] + 0.25 * levels[31]) == pytest.approx(30.25)
    found = table.index(torch.tensor(levels[[0, 17, 99]], dtype=torch.float32))
    torch.testing.assert_close(found, torch.tensor([0.0, 17.0, 99.0]), rtol=0, atol=1e-3)
    assert (table.index(levels[0] + 5), table.index(levels[-1] - 5)) == (0, 99)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cosine(5, -5), "logsnr_min must be below logsnr_max, got 5 and -5"),
        (lambda: Cosine(5, 5), "logsnr_min must be below"),
        (lambda: Cosine(math.nan, 5), "logsnr_min must be below"),
        (lambda: InterpolatedCosine(5, -5), "logsnr_min must be below"),
        (lambda: LinearBeta(0, 0.02), "0 < beta_start < beta_end < 1, got 0 and 0.02"),
        (lambda: LinearBeta(0.02, 1e-4), "beta_start < beta_end"),
        (lambda: LinearBeta(1e-4, 1.0), "beta_end < 1"),
        (lambda: DiscreteTable("quadratic"), "got 'quadratic'"),
        (lambda: DiscreteTable(steps=1), "steps must be at least 2, got 1"),
    ],
)
def test_bad_schedules_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# alpha and sigma


@given(logsnr=st.floats(-2000, 2000) | st.sampled_from([INF, -INF]))
def test_alpha_and_sigma_preserve_the_variance_and_do_not_overflow(logsnr: float) -> None:
    alpha, sigma = alpha_sigma(logsnr)
    assert (type(alpha), type(sigma)) == (float, float)
    assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-12)
    if abs(logsnr) < 600:
        assert 2 * math.log(alpha) - 2 * math.log(sigma) == pytest.approx(logsnr, rel=1e-12, abs=1e-12)
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 2e-4)):  # float32 rounds logsnr
        tensors = alpha_sigma(torch.tensor([logsnr], dtype=dtype))
        assert [part.dtype for part in tensors] == [dtype, dtype]
        assert torch.cat(tensors).tolist() == pytest.approx([alpha, sigma], rel=error, abs=1e-18)


def test_alpha_and_sigma_at_the_ends() -> None:
    assert alpha_sigma(INF) == (1, 0)
    assert alpha_sigma(-INF) == (0, 1)
    assert alpha_sigma(0.0) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)), rel=1e-15)


# Grids


@every_schedule
def test_a_uniform_grid_rises_to_infinity(schedule: Schedule) -> None:
    grid = uniform_grid(schedule, 10)
    validate_grid(grid)
    assert all(type(level) is float for level in grid)
    assert grid[-1] == INF
    assert grid[:-1] == pytest.approx([schedule(i / 10) for i in range(10, 0, -1)], abs=1e-9)
    assert uniform_grid(schedule, 1) == [schedule(1.0), INF]


@every_schedule
def test_a_later_start_is_the_end_of_the_grid(schedule: Schedule) -> None:
    assert uniform_grid(schedule, 5, 0.5) == pytest.approx(uniform_grid(schedule, 10)[5:], abs=1e-9)
    assert len(uniform_grid(schedule, 7, 0.3)) == 8
    assert uniform_grid(schedule, 7, 0.3)[0] == schedule(0.3)


@pytest.mark.parametrize(
    ("steps", "start", "message"),
    [
        (0, 1.0, "steps must be at least 1, got 0"),
        (-3, 1.0, "steps must be at least 1"),
        (4, 0.0, r"start at a time in \(0, 1\], got 0"),
        (4, -0.5, "got -0.5"),
        (4, 1.01, "got 1.01"),
        (4, math.nan, "got nan"),
    ],
)
def test_bad_grids_are_not_built(steps: int, start: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        uniform_grid(Cosine(), steps, start)


@pytest.mark.parametrize(
    "grid",
    [[], [INF], [0.0], [0.0, 1.0], [1.0, 0.0, INF], [0.0, 0.0, INF], [0.0, math.nan, INF], [math.nan, INF], [INF, INF]],
)
def test_grids_that_do_not_rise_to_infinity_are_refused(grid: list[float]) -> None:
    with pytest.raises(ValueError, match="rise strictly in logsnr and end at"):
        validate_grid(grid)
