"""Noise schedules and step grids.

The process is variance preserving: z = alpha x + sigma eps with alpha^2 + sigma^2 = 1, and the noise level is always
``logsnr = log(alpha^2 / sigma^2)`` (the full log signal-to-noise ratio; EDM's sigma is exp(-logsnr / 2)).

A schedule maps a time t in [0, 1], 0 clean and 1 noise, to logsnr, decreasing, and `time` inverts it. Both take and
return either a Python float (computed in float64) or a tensor of any shape.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Level = TypeVar("Level", float, Tensor)


def _elementwise(function: Callable[[Tensor], Tensor], value: Level) -> Level:
    """Apply a tensor function to a tensor, or to a float in float64."""
    if isinstance(value, Tensor):
        return function(value)
    return float(function(torch.tensor(value, dtype=torch.float64)))


def alpha_sigma(logsnr: Level) -> tuple[Level, Level]:
    """alpha = sqrt(sigmoid(logsnr)) and sigma = sqrt(sigmoid(-logsnr)); floats for a float, tensors for a tensor."""
    if isinstance(logsnr, Tensor):
        return logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()
    if logsnr == math.inf:
        return 1.0, 0.0
    # The branch keeps exp() from overflowing at the ends of the range.
    small = math.exp(-abs(logsnr))
    high, low = math.sqrt(1 / (1 + small)), math.sqrt(small / (1 + small))
    return (high, low) if logsnr >= 0 else (low, high)


@dataclass(frozen=True)
class Cosine:
    """The bounded cosine schedule: lambda(t) = -2 log tan(a t + b) + shift (Nichol & Dhariwal 2021; CFG, section 2).

    ``shift = 2 log(d0 / d)`` moves the schedule of a reference resolution d0 to images of size d (simple diffusion,
    eq. 4); the bounds hold after the shift, so the range of noise levels stays what it was. 0 is Imagen's schedule.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(f"logsnr_min must be below logsnr_max, got {self.logsnr_min} and {self.logsnr_max}")

    @property
    def _angles(self) -> tuple[float, float]:
        start = math.atan(math.exp(-(self.logsnr_max - self.shift) / 2))
        end = math.atan(math.exp(-(self.logsnr_min - self.shift) / 2))
        return start, end - start

    def __call__(self, t: Level) -> Level:
        start, span = self._angles
        return _elementwise(lambda u: -2 * torch.log(torch.tan(span * u + start)) + self.shift, t)

    def time(self, logsnr: Level) -> Level:
        start, span = self._angles
        return _elementwise(lambda u: (torch.atan(torch.exp(-(u - self.shift) / 2)) - start) / span, logsnr)


@dataclass(frozen=True)
class InterpolatedCosine:
    """Between two shifted cosines: lambda(t) = (1 - t) lambda_clean(t) + t lambda_noisy(t) (simple diffusion, eq. 5).

    The noisier shift has the weight near t = 1, as in the authors' code; the printed formula reads the other way round.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    shift_clean: float = 0.0
    shift_noisy: float = -2 * math.log(2)

    def _ends(self) -> tuple[Cosine, Cosine]:
        return (
            Cosine(self.logsnr_min, self.logsnr_max, self.shift_clean),
            Cosine(self.logsnr_min, self.logsnr_max, self.shift_noisy),
        )

    def __post_init__(self) -> None:
        self._ends()

    def __call__(self, t: Level) -> Level:
        clean, noisy = self._ends()
        return _elementwise(lambda u: (1 - u) * clean(u) + u * noisy(u), t)

    def time(self, logsnr: Level) -> Level:
        def bisect(target: Tensor) -> Tensor:  # the blend has no closed-form inverse; it is monotone
            low, high = torch.zeros_like(target), torch.ones_like(target)
            for _ in range(60):
                middle = (low + high) / 2
                above = self(middle) > target
                low, high = torch.where(above, middle, low), torch.where(above, high, middle)
            return (low + high) / 2

        return _elementwise(bisect, logsnr)


@dataclass(frozen=True)
class LinearBeta:
    """DDPM's linear beta, continuous: alpha^2(t) = exp(-beta_start - integral of T beta) (Ho 2020; Song et al. 2021).

    beta runs linearly from ``beta_start`` to ``beta_end`` over ``steps`` discrete steps; the first step's beta is what
    is left at t = 0, so logsnr stays finite there. Imagen's 256 -> 1024 stage and SR3 use this family.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    steps: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.beta_start < self.beta_end < 1:
            raise ValueError(f"need 0 < beta_start < beta_end < 1, got {self.beta_start} and {self.beta_end}")

    def _coefficients(self) -> tuple[float, float, float]:
        """(a, b, c) of -log alpha^2 = a t^2 + b t + c."""
        return self.steps * (self.beta_end - self.beta_start) / 2, self.steps * self.beta_start, self.beta_start

    def __call__(self, t: Level) -> Level:
        a, b, c = self._coefficients()
        return _elementwise(lambda u: -torch.log(torch.expm1(a * u * u + b * u + c)), t)

    def time(self, logsnr: Level) -> Level:
        a, b, c = self._coefficients()
        return _elementwise(
            lambda u: ((b * b + 4 * a * (torch.nn.functional.softplus(-u, threshold=50) - c)).sqrt() - b) / (2 * a),
            logsnr,
        )


