"""Samplers: from noise to an image along a step grid, over any denoiser.

Each is a generator that reads like the algorithm in its paper and yields a `Step` after every step, so that a caller
can show progress, preview x0, or stop. A grid holds rising logsnr levels as float64 numbers on the host and ends at
+inf, where the sampler returns x0: no step waits for the device. z starts as noise at grid[0]: B C H W float32.

``noise_fn(step)`` gives the fresh standard normal noise of a step, shaped like z; ``after_step(z, logsnr)`` may replace
z at the level just reached (inpainting re-imposes there what is known). eps is always derived from the final x0.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from cascade.denoiser import Denoise
from cascade.schedules import alpha_sigma, validate_grid

NoiseFn = Callable[[int], Tensor]
AfterStep = Callable[[Tensor, float], Tensor]


class Step(NamedTuple):
    """What a sampler yields: the step's number from 0, the level it left, z at the level it reached, the x0 it used."""

    index: int
    logsnr: float
    z: Tensor
    x0: Tensor


def _ddim_step(z: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
    """z_s = alpha_s x0 + sigma_s (z_t - alpha_t x0) / sigma_t (DDIM, eq. 12 with eta 0)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
    ratio = sigma_s / sigma_t
    return ratio * z + (alpha_s - ratio * alpha_t) * x0


def ddim(
    denoise: Denoise, z: Tensor, grid: Sequence[float], noise_fn: NoiseFn, after_step: AfterStep | None = None
) -> Iterator[Step]:
    """DDIM (Song et al. 2021), deterministic; first order."""
    validate_grid(grid)
    for i, (t, s) in enumerate(pairwise(grid)):
        x0 = denoise(z, t).x0
        z = _ddim_step(z, x0, t, s)
        z = z if after_step is None else after_step(z, s)
        yield Step(i, t, z, x0)


def ddpm(
    denoise: Denoise,
    z: Tensor,
    grid: Sequence[float],
    noise_fn: NoiseFn,
    after_step: AfterStep | None = None,
    *,
    interpolation: float | None = None,
) -> Iterator[Step]:
    """The ancestral sampler with interpolated or learned variance (DDPM, alg. 2; CFG, section 2; Imagen, section 2.5).

    The log variance lies ``interpolation`` of the way from the posterior's to beta's; None is where the network says,
    or 0.2 if it says nothing.
    """
    validate_grid(grid)
    for i, (t, s) in enumerate(pairwise(grid)):
        x0, fraction = denoise(z, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
        r, c = math.exp(t - s), -math.expm1(t - s)
        z = (r * alpha_s / alpha_t) * z + (c * alpha_s) * x0
        if s != math.inf:
            log_posterior, log_beta = math.log(c * sigma_s**2), math.log(c * sigma_t**2)
            span = log_beta - log_posterior
            if fraction is None or interpolation is not None:
                deviation = math.exp((log_posterior + (0.2 if interpolation is None else interpolation) * span) / 2)
            else:
                deviation = torch.exp((log_posterior + fraction * span) / 2)
            z = z + deviation * noise_fn(i)
        z = z if after_step is None else after_step(z, s)
        yield Step(i, t, z, x0)


def dpmpp_2m(
    denoise: Denoise, z: Tensor, grid: Sequence[float], noise_fn: NoiseFn, after_step: AfterStep | None = None
) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2), second order; its first and last steps are DDIM's."""
    validate_grid(grid)
    previous: Tensor | None = None
    h_previous = 0.0
    for i, (t, s) in enumerate(pairwise(grid)):
        x0 = denoise(z, t).x0
        h = (s - t) / 2  # the paper's lambda is half our logsnr
        if previous is None or s == math.inf:
            direction = x0
        else:
            extrapolation = h / (2 * h_previous)
            direction = (1 + extrapolation) * x0 - extrapolation * previous
        z = _ddim_step(z, direction, t, s)
        previous, h_previous = x0, h
        z = z if after_step is None else after_step(z, s)
        yield Step(i, t, z, x0)


def heun(
    denoise: Denoise, z: Tensor, grid: Sequence[float], noise_fn: NoiseFn, after_step: AfterStep | None = None
) -> Iterator[Step]:
    """Heun's method on the diffusion ODE, second order, two passes a step but the last (as EDM's algorithm 1).

    The ODE is integrated exactly for an x0 that runs linearly in logsnr from its value before the step to that after an
    Euler (DDIM) step: the exponential integrator of DPM-Solver++ (Lu et al. 2022, eq. 10) in place of EDM's slopes in
    sigma, which fail where a step spans orders of magnitude of sigma, as the first of a cosine grid does.
    """
    validate_grid(grid)
    for i, (t, s) in enumerate(pairwise(grid)):
        x0 = denoise(z, t).x0
        direction = x0
        if s != math.inf:
            h = (s - t) / 2  # the paper's lambda is half our logsnr
            weight = (h + math.expm1(-h)) / (h * -math.expm1(-h))  # of x0's end value; 1/2 for a short step
            direction = x0 + weight * (denoise(_ddim_step(z, x0, t, s), s).x0 - x0)
        z = _ddim_step(z, direction, t, s)
        z = z if after_step is None else after_step(z, s)
        yield Step(i, t, z, x0)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "heun": heun}
