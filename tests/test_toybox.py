"""The toybox: scenes, what they are called, what they look like, and the collections rendered beforehand."""

from __future__ import annotations

import colorsys
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cascade.data.toybox import (
    COLOURS,
    GROUNDS,
    KIND_WEIGHTS,
    LIGHTS,
    NOUNS,
    Part,
    Scene,
    Thing,
    caption,
    in_frame,
    picture_box,
    plain_caption,
    render,
    rendered,
    sample_scene,
    vocabulary,
)
from cascade.data.toybox.nouns import KINDS, part_bounds
from cascade.data.toybox.rendered import RenderedToybox, render_collection
from cascade.data.toybox.scene import COUNTS, apart
from conditioning.lowres import downsample


@cache
def scenes() -> list[Scene]:
    return [sample_scene(7, index) for index in range(400)]


def kind(scene: Scene) -> str:
    return scene.relation or ("one" if len(scene.things) == 1 else "count")


def of_kind(name: str, count: int) -> list[Scene]:
    return [scene for scene in scenes() if kind(scene) == name][:count]


def single(noun: str, colour: str, **changes) -> Scene:
    """One large thing in the middle."""
    size = 1.2 / max(NOUNS[noun].height, 1.05 * NOUNS[noun].width)
    return Scene((Thing(noun, colour, (0.0, 0.0, 0.0), size, 35.0),), **{"ground": "beige", "light": "left"} | changes)


def hue(colour: str) -> float:
    return 360 * colorsys.rgb_to_hsv(*COLOURS[colour])[0]


def nearest_colours(image: Tensor) -> np.ndarray:
    """H W: the name of the colour of the nearest hue where a pixel of 3 H W in [-1, 1] is saturated, else ""."""
    pixels = ((image.permute(1, 2, 0) + 1) / 2).numpy()
    names = np.full(pixels.shape[:2], "", dtype=object)
    for y, x in np.ndindex(*names.shape):
        h, saturation, value = colorsys.rgb_to_hsv(*pixels[y, x].tolist())
        if saturation > 0.35 and value > 0.12:
            names[y, x] = min(COLOURS, key=lambda name: abs((360 * h - hue(name) + 180) % 360 - 180))
    return names


# Scenes


def test_a_scene_is_a_pure_function_of_seed_and_index() -> None:
    np.random.seed(1)
    assert [sample_scene(7, index) for index in (5, 3, 4)] == [scenes()[5], scenes()[3], scenes()[4]]
    assert sample_scene(8, 5) != scenes()[5]
    assert len({scene.to_json() for scene in scenes()}) == len(scenes())


def test_things_are_in_the_frame_and_apart() -> None:
    for scene in scenes():
        assert all(in_frame(thing) for thing in scene.things)
        if scene.relation != "on":
            assert all(apart(a, b) for a, b in combinations(scene.things, 2))
    assert not in_frame(replace(scenes()[0].things[0], position=(3.0, 0.0, 0.0)))
    assert not apart(scenes()[0].things[0], scenes()[0].things[0])


def test_counted_things_are_alike_and_stand_on_the_ground() -> None:
    for scene in of_kind("count", 100):
        assert len({(thing.noun, thing.colour) for thing in scene.things}) == 1
        assert len(scene.things) in COUNTS.values()
    assert all(thing.position[1] == 0 for scene in scenes() if scene.relation != "on" for thing in scene.things)


def test_the_first_thing_is_left_of_the_second() -> None:
    for scene in of_kind("left", 100):
        (_, _, right, _), (left, _, _, _) = map(picture_box, scene.things)
        assert right < left


def test_the_first_thing_stands_on_the_second() -> None:
    for scene in of_kind("on", 100):
        above, below = scene.things
        assert below.position[1] == 0
        assert above.position[1] == pytest.approx(below.size * NOUNS[below.noun].rest)
        assert (above.position[0], above.position[2]) == (below.position[0], below.position[2])
        (left_a, top_a, right_a, bottom_a), (left_b, top_b, right_b, bottom_b) = map(picture_box, scene.things)
        assert top_a < top_b < bottom_b  # y goes down
        assert (top_a + bottom_a) / 2 < (top_b + bottom_b) / 2
        assert min(right_a, right_b) - max(left_a, left_b) > 0