@dataclass(frozen=True)
class DiscreteTable:
    """A trained table of betas, t = i / (T - 1) for step i; between its entries logsnr is interpolated linearly.

    ``kind`` names how the betas arise: "linear" or "cosine" (Nichol & Dhariwal 2021, eq. 17, with betas capped at
    0.999, which is diffusers' squaredcos_cap_v2).
    """

    kind: str = "cosine"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "cosine"):
            raise ValueError(f'kind must be "linear" or "cosine", got {self.kind!r}')
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, got {self.steps}")

    def levels(self) -> np.ndarray:
        """logsnr of step 0 .. T - 1, float64, decreasing."""
        if self.kind == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.steps, dtype=np.float64)
        else:
            bar = np.cos((np.arange(self.steps + 1) / self.steps + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        log_bar = np.cumsum(np.log1p(-betas))
        return log_bar - np.log(-np.expm1(log_bar))

    def _interpolate(self, value: Level, x: np.ndarray, y: np.ndarray) -> Level:
        def lookup(u: Tensor) -> Tensor:
            if u.is_meta:  # it has no value to look up
                return torch.empty_like(u)
            found = np.interp(u.detach().cpu().double().numpy(), x, y)  # a plain number where u has no dimensions
            return torch.as_tensor(found).to(u.device, u.dtype)

        return _elementwise(lookup, value)

    def __call__(self, t: Level) -> Level:
        return self._interpolate(t, np.linspace(0, 1, self.steps), self.levels())

    def time(self, logsnr: Level) -> Level:
        return self._interpolate(logsnr, self.levels()[::-1], np.linspace(1, 0, self.steps))

    def index(self, logsnr: Level) -> Level:
        """The (fractional) step index, which is the noise input of networks trained on the table."""
        return self.time(logsnr) * (self.steps - 1)


Schedule = Cosine | InterpolatedCosine | LinearBeta | DiscreteTable


def uniform_grid(schedule: Schedule, steps: int, start: float = 1.0) -> list[float]:
    """``steps`` levels at evenly spaced times from ``start`` down, then +inf, where a sampler returns x0 (Imagen,
    section 2.5).
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < start <= 1:
        raise ValueError(f"a grid must start at a time in (0, 1], got {start}")
    return [schedule(start * (steps - i) / steps) for i in range(steps)] + [math.inf]


def leading_steps(table: DiscreteTable, steps: int) -> list[int]:
    """``steps`` whole steps of a table, T // steps apart, down to 0 (DDIM, appendix D.3; diffusers' "leading")."""
    if not 1 <= steps <= table.steps:
        raise ValueError(f"steps must be from 1 to the table's {table.steps}, got {steps}")
    return [i * (table.steps // steps) for i in reversed(range(steps))]


def table_grid(table: DiscreteTable, steps: Sequence[int]) -> list[float]:
    """The levels of some steps of a table, which must fall, then +inf."""
    if not steps or any(a <= b for a, b in pairwise(steps)) or not 0 <= steps[-1] <= steps[0] < table.steps:
        raise ValueError(f"timesteps must be falling whole numbers from {table.steps - 1} to 0, got {list(steps)}")
    levels = table.levels()
    return [float(levels[step]) for step in steps] + [math.inf]


def network_input(schedule: Schedule, logsnr: Level) -> Level:
    """What a network is told of a noise level: the step of a discrete table it was trained on, else 1000 (2 / pi)
    atan(sigma / alpha), the time of the unshifted cosine schedule, which every noise level maps into [0, 1000] whatever
    schedule is sampled.
    """
    if isinstance(schedule, DiscreteTable):
        return schedule.index(logsnr)
    if isinstance(logsnr, Tensor):
        return torch.atan(torch.exp(-logsnr / 2)) * (2000 / math.pi)
    return math.atan(math.exp(-logsnr / 2)) * (2000 / math.pi)


def validate_grid(grid: Sequence[float]) -> None:
    """Raise ValueError unless the grid rises strictly and ends at +inf."""
    if len(grid) < 2 or grid[-1] != math.inf or any(not a < b for a, b in pairwise(grid)):
        raise ValueError(f"a step grid must rise strictly in logsnr and end at +inf, got {list(grid)}")
