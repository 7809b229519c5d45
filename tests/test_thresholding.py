"""cascade/thresholding.py against torch.quantile, the paper's formula, and diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cascade.denoiser import Denoised
from cascade.thresholding import Thresholding, dynamic, quantile_of_magnitude, static, threshold

shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
fractions = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 0.95, 0.995, 1.0])


def images(*deviations: float) -> Tensor:
    """One image per number, normal with that deviation."""
    return torch.randn(len(deviations), 3, 16, 16) * torch.tensor(deviations)[:, None, None, None]


def formula(x0: Tensor, percentile: float) -> Tensor:
    """Imagen, section 2.3."""
    s = torch.quantile(x0.abs().flatten(1), percentile, dim=1).clamp(min=1)[:, None, None, None]
    return x0.maximum(-s).minimum(s) / s


# The quantile


@given(shape=shapes, fraction=fractions, seed=st.integers(0, 99))
def test_the_quantile_is_that_of_torch(shape: tuple[int, ...], fraction: float, seed: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wanted = torch.quantile(x.abs().flatten(1), fraction, dim=1)
    torch.testing.assert_close(quantile_of_magnitude(x, fraction), wanted, rtol=1e-12, atol=1e-12)
    found = quantile_of_magnitude(x.float(), fraction)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [64, 128])
def test_the_quantile_of_a_whole_image(side: int) -> None:
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    for fraction in (0.95, 0.995, 0.9999, 1.0):
        wanted = torch.quantile(x.abs().flatten(1), fraction, dim=1)
        torch.testing.assert_close(quantile_of_magnitude(x, fraction), wanted, rtol=1e-12, atol=0)


@given(value=st.floats(-3, 3), fraction=fractions)
def test_the_quantile_of_equal_numbers_is_their_magnitude(value: float, fraction: float) -> None:
    x = torch.full((1, 3, 4, 4), value)
    assert torch.equal(quantile_of_magnitude(x, fraction), x.abs()[:, 0, 0, 0])


# Dynamic thresholding


@pytest.mark.parametrize("percentile", [0.5, 0.95, 0.995, 1.0])
def test_dynamic_is_the_formula_of_the_paper(percentile: float) -> None:
    x0 = images(0.2, 0.8, 3.0, 20.0)
    found = dynamic(percentile)(x0)
    torch.testing.assert_close(found, formula(x0, percentile), rtol=1e-5, atol=1e-6)
    assert found.abs().max() <= 1


def test_the_defaults_are_the_paper_and_no_cap() -> None:
    x0 = images(0.2, 30.0)
    torch.testing.assert_close(dynamic()(x0), formula(x0, 0.995), rtol=1e-5, atol=1e-6)
    assert torch.equal(Thresholding().function()(x0), dynamic()(x0))


def test_dynamic_keeps_contrast_where_clipping_saturates() -> None:
    x0 = images(3.0)
    saturated = [(one.abs() == 1).float().mean() for one in (static(x0), dynamic()(x0))]
    assert saturated[0] > 0.5
    assert 0 < saturated[1] < 0.01
    inside = x0.abs() < 1
    ratio = dynamic()(x0)[inside] / x0[inside]
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio[0].item()))
    assert ratio[0] < 0.5


def test_dynamic_is_clipping_where_few_pixels_are_outside() -> None:
    x0 = images(0.2)
    x0[0, 0, 0, :3] = torch.tensor([5.0, -5.0, 1.5])  # 3 of 768 are less than 0.5 percent
    assert torch.equal(dynamic()(x0), x0.clamp(-1, 1))
    assert torch.equal(static(x0), x0.clamp(-1, 1))
    x0[0, 0, 1, :3] = 5.0
    assert not torch.equal(dynamic()(x0), x0.clamp(-1, 1))


def test_every_image_has_its_own_threshold() -> None:
    x0 = images(0.1, 1.0, 5.0)
    alone = torch.cat([dynamic()(x0[i : i + 1]) for i in range(3)])
    assert torch.equal(dynamic()(x0), alone)
    assert torch.equal(dynamic()(x0)[0], x0[0])


@pytest.mark.parametrize("max_value", [1.0, 1.5, 100.0])
def test_the_cap_is_that_of_diffusers(max_value: float) -> None:
    from diffusers import DDPMScheduler

    x0 = images(0.2, 0.8, 3.0)
    theirs = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=max_value)
    found = dynamic(0.95, max_value)(x0)
    torch.testing.assert_close(found, theirs._threshold_sample(x0), rtol=1e-5, atol=1e-6)
    assert torch.allclose(found[2], formula(x0, 0.95)[2]) == (max_value == 100)
    if max_value == 1:
        assert torch.equal(found, static(x0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"percentile": 0.0}, r"fraction in \(0, 1\], got 0.0"),
        ({"percentile": -0.1}, "got -0.1"),
        ({"percentile": 99.5}, "got 99.5"),
        ({"percentile": math.nan}, "got nan"),
        ({"max_value": 0.9}, "max_value must be at least 1, got 0.9"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dynamic(**settings)
    with pytest.raises(ValueError, match=message):
        Thresholding(**settings)


# A stage's choice


def test_the_kinds() -> None:
    x0 = images(3.0)
    assert Thresholding("none").function() is None
    assert torch.equal(Thresholding("static").function()(x0), x0.clamp(-1, 1))
    assert torch.equal(Thresholding("dynamic", 0.9, 1.5).function()(x0), dynamic(0.9, 1.5)(x0))
    with pytest.raises(ValueError, match="got 'clip'"):
        Thresholding("clip")  # type: ignore[arg-type]


def test_only_x0_is_thresholded() -> None:
    variance = images(3.0)
    z = images(4.0)

    def denoise(z: Tensor, logsnr: float) -> Denoised:
        return Denoised(z + logsnr, variance)

    found = threshold(denoise, dynamic())(z, 0.5)
    assert torch.equal(found.x0, dynamic()(z + 0.5))
    assert found.variance_fraction is variance
    assert threshold(denoise, None) is denoise
    assert threshold(lambda z, logsnr: Denoised(z), static)(z, 0.5).variance_fraction is None
