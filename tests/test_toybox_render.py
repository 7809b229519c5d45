"""Pictures of the toybox: what is drawn, at any size, whole or in parts."""

from __future__ import annotations

import colorsys
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from toybox_scenes import of_kind, scenes, single

from cascade.data.toybox import COLOURS, NOUNS, Look, render
from cascade.data.toybox.scene import GROUNDS, LIGHTS, picture_box
from conditioning.lowres import downsample

HUES = {name: 360 * colorsys.rgb_to_hsv(*COLOURS[name])[0] for name in COLOURS if name not in ("white", "black")}


def nearest_colours(image: Tensor) -> np.ndarray:
    """H W: the name of the colour of the nearest hue where a pixel of 3 H W in [-1, 1] is saturated, else ""."""
    pixels = ((image.permute(1, 2, 0) + 1) / 2).numpy()
    names = np.full(pixels.shape[:2], "", dtype=object)
    for y, x in np.ndindex(*names.shape):
        h, saturation, value = colorsys.rgb_to_hsv(*pixels[y, x].tolist())
        if saturation > 0.35 and value > 0.12:
            names[y, x] = min(HUES, key=lambda name: abs((360 * h - HUES[name] + 180) % 360 - 180))
    return names


def test_pictures_are_float32_in_range_at_any_size() -> None:
    for size, shape in ((16, (16, 16)), ((20, 36), (20, 36)), ((9, 5), (9, 5))):
        found = render(scenes()[:2], size)
        assert found.shape == (2, 3, *shape)
        assert found.dtype == torch.float32
        assert found.min() >= -1
        assert found.max() <= 1
        assert found.std() > 0.05
    assert render([], 8).shape == (0, 3, 8, 8)


def test_a_scene_is_rendered_the_same_alone_or_in_a_batch() -> None:
    together = render(scenes()[:5], 32)
    for k, scene in enumerate(scenes()[:5]):
        torch.testing.assert_close(together[k : k + 1], render([scene], 32), rtol=0, atol=1e-6)
    assert torch.equal(render(scenes()[:5], 32), together)


def test_a_scene_is_rendered_the_same_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["cascade.data.toybox.render"]  # the package's `render` is the function
    wanted = render(scenes()[:3], 32)
    for rays in (1, 2000, 9000):
        monkeypatch.setattr(module, "RAYS_AT_ONCE", {"cpu": rays})
        torch.testing.assert_close(render(scenes()[:3], 32), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("crop", [(0, 0, 40, 56), (5, 11, 21, 30), (39, 55, 1, 1), (8, 16, 8, 8)])
def test_a_crop_is_a_part_of_the_whole(crop: tuple[int, int, int, int]) -> None:
    whole = render(scenes()[:3], (40, 56))
    top, left, height, width = crop
    part = render(scenes()[:3], (40, 56), crop=crop)
    torch.testing.assert_close(part, whole[:, :, top : top + height, left : left + width], rtol=0, atol=1e-6)


def test_width_does_not_change_the_view() -> None:
    """The height spans a fixed angle: a wider picture shows more at the sides and the same in the middle."""
    wide, square = render(scenes()[:2], (32, 64)), render(scenes()[:2], 32)
    torch.testing.assert_close(wide[..., 16:48], square, rtol=0, atol=1e-5)


def test_small_pictures_are_antialiased() -> None:
    """Close to the mean of a large picture's pixels, much closer than every fourth of them."""
    large = render(scenes()[:4], 256)
    light = ((large + 1) / 2).pow(2.2)  # close to linear, which is where light adds up
    mean = downsample(light, (64, 64)).pow(1 / 2.2) * 2 - 1
    aliased = (large[..., 1::4, 1::4] - mean).abs().mean()
    errors = [(render(scenes()[:4], 64, supersample=rays) - mean).abs().mean() for rays in (1, 2, 4)]
    assert errors[1] < 0.005
    assert errors[1] < 0.6 * aliased
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2]
    assert (downsample(large, (64, 64)) - mean).abs().mean() < 0.005  # what training takes for the 64 px picture


@pytest.mark.parametrize("noun", NOUNS)
def test_the_asked_colour_dominates(noun: str) -> None:
    """Among all pixels with a hue; white and black ones have none, and are light or dark where the others are."""
    found = dict(zip(COLOURS, render([single(noun, colour) for colour in COLOURS], 48), strict=True))
    body = (found["red"] - found["blue"]).abs().amax(dim=0) > 0.2
    for colour, image in found.items():
        names = nearest_colours(image)
        coloured = names[names != ""]
        if colour in HUES:
            assert coloured.size > 60
            assert (coloured == colour).mean() > 0.8
        else:
            pixels = (image[:, body] + 1) / 2
            assert coloured.size < 0.15 * body.sum()
            assert ((pixels.amax(dim=0) - pixels.amin(dim=0)) < 0.12).float().mean() > 0.9
            light = pixels.mean(dim=0) > 0.4
            assert (light if colour == "white" else ~light).float().mean() > 0.8