def test_every_noun_colour_kind_ground_and_light_occurs() -> None:
    pairs = Counter((thing.noun, thing.colour) for scene in scenes() for thing in scene.things)
    assert {noun for noun, _ in pairs} == set(NOUNS)
    assert {colour for _, colour in pairs} == set(COLOURS)
    assert len(pairs) == len(NOUNS) * len(COLOURS)
    assert {scene.ground for scene in scenes()} == set(GROUNDS)
    assert {scene.light for scene in scenes()} == set(LIGHTS)
    assert {len(scene.things) for scene in of_kind("count", 100)} == set(COUNTS.values())
    assert {len(scene.things) for scene in scenes()} == {1, 2, 3}


def test_kinds_are_as_frequent_as_their_weights() -> None:
    found = Counter(map(kind, scenes()))
    for name, weight in KIND_WEIGHTS.items():
        assert found[name] / len(scenes()) == pytest.approx(
            weight, abs=4 * (weight * (1 - weight) / len(scenes())) ** 0.5
        )
    assert {kind(sample_scene(0, i, {"on": 1, "left": 3})) for i in range(20)} == {"on", "left"}
    with pytest.raises(ValueError, match=r"scene kinds \['behind'\]: expected among \['count', 'left', 'on', 'one'\]"):
        sample_scene(0, 0, {"behind": 1.0})


def test_scenes_survive_json() -> None:
    for scene in scenes()[:50]:
        assert Scene.from_json(scene.to_json()) == scene
        assert json.loads(scene.to_json())["relation"] == scene.relation


THING = Thing("cube", "red", (0.0, 0.0, 0.0), 1.0, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(THING, noun="cat"), r"noun 'cat': expected one of \['ball', 'boat', 'car'"),
        (lambda: replace(THING, colour="teal"), r"colour 'teal': expected one of \['blue', 'green'"),
        (lambda: replace(THING, size=0.0), "size 0.0: expected a positive number"),
        (lambda: replace(THING, size=float("nan")), "size nan"),
        (lambda: Scene((THING,), "grass", "left"), r"ground 'grass': expected one of \['beige'"),
        (lambda: Scene((THING,), "beige", "back"), r"light 'back': expected one of \['left', 'overhead', 'right'\]"),
        (lambda: Scene((THING, THING), "beige", "left", "under"), "relation 'under' of 2 things"),
        (
            lambda: Scene((THING,), "beige", "left", "on"),
            r"relation 'on' of 1 things: expected \('left', 'on'\) of two",
        ),
        (lambda: Part("torus", (0, 0, 0), (1, 1, 1)), "part kind 'torus'"),
        (lambda: Part("box", (0, 0, 0), (1, 1, 1), "gold"), "paint 'gold': expected 'body' or one of"),
        (lambda: Part("box", (0, 0, 0), (1, 0, 1)), r"half sizes \(1, 0, 1\): expected all positive"),
    ],
)
def test_bad_values_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_nouns_stand_on_the_ground_within_their_footprint() -> None:
    for name, noun in NOUNS.items():
        low, high = noun.bounds()
        assert -0.07 <= low[1] <= 0.01, name  # a boat's bow is a little sunk
        assert (low[[0, 2]] >= -0.5501).all(), name
        assert (high[[0, 2]] <= 0.5501).all(), name
        assert 0.8 * noun.height <= noun.rest <= noun.height + 1e-9, name
        assert any(part.paint == "body" for part in noun.parts), name


@pytest.mark.parametrize("name", KINDS)
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


def test_hues_can_be_told_apart() -> None:
    hues = sorted(hue(name) for name in COLOURS)
    assert min(b - a for a, b in pairwise([*hues, hues[0] + 360])) >= 22


# Captions


def paraphrases(scene: Scene, count: int = 30) -> list[str]:
    rng = np.random.default_rng(0)
    return [caption(scene, rng) for _ in range(count)]


def meaning(text: str, by_word: dict[str, str]) -> list[tuple[str, str]]:
    """The (colour, noun) pairs that a caption names, in its order."""
    colours = [word for word in text.split() if word in COLOURS]
    nouns = [by_word[word] for word in text.split() if word in by_word]
    return list(zip(colours, nouns, strict=True))


# Of captions of two things: does the one mentioned first stand left, or on top?
FIRST_IS_FIRST = {
    "to the left of": True,
    "left of": True,
    "to the right of": False,
    "right of": False,
    "on the left and": True,
    "on top of": True,
    "on": True,
    "with": False,
    "under": False,
    "underneath": False,
}


