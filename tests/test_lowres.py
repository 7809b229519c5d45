"""conditioning/lowres.py: resizing that does not alias, and the noise and blur of conditioning augmentation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conditioning.lowres import augment, blur, downsample, upsample


def picture(*shape: int) -> Tensor:
    return torch.rand(*shape) * 2 - 1


# Resizing


@pytest.mark.parametrize(("size", "small"), [((8, 8), (4, 4)), ((12, 8), (4, 2)), ((9, 15), (3, 3)), ((8, 6), (8, 3))])
def test_whole_ratios_are_means_of_cells(size: tuple[int, int], small: tuple[int, int]) -> None:
    image = picture(2, 3, *size)
    cells = image.reshape(2, 3, small[0], size[0] // small[0], small[1], size[1] // small[1])
    torch.testing.assert_close(downsample(image, small), cells.mean(dim=(3, 5)))


def test_the_same_size_is_the_same_image() -> None:
    image = picture(1, 3, 5, 7)
    assert downsample(image, (5, 7)) is image
    torch.testing.assert_close(upsample(image, (5, 7)), image)


@given(st.tuples(*[st.integers(1, 12)] * 4), st.floats(-1, 1))
def test_constant_images_stay_constant(sides: tuple[int, int, int, int], value: float) -> None:
    height, width = max(sides[0], sides[2]), max(sides[1], sides[3])
    small = min(sides[0], sides[2]), min(sides[1], sides[3])
    for image, size, resize in (((height, width), small, downsample), (small, (height, width), upsample)):
        found = resize(torch.full((1, 3, *image), value), size)
        assert found.shape == (1, 3, *size)
        torch.testing.assert_close(found, torch.full((1, 3, *size), value), rtol=0, atol=1e-5)


@pytest.mark.parametrize("small", [16, 12, 13, 8, 5])
def test_what_the_small_image_cannot_hold_vanishes(small: int) -> None:
    """A pattern at the large image's highest frequency: plain interpolation would turn it into stripes."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    for pattern in ((-1.0) ** x, (-1.0) ** y, (-1.0) ** (x + y)):
        found = downsample(pattern.expand(1, 3, 32, 32), (small, small))
        assert found[..., 1:-1, 1:-1].abs().max() < 0.06
        assert found.abs().max() < 0.15  # at the borders part of the filter is cut off


@pytest.mark.parametrize("small", [16, 12])
def test_what_the_small_image_can_hold_is_kept(small: int) -> None:
    wave = torch.cos(torch.arange(0.5, 48) / 48 * 2 * math.pi * 2).expand(1, 3, 48, 48)
    wanted = torch.cos(torch.arange(0.5, small) / small * 2 * math.pi * 2).expand(1, 3, small, small)
    found = downsample(wave, (small, small))
    assert (found - wanted).abs().max() < 0.06
    assert (upsample(found, (48, 48)) - wave).abs().max() < 0.1


@pytest.mark.parametrize(("resize", "size"), [(downsample, (7, 11)), (upsample, (64, 50))])
def test_overshoot_is_clipped(resize, size: tuple[int, int]) -> None:
    image = picture(4, 3, 16, 16).sign()
    found = resize(image, size)
    assert found.abs().max() == 1
    assert found.shape == (4, 3, *size)
    assert (found.abs() < 0.9).any()


def test_enlarging_keeps_places() -> None:
    """Pixels are areas: a bright left half stays the left half, and mirroring commutes with enlarging."""
    image = torch.full((1, 3, 4, 4), -1.0)
    image[..., :2] = 1
    found = upsample(image, (16, 12))
    assert (found[..., :5] > 0.5).all()
    assert (found[..., 7:] < -0.5).all()
    image = picture(1, 3, 5, 6)
    torch.testing.assert_close(upsample(image.flip(-1), (10, 18)), upsample(image, (10, 18)).flip(-1))


# Noise


def test_augmentation_follows_its_formula() -> None:
    image, noise, logsnr = picture(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.tensor([-5.0, 0.0, 7.0])
    found = augment(image, logsnr, noise)
    for k, level in enumerate(logsnr.tolist()):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-level))), math.sqrt(1 / (1 + math.exp(level)))
        torch.testing.assert_close(found[k], alpha * image[k] + sigma * noise[k])


def test_augmentation_preserves_variance_and_ends_at_image_and_noise() -> None:
    image, noise = torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)
    for level in (-4.0, -1.0, 0.0, 2.0):
        found = augment(image, torch.tensor([level]), noise)
        assert found.std().item() == pytest.approx(1, abs=0.02)
        correlation = (found * image).mean().item()
        assert correlation == pytest.approx(math.sqrt(1 / (1 + math.exp(-level))), abs=0.02)
    assert torch.equal(augment(image, torch.tensor([math.inf]), noise), image)
    assert torch.equal(augment(image, torch.tensor([-math.inf]), noise), noise)
    assert (augment(image, torch.tensor([20.0]), noise) - image).abs().max() < 1e-3


# Blur


@pytest.mark.parametrize("sigma", [0.3, 0.6, 2.0])
def test_blur_is_a_3_x_3_gaussian(sigma: float) -> None:
    image = picture(2, 3, 6, 5).double()
    weight = [[math.exp(-(dy * dy + dx * dx) / (2 * sigma**2)) for dx in (-1, 0, 1)] for dy in (-1, 0, 1)]
    total = sum(map(sum, weight))
    wanted = torch.zeros_like(image)
    for y in range(6):
        for x in range(5):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    near = image[:, :, min(max(y + dy, 0), 5), min(max(x + dx, 0), 4)]
                    wanted[:, :, y, x] += weight[dy + 1][dx + 1] / total * near
    found = blur(image, torch.full((2,), sigma, dtype=torch.float64))
    torch.testing.assert_close(found, wanted)


def test_each_image_has_its_own_blur_and_0_is_none() -> None:
    image = picture(3, 3, 8, 8)
    found = blur(image, torch.tensor([0.0, 0.4, 1.0]))
    assert torch.equal(found[0], image[0])
    for k, sigma in ((1, 0.4), (2, 1.0)):
        torch.testing.assert_close(found[k : k + 1], blur(image[k : k + 1], torch.tensor([sigma])))
    detail = (found[..., 1:] - found[..., :-1]).abs().mean(dim=(1, 2, 3))
    assert detail[0] > 1.1 * detail[1] > 1.2 * detail[2]


@given(st.floats(0, 50), st.floats(-1, 1))
def test_blur_keeps_constants_and_the_range(sigma: float, value: float) -> None:
    constant = torch.full((1, 3, 4, 4), value)
    torch.testing.assert_close(blur(constant, torch.tensor([sigma])), constant, rtol=0, atol=1e-6)
    assert blur(picture(1, 3, 4, 4), torch.tensor([sigma])).abs().max() <= 1 + 1e-6


def test_blur_keeps_the_dtype_and_refuses_a_negative_sigma() -> None:
    assert blur(picture(1, 3, 4, 4).bfloat16(), torch.tensor([0.5])).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"blur sigma must not be negative, got -0\.5"):
        blur(picture(2, 3, 4, 4), torch.tensor([0.5, -0.5]))
