"""Classifier-free guidance (Ho & Salimans 2021), with an interval (Kynkaanniemi et al. 2024): denoiser to denoiser."""

import math

from torch import Tensor

from cascade.denoiser import Denoise, Denoised, Denoiser, Prepared


def guide(
    denoiser: Denoiser,
    prepared: Prepared,
    scale: float = 7.0,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """x0 = x0_null + scale (x0_cond - x0_null), with Imagen's convention that scale 1 is off.

    prepared: the conditional rows, or both halves from `Denoiser.pair`. One batched pass of both halves where guidance
    is on; one pass of the conditional half where the scale is 1 or logsnr lies outside ``interval`` = (low, high),
    inclusive. The variance is the conditional half's. Raises ValueError for a NaN or negative scale, an empty interval,
    or a scale other than 1 where the unconditional half was not prepared.
    """
    if not scale >= 0 or math.isinf(scale):
        raise ValueError(f"guidance scale must be a number >= 0 (1 is off), got {scale}")
    if interval is not None and not interval[0] <= interval[1]:
        raise ValueError(f"guidance interval must be (low, high) in logsnr with low <= high, got {interval}")

    def denoise(z: Tensor, logsnr: float) -> Denoised:
        images = len(z)
        on = scale != 1 and (interval is None or interval[0] <= logsnr <= interval[1])
        if not on:
            return denoiser(z, logsnr, prepared if len(prepared) == images else prepared[:images])
        if len(prepared) != 2 * images:
            raise ValueError(f"guidance needs both halves prepared: {2 * images} rows, got {len(prepared)}")
        x0, variance_fraction = denoiser(z, logsnr, prepared)
        conditional, null = x0.chunk(2)
        variance = None if variance_fraction is None else variance_fraction[:images]
        return Denoised(null + scale * (conditional - null), variance)

    return denoise