def test_captions_name_the_right_things_and_relation() -> None:
    by_word = {word: name for name, noun in NOUNS.items() for word in (name, noun.plural, *noun.synonyms)}
    used = Counter()
    for scene in scenes()[:300]:
        named = [(thing.colour, thing.noun) for thing in scene.things]
        for text in paraphrases(scene, 12):
            found = meaning(text, by_word)
            if scene.relation is None:
                assert found == named[:1], text
                number = re.search(r"two|three|pair", text)
                assert (len(named) == 1) == (number is None), text
                assert number is None or {"two": 2, "three": 3, "pair": 2}[number[0]] == len(named), text
                plural = NOUNS[named[0][1]].plural
                assert (plural in text.split()) == (len(named) > 1), text
            else:
                phrase = max((p for p in FIRST_IS_FIRST if f" {p} " in text), key=len)
                used[scene.relation, phrase] += 1
                assert found == (named if FIRST_IS_FIRST[phrase] else named[::-1]), text
    assert {phrase for _, phrase in used} == set(FIRST_IS_FIRST)
    assert all(("left" in phrase or "right" in phrase) == (relation == "left") for relation, phrase in used)


def test_captions_use_the_vocabulary_and_all_of_it() -> None:
    words = Counter(word for scene in scenes() for text in paraphrases(scene, 10) for word in text.split())
    assert set(words) == vocabulary()
    assert all(word == word.lower() for word in words)


def test_articles_fit_what_follows() -> None:
    texts = {text for scene in scenes()[:100] for text in paraphrases(scene)}
    texts |= set(paraphrases(single("car", "orange"), 400))
    assert "an automobile that is orange" in texts
    assert not [text for text in texts if re.search(r"\ba [aeiou]|\ban [^aeiou]", text)]


@pytest.mark.parametrize(
    ("things", "relation", "wanted"),
    [
        ([("car", "red")], None, "a red car"),
        ([("cone", "orange")], None, "an orange cone"),
        ([("ball", "blue")] * 2, None, "two blue balls"),
        ([("house", "pink")] * 3, None, "three pink houses"),
        ([("car", "red"), ("house", "blue")], "left", "a red car to the left of a blue house"),
        ([("ball", "orange"), ("cube", "green")], "on", "an orange ball on top of a green cube"),
    ],
)
def test_the_plain_caption(things: list, relation: str | None, wanted: str) -> None:
    scene = Scene(tuple(replace(THING, noun=noun, colour=colour) for noun, colour in things), "beige", "left", relation)
    assert plain_caption(scene) == wanted
    texts = paraphrases(scene, 200)
    assert 0.3 < texts.count(wanted) / 200 < 0.75
    assert len(set(texts)) >= 3


def test_captions_are_drawn_with_the_generator_given() -> None:
    scene = of_kind("left", 1)[0]
    assert paraphrases(scene) == paraphrases(scene)
    assert len(set(paraphrases(scene))) > 3


# Pictures


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
    scenes = [single(noun, colour) for colour in COLOURS]
    for scene, image in zip(scenes, render(scenes, 48), strict=True):
        names = nearest_colours(image)
        coloured = names[names != ""]
        assert coloured.size > 60
        assert (coloured == scene.things[0].colour).mean() > 0.8


def test_grounds_have_no_colour_of_their_own() -> None:
    left = picture_box(single("cube", "red").things[0])[0]
    for ground in GROUNDS:
        for light in LIGHTS:
            names = nearest_colours(render([single("cube", "red", ground=ground, light=light)], 32)[0])
            assert set(names[:, : int((left + 1) * 16)].flatten()) == {""}
            assert (names == "red").sum() > 50


def test_pictures_show_what_left_and_on_mean() -> None:
    for relation, axis in (("left", 1), ("on", 0)):
        for scene in [
            replace(
                scene, things=tuple(replace(t, colour=c) for t, c in zip(scene.things, ("red", "blue"), strict=True))
            )
            for scene in of_kind(relation, 4)
        ]:
            names = nearest_colours(render([scene], 48)[0])
            first, second = (np.argwhere(names == colour)[:, axis].mean() for colour in ("red", "blue"))
            assert first < second - 3


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


