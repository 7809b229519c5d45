"""The toybox's world: descriptions, and what is held out of training."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from toybox_scenes import of_kind, scenes

import cascade.data.toybox
from cascade.data.toybox import (
    COLOURS,
    MATERIALS,
    NOUNS,
    Description,
    HeldOut,
    Look,
    Scene,
    Thing,
    held_out,
    sample_description,
    sample_scene,
)
from cascade.data.toybox.description import COUNTS, KIND_WEIGHTS, KINDS, RELATIONS, SIZES
from cascade.data.toybox.shapes import Part

LISTS = json.loads((Path(cascade.data.toybox.__file__).parent / "held_out.json").read_text())
CUBE, BALL = Look("cube", "red"), Look("ball", "blue")
THING = Thing(CUBE, (0.0, 0.0, 0.0), 1.0, 0.0)


@cache
def descriptions() -> tuple[Description, ...]:
    """As training draws them."""
    rng = np.random.default_rng(0)
    return tuple(sample_description(rng) for _ in range(20_000))


def listed(description: Description) -> bool:
    """Whether held_out.json lists something of a description: HeldOut.holds once more, from the file."""
    looks = description.looks
    found = [["colours", look.noun, look.colour] for look in looks]
    found += [["materials", look.noun, look.material] for look in looks]
    found += [["relations", a.noun, description.relation, b.noun] for a, b in pairwise(looks)]
    return any(rest in LISTS[name] for name, *rest in found)


# Descriptions


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Look("cat", "red"), "noun 'cat': expected one of airplane, ball, boat"),
        (lambda: Look("cube", "teal"), "colour 'teal': expected one of black, blue, green"),
        (lambda: Look("cube", "red", "tall"), "size 'tall': expected one of large, medium, small"),
        (lambda: Look("cube", "red", material="jelly"), "material 'jelly': expected one of brick, checker"),
        (lambda: Description((CUBE,), count=6), "6 of 1 looks: expected 1 to 5 things of one look"),
        (lambda: Description((CUBE,), count=0), "0 of 1 looks"),
        (lambda: Description((CUBE, BALL)), "1 of 2 looks: expected 1 to 5 things of one look"),
        (lambda: Description(()), "1 of 0 looks"),
        (lambda: Description((CUBE, BALL), relation="under"), r"relation 'under', count 1: expected one of \('left', "),
        (lambda: Description((CUBE, BALL), 2, "left"), "relation 'left', count 2: expected one of .* and count 1"),
        (lambda: Description((CUBE,), relation="on"), "relation 'on' of 1 things: expected two, or three for 'on'"),
        (lambda: Description((CUBE, BALL, CUBE), relation="left"), "relation 'left' of 3 things: expected two"),
        (lambda: Description((CUBE, BALL, CUBE), relation="front"), "relation 'front' of 3 things"),
        (lambda: Description((CUBE, BALL, CUBE, BALL), relation="on"), "relation 'on' of 4 things"),
        (lambda: replace(THING, scale=0.0), "scale 0.0: expected a positive number"),
        (lambda: replace(THING, scale=float("nan")), "scale nan"),
        (lambda: Scene((THING,), "grass", "left"), "ground 'grass': expected one of beige, cream, light grey, slate"),
        (lambda: Scene((THING,), "beige", "back"), "light 'back': expected one of left, overhead, right"),
        (lambda: Scene((THING, THING), "beige", "left", "under"), "relation 'under': expected one of .* or None"),
        (lambda: Scene((THING,), "beige", "left", "on"), "relation 'on' of 1 things"),
        (lambda: Scene((), "beige", "left"), "0 different looks without a relation: expected things that look alike"),
        (lambda: Scene((THING, replace(THING, look=BALL)), "beige", "left"), "2 different looks without a relation"),
        (lambda: Scene((THING,) * 6, "beige", "left"), "6 of 1 looks: expected 1 to 5"),
        (lambda: sample_scene(0, 0, {"behind": 1.0}), r"scene kinds \['behind'\]: expected among \('one', 'count', "),
        (lambda: Part("torus", (0, 0, 0), (1, 1, 1)), "part kind 'torus'"),
        (lambda: Part("box", (0, 0, 0), (1, 1, 1), "gold"), "paint 'gold': expected 'body' or one of"),
        (lambda: Part("box", (0, 0, 0), (1, 0, 1)), r"half sizes \(1, 0, 1\): expected all positive"),
    ],
)
def test_bad_values_are_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_kind_of_a_description() -> None:
    assert Description((CUBE,)).kind == "one"
    assert Description((CUBE,), count=5).kind == "count"
    assert [Description((CUBE, BALL), relation=name).kind for name in RELATIONS] == ["left", "front", "on"]
    assert Description((CUBE, BALL, CUBE), relation="on").kind == "stack"
    assert set(KIND_WEIGHTS) == set(KINDS)
    assert sum(KIND_WEIGHTS.values()) == pytest.approx(1)


def test_as_many_things_have_a_material_as_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    for made, stacked in ((0.0, 0.0), (1.0, 1.0), (None, 0.0)):
        looks = [look for _ in range(40) for look in sample_description(rng, {"stack": 1}, made=made).looks]
        assert np.mean([look.material != "plain" for look in looks]) == stacked
    with pytest.raises(ValueError, match=r"made 1\.5: expected a share"):
        sample_description(rng, made=1.5)


def test_kinds_are_as_frequent_as_their_weights() -> None:
    found = Counter(description.kind for description in descriptions())
    for kind, weight in KIND_WEIGHTS.items():
        wanted = len(descriptions()) * weight
        assert abs(found[kind] - wanted) < 4 * (wanted * (1 - weight)) ** 0.5, kind
    rng = np.random.default_rng(1)
    few = Counter(sample_description(rng, {"on": 1, "left": 3}).kind for _ in range(400))
    assert set(few) == {"on", "left"}
    assert few["left"] == pytest.approx(300, abs=40)


def test_the_things_of_a_relation_can_be_told_apart_in_words() -> None:
    for description in descriptions():
        assert len({(look.noun, look.colour) for look in description.looks}) == len(description.looks)


def test_every_size_material_and_count_occurs() -> None:
    for kind in ("one", "left"):
        assert {look.size for d in descriptions() if d.kind == kind for look in d.looks} == set(SIZES)
    for kind in ("one", "count", "left", "front", "on"):
        assert {look.material for d in descriptions() if d.kind == kind for look in d.looks} == set(MATERIALS)
    assert {d.count for d in descriptions() if d.kind == "count"} == set(COUNTS.values()) == {2, 3, 4, 5}


def test_descriptions_and_scenes_survive_json() -> None:
    for kind in KINDS:
        for scene in of_kind(kind)[:10]:
            assert Description.from_json(scene.description.to_json()) == scene.description
            assert Scene.from_json(scene.to_json()) == scene
            assert json.loads(scene.to_json())["relation"] == scene.relation
    with pytest.raises(TypeError, match="'colours'"):
        Description.from_json('{"looks": [], "colours": []}')


# What is held out


def test_the_held_out_list_never_changes() -> None:
    """Models have been trained without what it holds. If this fails, put the file back; do not put in the new sum."""
    content = json.dumps(LISTS, sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest() == "80fb9ee68066406afcc15df18795920db9591ba6b4126d516ab149cdd70296c8"


def test_the_held_out_list_is_well_formed() -> None:
    assert list(LISTS) == ["colours", "materials", "relations"]
    assert all(
        entries == sorted(entries) and len(set(map(tuple, entries))) == len(entries) for entries in LISTS.values()
    )
    assert [noun for noun, _ in LISTS["colours"]] == sorted(NOUNS)  # each misses one colour
    assert {colour for _, colour in LISTS["colours"]} == set(COLOURS)
    assert len(LISTS["materials"]) == len({noun for noun, _ in LISTS["materials"]} & set(NOUNS)) == 18
    assert set(Counter(material for _, material in LISTS["materials"]).items()) == {(m, 3) for m in MATERIALS[1:]}
    assert {relation for _, relation, _ in LISTS["relations"]} == set(RELATIONS)
    assert {noun for first, _, second in LISTS["relations"] for noun in (first, second)} <= set(NOUNS)
    assert all(first != second for first, _, second in LISTS["relations"])
    assert Counter(first for first, _, _ in LISTS["relations"]) == dict.fromkeys(NOUNS, 6)


def test_what_holds_a_held_out_pairing() -> None:
    held = HeldOut(frozenset({("cube", "red")}), frozenset({("ball", "wood")}), frozenset({("cube", "left", "ball")}))
    white, wood = Look("cube", "white"), Look("ball", "blue", material="wood")
    assert held.holds(Description((CUBE,)))
    assert held.holds(Description((CUBE,), count=3))
    assert held.holds(Description((BALL, CUBE), relation="front"))
    assert held.holds(Description((wood,)))
    assert held.holds(Description((white, BALL), relation="left"))
    assert not held.holds(Description((white,)))
    assert not held.holds(Description((BALL,)))
    assert not held.holds(Description((BALL, white), relation="left"))  # the other way round is another pairing
    assert not held.holds(Description((white, BALL), relation="on"))
    on = HeldOut(frozenset(), frozenset(), frozenset({("ball", "on", "cone")}))
    cone = Look("cone", "green")
    assert on.holds(Description((CUBE, BALL, cone), relation="on"))
    assert not on.holds(Description((BALL, CUBE, cone), relation="on"))  # which does not stand on the cone


def test_training_shows_no_held_out_pairing() -> None:
    assert not [description for description in descriptions() if listed(description)]
    assert not [scene for scene in scenes() if listed(scene.description)]
    for kind in KINDS:
        assert not [scene for scene in of_kind(kind) if listed(scene.description)]


def test_training_shows_every_other_pairing() -> None:
    """Of colours and materials; there are too many relations to see them all."""
    looks = {look for description in descriptions() for look in description.looks}
    colours = {(noun, colour) for noun in NOUNS for colour in COLOURS} - set(map(tuple, LISTS["colours"]))
    materials = {(noun, material) for noun in NOUNS for material in MATERIALS} - set(map(tuple, LISTS["materials"]))
    assert {(look.noun, look.colour) for look in looks} == colours
    assert {(look.noun, look.material) for look in looks} == materials


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_pairings_are_drawn_when_asked_for(kind: str) -> None:
    rng = np.random.default_rng(2)
    assert all(listed(sample_description(rng, {kind: 1.0}, "held out")) for _ in range(60))
    mixed = [listed(sample_description(rng, {kind: 1.0}, "any")) for _ in range(200)]
    assert 10 < sum(mixed) < 120
    assert listed(sample_scene(3, 0, {kind: 1.0}, "held out").description)


def test_the_lists_are_read_from_the_file() -> None:
    for name in ("colours", "materials", "relations"):
        assert getattr(held_out(), name) == {tuple(entry) for entry in LISTS[name]}