def test_grounds_have_no_colour_of_their_own() -> None:
    left = picture_box(single("cube", "red").things[0])[0]
    for ground in GROUNDS:
        for light in LIGHTS:
            names = nearest_colours(render([single("cube", "red", ground=ground, light=light)], 32)[0])
            assert set(names[:, : int((left + 1) * 16)].flatten()) == {""}
            assert (names == "red").sum() > 50


@pytest.mark.parametrize(("kind", "axis"), [("left", 1), ("on", 0), ("stack", 0)])
def test_pictures_show_what_a_relation_means(kind: str, axis: int) -> None:
    """The first thing further left, or higher up. All are painted so that they can be told apart."""
    for scene in of_kind(kind)[:6]:
        paints = ("red", "blue", "green")[: len(scene.things)]
        things = [
            replace(thing, look=Look(thing.look.noun, paint)) for thing, paint in zip(scene.things, paints, strict=True)
        ]
        names = nearest_colours(render([replace(scene, things=tuple(things))], 48)[0])
        means = [np.argwhere(names == paint)[:, axis].mean() for paint in paints]
        assert all(b - a > 2 for a, b in pairwise(means))  # a chair's seat is low


def test_what_stands_in_front_is_drawn_in_front() -> None:
    """The nearer thing is seen whole, as if it stood there alone; the other is not."""
    hidden_pixels = 0
    for scene in of_kind("front")[:12]:
        near, far = (replace(t, look=Look(t.look.noun, c)) for t, c in zip(scene.things, ("red", "blue"), strict=True))
        both, alone, behind = (
            nearest_colours(image)
            for image in render(
                [
                    replace(scene, things=(near, far)),
                    replace(scene, things=(near,), relation=None),
                    replace(scene, things=(far,), relation=None),
                ],
                48,
            )
        )
        assert ((both == "red") == (alone == "red")).mean() > 0.99
        assert ((both == "blue") & (behind != "blue")).sum() < 10
        assert (both == "blue").sum() > 0.4 * (behind == "blue").sum()
        hidden_pixels += ((behind == "blue") & (both == "red")).sum()
    assert hidden_pixels > 20


def test_counted_things_are_all_drawn() -> None:
    """Without any one of them the picture is another."""
    for scene in of_kind("count")[:12]:
        without = [replace(scene, things=(*scene.things[:k], *scene.things[k + 1 :])) for k in range(len(scene.things))]
        whole, *others = render([scene, *without], 48)
        for other in others:
            assert ((whole - other).abs().amax(dim=0) > 0.1).sum() > 25


def test_a_thing_is_drawn_within_its_picture_box() -> None:
    for noun in NOUNS:
        red, blue = render([single(noun, "red"), single(noun, "blue")], 64)
        changed = ((red - blue).abs().amax(dim=0) > 1e-3).nonzero().numpy()
        (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0) + 1
        box = [(side + 1) * 32 for side in picture_box(single(noun, "red").things[0])]
        assert box[0] - 1 <= left
        assert box[1] - 1 <= top
        assert right <= box[2] + 1
        assert bottom <= box[3] + 1
        assert (right - left) > 0.6 * (box[2] - box[0])  # a box around boxes, but no wide one
        assert (bottom - top) > 0.6 * (box[3] - box[1])


def test_ground_light_and_colour_show() -> None:
    scene = single("cube", "red")
    base = render([scene], 32)
    for other in (
        replace(scene, ground="slate"),
        replace(scene, light="right"),
        single("cube", "green"),
        single("ball", "red"),
    ):
        assert (render([other], 32) - base).abs().mean() > 0.01


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"crop": (0, 0, 33, 32)}, r"crop .*\(0, 0, 33, 32\): expected to lie within 32 x 32 pixels"),
        ({"crop": (-1, 0, 8, 8)}, "crop"),
        ({"crop": (0, 30, 8, 8)}, "crop"),
        ({"crop": (0, 0, 0, 8)}, "crop"),
        ({"supersample": 0}, "supersample 0: expected 1 or more"),
    ],
)
def test_what_cannot_be_rendered_is_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(scenes()[:1], 32, **kwargs)