# Collections


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten scenes of 16 px in three files."""
    monkeypatch.setattr(rendered, "SHARD", 4)
    render_collection(tmp_path / "scenes", seed=7, count=10, size=16, workers=1)
    return tmp_path / "scenes"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_collection_holds_its_scenes_and_their_pictures(collection: Path) -> None:
    source = RenderedToybox(collection)
    assert len(source) == 10
    assert [source.scene(i) for i in range(10)] == scenes()[:10]
    found = source.images(np.arange(10), np.random.default_rng(0))
    assert found.shape == (10, 3, 16, 16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, render(scenes()[:10], 16), rtol=0, atol=0.5 / 127.5 + 1e-6)
    order = np.array([9, 0, 4, 4])
    assert torch.equal(source.images(order, np.random.default_rng(1)), found[order])


def test_captions_are_those_of_the_scenes(collection: Path) -> None:
    source, order = RenderedToybox(collection), np.array([9, 0, 4, 4])
    texts = source.captions(order, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    assert texts == [caption(scenes()[i], rng) for i in order]
    assert texts == source.captions(order, np.random.default_rng(3))


def test_rendering_goes_on_where_it_stopped(collection: Path) -> None:
    whole = contents(collection)
    assert len(whole) == 6
    (collection / "images-00001.npy").unlink()
    (collection / "scenes-00001.jsonl").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in collection.iterdir()}
    render_collection(collection, seed=7, count=10, size=16, workers=1)
    assert contents(collection) == whole
    assert {name: (collection / name).stat().st_mtime_ns for name in times} == times


def test_a_killed_rendering_leaves_no_half_file(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = contents(collection)
    (collection / "images-00002.npy").unlink()

    def half(file, pixels: np.ndarray) -> None:
        file.write(b"\x93NUMPY half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", half)
        with pytest.raises(KeyboardInterrupt):
            render_collection(collection, seed=7, count=10, size=16, workers=1)
    assert not (collection / "images-00002.npy").exists()
    render_collection(collection, seed=7, count=10, size=16, workers=1)
    assert {name: data for name, data in contents(collection).items() if name in whole} == whole


def test_a_collection_can_grow(collection: Path) -> None:
    """Its last file is short; the next scenes belong into it."""
    before = (collection / "images-00000.npy").stat().st_mtime_ns
    render_collection(collection, seed=7, count=15, size=16, workers=1)
    source = RenderedToybox(collection)
    assert len(source) == 15
    assert [source.scene(i) for i in range(15)] == scenes()[:15]
    assert source.images(np.arange(15), np.random.default_rng(0)).shape == (15, 3, 16, 16)
    assert (collection / "images-00000.npy").stat().st_mtime_ns == before


def test_rendering_leaves_the_threads_as_they_are(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        render_collection(tmp_path, seed=7, count=1, size=8)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_crops_are_parts_of_the_pictures(collection: Path) -> None:
    source, whole = RenderedToybox(collection, crop=6), RenderedToybox(collection)
    order = np.arange(10)
    found = source.images(order, np.random.default_rng(5))
    assert found.shape == (10, 3, 6, 6)
    assert torch.equal(found, source.images(order, np.random.default_rng(5)))
    assert not torch.equal(found, source.images(order, np.random.default_rng(6)))
    windows = whole.images(order, np.random.default_rng(0)).unfold(2, 6, 1).unfold(3, 6, 1)  # B 3 y x 6 6
    places = set()
    for picture, window in zip(found, windows, strict=True):
        same = (window.permute(1, 2, 0, 3, 4) == picture).flatten(2).all(dim=2).nonzero().tolist()
        assert same
        places.add(tuple(same[0]))
    assert len({y for y, _ in places}) > 3
    assert len({x for _, x in places}) > 3
    assert any(y != x for y, x in places)


def test_what_is_not_there_is_named(collection: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no rendered scenes in .*nowhere; make them with render_collection"):
        RenderedToybox(tmp_path / "nowhere")
    for crop in (0, 17):
        with pytest.raises(ValueError, match=f"crop must be within the images' 16 px, got {crop}"):
            RenderedToybox(collection, crop=crop)


@pytest.mark.slow
def test_several_processes_render_what_one_does(tmp_path: Path) -> None:
    count = rendered.SHARD + 3
    for workers in (1, 2):
        render_collection(tmp_path / str(workers), seed=7, count=count, size=8, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
