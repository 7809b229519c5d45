"""The toybox's materials: seen in a large picture, gone in a small one."""

from __future__ import annotations

import sys
from functools import cache
from itertools import combinations

import pytest
import torch
from torch import Tensor
from toybox_scenes import single

from cascade.data.toybox import COLOURS, NOUNS, Look, Scene, Thing, render
from cascade.data.toybox.materials import MATERIALS, texture
from conditioning.lowres import downsample

TEXTURED = [name for name in MATERIALS if name != "plain"]


@cache
def picture(noun: str, colour: str, material: str, size: int) -> Tensor:
    """3 size/2 size/2 in [0, 1]: the middle of a picture of `size` pixels."""
    return (
        render([single(noun, colour, material)], size, crop=(size // 4, size // 4, size // 2, size // 2))[0] + 1
    ) / 2


def body(noun: str, size: int) -> Tensor:
    """size/2 size/2: which pixels show the part of the noun that takes a colour."""
    return (picture(noun, "red", "plain", size) - picture(noun, "blue", "plain", size)).abs().amax(dim=0) > 0.1


def local_contrast(change: Tensor) -> Tensor:
    """H/8 W/8: the range within blocks of 8 x 8 pixels of 3 H W, in the channel where it is largest."""
    high, low = (torch.nn.functional.max_pool2d(sign * change, 8) for sign in (1, -1))
    return (high + low).amax(dim=0)


@pytest.mark.parametrize("material", TEXTURED)
def test_a_texture_keeps_the_mean_and_fades_with_the_blur(material: str) -> None:
    x, y = (torch.rand(2, 200_000, generator=torch.Generator().manual_seed(1)) - 0.5).unbind(0)
    spreads = []
    for blur in (0.002, 0.0087, 0.035, 0.14):
        change = texture(material, x, y, torch.full_like(x, blur))
        assert change.mean().abs() < 0.015
        assert change.amin() > -1.0
        spreads.append(change.std())
    assert spreads[0] >= spreads[1] > 2 * spreads[2]
    assert spreads[1] > 0.1
    assert spreads[2] >= 2 * spreads[3]


@pytest.mark.parametrize("material", TEXTURED)
def test_the_closed_form_of_the_blur_is_a_mean(material: str) -> None:
    """Fine samples over a pixel's width average to the blurred texture, closely enough not to alias."""
    centre = (torch.rand(2, 400, 1, generator=torch.Generator().manual_seed(2)) - 0.5).expand(-1, -1, 32 * 32)
    blur = 0.0087
    steps = (torch.arange(32) + 0.5) / 32 * blur - blur / 2
    x, y = centre[0] + steps.repeat(32), centre[1] + steps.repeat_interleave(32)
    fine = texture(material, x, y, torch.full_like(x, blur / 32)).mean(dim=1)
    blurred = texture(material, centre[0, :, 0], centre[1, :, 0], torch.full((400,), blur))
    assert (fine - blurred).abs().mean() < 0.07
    assert torch.corrcoef(torch.stack([fine, blurred]))[0, 1] > 0.9


@pytest.mark.parametrize("colour", ["black", "white", "blue"])
@pytest.mark.parametrize("noun", ["cube", "ball"])
def test_materials_differ_in_a_large_picture(noun: str, colour: str) -> None:
    inner = torch.nn.functional.avg_pool2d(body(noun, 256)[None].float(), 8)[0] == 1  # blocks without an edge
    plain = picture(noun, colour, "plain", 256)
    for material in TEXTURED:
        contrast = local_contrast(picture(noun, colour, material, 256) - plain)[inner].mean()
        assert contrast > (0.06 if colour == "black" else 0.1), material
    for a, b in combinations(TEXTURED, 2):
        difference = picture(noun, colour, a, 256) - picture(noun, colour, b, 256)
        assert local_contrast(difference)[inner].mean() > (0.06 if colour == "black" else 0.1), (a, b)


@pytest.mark.parametrize("material", TEXTURED)
def test_materials_are_nearly_gone_in_a_small_picture(material: str) -> None:
    for noun in ("cube", "ball"):
        shown = body(noun, 64)
        for colour in ("black", "white", "blue"):
            small, plain = picture(noun, colour, material, 64), picture(noun, colour, "plain", 64)
            assert (small - plain)[:, shown].abs().mean() < 0.02
            large, large_plain = (
                downsample(picture(noun, colour, name, 256)[None], (32, 32))[0] for name in (material, "plain")
            )
            assert (large - large_plain)[:, shown].abs().mean() < 0.035
            assert (large - large_plain)[:, shown].mean().abs() < 0.02  # neither darker nor lighter as a whole
            assert (large - small)[:, shown].abs().mean() < 0.03


def test_fixed_paints_have_no_texture() -> None:
    """What does not change with the colour does not change with the material, but for edges and light."""
    fixed = (picture("car", "red", "plain", 256) - picture("car", "blue", "plain", 256)).abs().amax(dim=0) == 0
    for material in TEXTURED:
        assert torch.equal(
            picture("car", "red", material, 256)[:, fixed], picture("car", "red", "plain", 256)[:, fixed]
        )


def test_things_of_one_scene_have_their_own_materials() -> None:
    def pair(*materials: str) -> Tensor:
        looks = (Look("ball", colour, material=name) for colour, name in zip(("red", "blue"), materials, strict=True))
        things = (Thing(look, (x, 0.0, 0.0), 0.7, 0.0) for look, x in zip(looks, (-0.5, 0.5), strict=True))
        return render([Scene(tuple(things), "cream", "left", "left")], 64)

    both, plain = pair("plain", "brick"), pair("plain", "plain")
    assert torch.equal(both[..., :32], plain[..., :32])
    assert not torch.equal(both[..., 32:], plain[..., 32:])


def test_a_crop_is_a_part_of_the_whole_with_materials() -> None:
    nouns, colours = list(NOUNS), list(COLOURS)
    scenes = [single(nouns[k % len(nouns)], colours[k % len(colours)], name) for k, name in enumerate(TEXTURED)]
    for size in ((40, 56), (128, 128)):
        whole = render(scenes, size)
        for top, left, height, width in ((5, 11, 21, 30), (8, 16, 16, 24)):
            part = render(scenes, size, crop=(top, left, height, width))
            assert torch.equal(part, whole[:, :, top : top + height, left : left + width])


def test_a_scene_is_rendered_the_same_in_bands_with_materials(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [single("house", "red", material) for material in TEXTURED]
    wanted = render(scenes, 64)
    monkeypatch.setattr(sys.modules["cascade.data.toybox.render"], "RAYS_AT_ONCE", {"cpu": 3000})
    torch.testing.assert_close(render(scenes, 64), wanted, rtol=0, atol=1e-5)
