"""The toybox's scenes, and the toys that stand in them."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from toybox_scenes import of_kind, scenes

from cascade.data.toybox import (
    COLOURS,
    MATERIALS,
    NOUNS,
    Description,
    Look,
    Thing,
    arrange,
    sample_description,
    sample_scene,
)
from cascade.data.toybox.description import COUNTS, KINDS, SIZES
from cascade.data.toybox.scene import (
    FRAME_MARGIN,
    GROUNDS,
    LIGHTS,
    apart,
    hidden,
    in_frame,
    picture_box,
    usual_bulks,
)
from cascade.data.toybox.shapes import KINDS as SHAPES
from cascade.data.toybox.shapes import Part, part_bounds
from pipelines.evaluation.judge import size_class

THING = Thing(Look("cube", "red"), (0.0, 0.0, 0.0), 1.0, 0.0)


# Scenes


def test_a_scene_is_a_pure_function_of_seed_and_index() -> None:
    np.random.seed(1)
    assert [sample_scene(7, index) for index in (5, 3, 4)] == [scenes()[5], scenes()[3], scenes()[4]]
    assert sample_scene(8, 5) != scenes()[5]
    assert len({scene.to_json() for scene in scenes()}) == len(scenes())


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_described_is_arranged(kind: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        description = sample_description(rng, {kind: 1.0}, "any")
        scene = arrange(description, rng)
        assert scene.description == description
        assert len(scene.things) == description.count * len(description.looks)


def test_every_noun_colour_ground_and_light_occurs() -> None:
    looks = {thing.look for scene in scenes() for thing in scene.things}
    assert {look.noun for look in looks} == set(NOUNS)
    assert {look.colour for look in looks} == set(COLOURS)
    assert {scene.ground for scene in scenes()} == set(GROUNDS)
    assert {scene.light for scene in scenes()} == set(LIGHTS)


@pytest.mark.parametrize("kind", KINDS)
def test_things_are_in_the_frame_and_on_the_ground(kind: str) -> None:
    for scene in of_kind(kind):
        for thing in scene.things:
            left, top, right, bottom = picture_box(thing)
            assert FRAME_MARGIN - 1 <= left < right <= 1 - FRAME_MARGIN
            assert FRAME_MARGIN - 1 <= top < bottom <= 1 - FRAME_MARGIN
        assert scene.things[-1].position[1] == 0
        assert kind in ("on", "stack") or {thing.position[1] for thing in scene.things} == {0}
    assert not in_frame(picture_box(replace(THING, position=(3.0, 0.0, 0.0))))


def test_the_first_thing_is_left_of_the_second() -> None:
    for scene in of_kind("left"):
        (_, _, right, _), (left, _, _, _) = map(picture_box, scene.things)
        assert right + 0.02 <= left
    box = picture_box(THING)
    assert not apart(box, box)


def test_the_first_thing_is_nearer_and_hides_no_more_than_half_of_the_second() -> None:
    share = []
    for scene in of_kind("front"):
        near, far = scene.things
        assert near.position[2] - far.position[2] > 0.9
        boxes = picture_box(near), picture_box(far)
        assert boxes[0][3] > boxes[1][3]  # y goes down: the nearer stands lower in the picture
        share.append(hidden(boxes[1], boxes[0]))
    assert max(share) <= 0.5
    assert sum(each > 0 for each in share) > 20  # they do overlap
    wide = Description((Look("castle", "red", "large"), Look("rocket", "blue", "small")), relation="front")
    for seed in range(40):
        near, far = map(picture_box, arrange(wide, np.random.default_rng(seed)).things)
        assert hidden(far, near) <= 0.5


def test_hidden_is_a_share_of_what_is_behind() -> None:
    box = (0.0, 0.0, 0.4, 0.2)
    assert hidden(box, (0.2, -1.0, 1.0, 1.0)) == pytest.approx(0.5)
    assert hidden(box, (0.3, 0.1, 1.0, 1.0)) == pytest.approx(0.125)
    assert hidden((-1.0, -1.0, 1.0, 1.0), box) == pytest.approx(0.02)
    assert hidden(box, (0.4, 0.0, 1.0, 1.0)) == 0


@pytest.mark.parametrize(("kind", "count"), [("on", 2), ("stack", 3)])
def test_each_thing_stands_on_the_next(kind: str, count: int) -> None:
    for scene in of_kind(kind):
        assert len(scene.things) == count
        for above, below in pairwise(scene.things):
            rest = below.position[1] + below.scale * NOUNS[below.look.noun].rest
            assert above.position[1] == pytest.approx(rest, abs=1e-12)
            assert (above.position[0], above.position[2]) == (below.position[0], below.position[2])
            (_, top_a, _, bottom_a), (_, top_b, _, bottom_b) = picture_box(above), picture_box(below)
            assert top_a + bottom_a < top_b + bottom_b  # y goes down


def test_counted_things_are_alike_and_all_to_be_seen() -> None:
    for scene in of_kind("count"):
        assert len({thing.look for thing in scene.things}) == 1
        for a, b in combinations(scene.things, 2):
            near, far = sorted((a, b), key=lambda thing: -thing.position[2])
            assert hidden(picture_box(far), picture_box(near)) <= 0.1
        x = [thing.position[0] for thing in scene.things]
        assert x == sorted(x)
    assert {len(scene.things) for scene in of_kind("count")} == {2, 3, 4, 5}


@pytest.mark.parametrize(("kind", "shrunk"), [("one", 0.03), ("left", 0.1), ("front", 0), ("on", 0), ("stack", 0)])
def test_things_have_the_size_that_is_named(kind: str, shrunk: float) -> None:
    """A large thing that finds no room may shrink into a medium one, but only a few do."""
    found: dict[str, list[float]] = {size: [] for size in SIZES}
    for scene in (sample_scene(11, index, {kind: 1.0}) for index in range(300 if shrunk else 60)):
        for thing, usual in zip(scene.things, usual_bulks(scene.description), strict=True):
            found[thing.look.size].append(thing.bulk / usual)
    for size, factors in found.items():
        wrong = [factor for factor in factors if size_class(factor) != size]
        assert len(wrong) <= shrunk * len(factors) if size == "large" else not wrong, (size, wrong)
    assert min(found["large"], default=2.0) > max(found["small"], default=0.0)
    assert kind not in ("one", "left") or min(map(len, found.values())) > 20


def test_bulk_is_the_larger_of_height_and_mean_width() -> None:
    noun = NOUNS["rocket"]
    assert replace(THING, look=Look("rocket", "blue"), scale=0.5).bulk == pytest.approx(0.5 * noun.height)
    assert THING.bulk == pytest.approx(1.05 * 0.9)


# Toys


@pytest.mark.parametrize("name", NOUNS)
def test_every_noun_stands_on_the_ground_within_its_footprint(name: str) -> None:
    noun = NOUNS[name]
    low, high = noun.bounds()
    assert low[1] == pytest.approx(0, abs=1e-9)
    assert high[1] == noun.height
    assert (low[[0, 2]] >= -0.56).all()
    assert (high[[0, 2]] <= 0.56).all()
    assert (0.4 if name == "chair" else 0.8) * noun.height <= noun.rest <= noun.height
    assert any(part.paint == "body" for part in noun.parts)


def test_what_stands_on_a_noun_touches_it() -> None:
    """Under the middle of what rests there, some part reaches up to the height of rest, or nearly."""
    for name, noun in NOUNS.items():
        reaching = [
            part
            for part in noun.parts
            if (part_bounds(part)[0][[0, 2]] <= 0.05).all()
            and (part_bounds(part)[1][[0, 2]] >= -0.05).all()
            and part_bounds(part)[0][1] <= noun.rest <= part_bounds(part)[1][1] + 0.01
        ]
        assert reaching, name


def test_words_mean_one_thing() -> None:
    words = [word for name, noun in NOUNS.items() for word in (name, noun.plural, *noun.synonyms)]
    assert len(set(words)) == len(words)
    assert not set(words) & {*COLOURS, *MATERIALS, *SIZES, *COUNTS}
    assert len(NOUNS) == 26
    assert len(COLOURS) == 10


@pytest.mark.parametrize("name", SHAPES)
def test_part_bounds_hold_the_part_tightly(name: str) -> None:
    part = Part(name, (0.1, 0.2, -0.3), (0.3, 0.5, 0.2), tilt=(25.0, -40.0))
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (200_000, 3))
    radius = np.hypot(points[:, 0], points[:, 2])
    inside = {
        "box": radius < 9,
        "ellipsoid": (points**2).sum(axis=1) <= 1,
        "cylinder": radius <= 1,
        "cone": radius <= (1 - points[:, 1]) / 2,
    }[name]
    world = points[inside] @ part.frame().T + np.array(part.centre)
    low, high = part_bounds(part)
    assert (world >= low - 1e-9).all()
    assert (world <= high + 1e-9).all()
    assert np.abs(world.min(axis=0) - low).max() < 0.06
    assert np.abs(world.max(axis=0) - high).max() < 0.06


def test_colours_can_be_told_apart() -> None:
    hsv = {name: colorsys.rgb_to_hsv(*rgb) for name, rgb in COLOURS.items()}
    hues = sorted(360 * h for name, (h, _, _) in hsv.items() if name not in ("white", "black"))
    assert min(b - a for a, b in pairwise([*hues, hues[0] + 360])) >= 22
    assert all(saturation > 0.5 for name, (_, saturation, _) in hsv.items() if name not in ("white", "black"))
    for name, lightness in (("white", 0.94), ("black", 0.08)):
        assert max(COLOURS[name]) - min(COLOURS[name]) <= 0.02
        assert hsv[name][2] == pytest.approx(lightness, abs=0.01)
