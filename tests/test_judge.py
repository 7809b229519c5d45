"""Verdicts: what a true scene shows is right, and whatever is changed about it is what is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise, permutations

import numpy as np
import pytest

from cascade.data.toybox import COLOURS, MATERIALS, NOUNS, Description, Look, Scene, sample_scene
from cascade.data.toybox.description import KINDS, SIZES
from cascade.data.toybox.scene import usual_bulks
from pipelines.evaluation.judge import ALIGNED, DEPTH, HEIGHT, RULES, SIDE, UNCLEAR, Found, Verdict, judge, size_class

RIGHT = Verdict()


@cache
def of_kind(kind: str) -> tuple[Scene, ...]:
    """Any pairings: what is judged is not always what was trained on."""
    return tuple(sample_scene(5, index, {kind: 1.0}, "any") for index in range(80))


def seen(scene: Scene) -> list[Found]:
    """What a detector that makes no mistakes would find."""
    return [Found(t.look.noun, t.look.colour, t.look.material, t.position, t.bulk) for t in scene.things]


def drawn_to_size(scene: Scene) -> bool:
    """A large thing without enough room comes out smaller; what can be seen is then not what is said."""
    usual = usual_bulks(scene.description)
    return all(
        thing.look.size in ("medium", size_class(thing.bulk / bulk))
        for thing, bulk in zip(scene.things, usual, strict=True)
    )


def scenes(kind: str) -> list[Scene]:
    return [scene for scene in of_kind(kind) if drawn_to_size(scene)]


def swapped(found: Sequence[Found], i: int = 0, j: int = 1) -> list[Found]:
    """Two things in each other's place."""
    out = list(found)
    out[i], out[j] = replace(found[i], position=found[j].position), replace(found[j], position=found[i].position)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_true_scene_is_right_in_whatever_order_it_is_found(kind: str) -> None:
    assert len(scenes(kind)) >= 76
    for scene in scenes(kind):
        for order in permutations(seen(scene)):
            verdict = judge(scene.description, order)
            assert verdict == RIGHT
            assert verdict.right
            assert verdict.bound
    for scene in set(of_kind(kind)) - set(scenes(kind)):
        assert judge(scene.description, seen(scene)).wrong == ("size",)


@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_attribute_is_what_is_wrong(kind: str) -> None:
    for n, scene in enumerate(scenes(kind)):
        found = seen(scene)
        k = n % len(found)
        taken = {(thing.noun, thing.colour) for thing in found}

        def verdict(change: Found, found: list[Found] = found, k: int = k, scene: Scene = scene) -> Verdict:
            return judge(scene.description, [*found[:k], change, *found[k + 1 :]])

        free = [noun for noun in NOUNS if not any(noun == other for other, _ in taken)]
        wrong_noun = verdict(replace(found[k], noun=free[n % len(free)]))
        assert wrong_noun.wrong == ("noun",)
        assert not wrong_noun.right
        assert not wrong_noun.bound
        colours = [colour for colour in COLOURS if not any(colour == other for _, other in taken)]
        wrong_colour = verdict(replace(found[k], colour=colours[n % len(colours)]))
        assert wrong_colour.wrong == ("colour",)
        assert not wrong_colour.bound
        look = scene.things[k].look
        for material in set(MATERIALS) - {look.material}:
            other_material = verdict(replace(found[k], material=material))
            assert other_material.wrong == (() if look.material == "plain" else ("material",))
            assert other_material.bound
        usual = usual_bulks(scene.description)[k]
        for size in set(SIZES) - {look.size}:
            other_size = verdict(replace(found[k], bulk=usual * SIZES[size]))
            assert other_size.wrong == (() if look.size == "medium" else ("size",))
            assert other_size.bound


@pytest.mark.parametrize("kind", KINDS)
def test_one_thing_more_or_less_is_a_wrong_number(kind: str) -> None:
    for scene in of_kind(kind)[:20]:
        found = seen(scene)
        for wrong in ([*found, found[0]], found[1:], [], found * 2):
            verdict = judge(scene.description, wrong)
            assert verdict.wrong == ("number",)
            assert not verdict.bound


@pytest.mark.parametrize("kind", ["left", "front"])
def test_a_relation_the_other_way_round_is_wrong(kind: str) -> None:
    for scene in scenes(kind):
        for order in permutations(swapped(seen(scene))):
            verdict = judge(scene.description, order)
            assert verdict.wrong == ("relation",)
            assert verdict.bound


@pytest.mark.parametrize("kind", ["on", "stack"])
def test_an_upset_stack_is_wrong(kind: str) -> None:
    for scene in scenes(kind):
        found = seen(scene)
        for i, j in [(k, k + 1) for k in range(len(found) - 1)]:
            for order in permutations(swapped(found, i, j)):
                assert judge(scene.description, order).wrong == ("relation",)
        beside = replace(found[0], position=(found[0].position[0] + 0.7, 0.0, found[0].position[2]))
        assert judge(scene.description, [beside, *found[1:]]).wrong == ("relation",)


@pytest.mark.parametrize(
    ("relation", "second", "right"),
    [
        ("left", (SIDE + 0.01, 0.0, 0.0), True),
        ("left", (SIDE - 0.01, 0.0, 0.0), False),
        ("left", (-SIDE - 0.01, 0.0, 0.0), False),
        ("front", (0.0, 0.0, -DEPTH - 0.01), True),
        ("front", (0.0, 0.0, -DEPTH + 0.01), False),
        ("front", (0.0, 0.0, DEPTH + 0.01), False),
        ("front", (0.0, HEIGHT + 0.01, -DEPTH - 0.01), False),  # it flies
        ("on", (0.0, -HEIGHT - 0.01, 0.0), True),
        ("on", (0.0, -HEIGHT + 0.01, 0.0), False),
        ("on", (ALIGNED + 0.01, -HEIGHT - 0.01, 0.0), False),
        ("on", (-ALIGNED + 0.01, -HEIGHT - 0.01, 0.0), True),
    ],
)
def test_where_relations_begin(relation: str, second: tuple[float, float, float], right: bool) -> None:
    a, b = Look("cube", "red"), Look("ball", "blue")
    found = [Found("cube", "red", "plain", (0.0, 0.0, 0.0), 0.7), Found("ball", "blue", "wood", second, 0.7)]
    assert judge(Description((a, b), relation=relation), found).wrong == (() if right else ("relation",))


def test_scenes_keep_clear_of_where_relations_begin() -> None:
    for kind, axis, border in (("left", 0, SIDE), ("front", 2, DEPTH), ("on", 1, HEIGHT)):
        gaps = [abs(a.position[axis] - b.position[axis]) for a, b in (scene.things for scene in of_kind(kind))]
        assert min(gaps) > 1.3 * border, kind


def test_a_verdict_does_not_depend_on_the_order_of_what_is_found() -> None:
    """Where several readings have as many things wrong, the one in which things are what they should be is told."""
    red, blue = Look("cube", "red"), Look("cube", "blue")
    asked = Description((red, blue), relation="left")
    there = [Found("cube", "red", "plain", (0.5, 0.0, 0.0), 0.8), Found("cube", "blue", "plain", (-0.5, 0.0, 0.0), 0.8)]
    for order in permutations(there):
        assert judge(asked, order) == Verdict(("relation",))
        assert judge(asked, order).bound
    rng = np.random.default_rng(0)
    everything = [found for scene in of_kind("stack") for found in seen(scene)]
    for scene in of_kind("stack"):
        drawn = [everything[k] for k in rng.integers(len(everything), size=3)]
        assert len({judge(scene.description, order) for order in permutations(drawn)}) == 1


def test_bound_is_nouns_in_their_colours() -> None:
    asked = Description((Look("cube", "red", "small", "wood"), Look("ball", "blue")), relation="left")
    cube, ball = Found("cube", "red", "wood", (-0.5, 0, 0), 0.45), Found("ball", "blue", "denim", (0.5, 0, 0), 0.8)
    assert judge(asked, [cube, ball]).right
    all_wrong_but_bound = swapped([replace(cube, bulk=0.8, material="brick"), ball])
    assert judge(asked, all_wrong_but_bound) == Verdict(("size", "material", "relation"))
    assert judge(asked, all_wrong_but_bound).bound
    mixed = [replace(cube, colour="blue"), replace(ball, colour="red")]
    assert judge(asked, mixed).wrong == ("colour",)
    assert not judge(asked, mixed).bound
    assert not judge(asked, [cube]).bound


def test_unclear_is_wrong_wherever_it_is_asked_about() -> None:
    asked = Description((Look("cube", "red", material="wood"),))
    assert judge(asked, [Found(UNCLEAR, "red", "wood", (0, 0, 0), 1.05)]).wrong == ("noun",)
    assert judge(asked, [Found("cube", "red", UNCLEAR, (0, 0, 0), 1.05)]).wrong == ("material",)
    assert judge(Description((Look("cube", "red"),)), [Found("cube", "red", UNCLEAR, (0, 0, 0), 1.05)]).right


def test_another_prompt_is_hardly_ever_right() -> None:
    """The control: pictures judged by the next scene's description, of all kinds and within each."""
    mixed = [sample_scene(9, index) for index in range(300)]
    for some in (mixed, *(list(of_kind(kind)) for kind in KINDS)):
        right = [judge(asked.description, seen(shown)).right for asked, shown in pairwise(some)]
        assert sum(right) <= 0.02 * len(right)


def test_other_rules_have_another_number() -> None:
    """Verdicts over scenes that are judged by their neighbours' descriptions, and by their own with things moved and
    resized. Where this fails and scenes are as they were, count RULES up; then write both down anew."""
    rng, told = np.random.default_rng(0), []
    for kind in KINDS:
        for asked, shown in pairwise(of_kind(kind)):
            told.append(judge(asked.description, seen(shown)).wrong)
            moved = [
                replace(
                    thing,
                    position=tuple(at + step for at, step in zip(thing.position, rng.normal(0, 0.3, 3), strict=True)),
                    bulk=thing.bulk * rng.uniform(0.6, 1.6),
                )
                for thing in seen(shown)
            ]
            told.append(judge(shown.description, moved).wrong)
    assert len(set(told)) > 12
    assert (RULES, hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]) == (2, "615e29daa790aa5a")


@pytest.mark.parametrize(
    ("factor", "size"),
    [
        (0.0, "small"),
        (0.1, "small"),
        (0.56, "small"),
        (0.74, "small"),  # the border is at the geometric mean, 0.748
        (0.756, "medium"),
        (1.0, "medium"),
        (1.13, "medium"),  # 1.140
        (1.15, "large"),
        (1.3, "large"),
        (9.0, "large"),
    ],
)
def test_size_classes_meet_in_ratio(factor: float, size: str) -> None:
    assert size_class(factor) == size


def test_sizes_are_judged_by_what_is_usual_in_such_a_scene() -> None:
    for kind in ("one", "left"):
        for scene in scenes(kind):
            for k, (look, usual) in enumerate(
                zip(scene.description.looks, usual_bulks(scene.description), strict=True)
            ):
                if look.size == "medium":
                    continue
                for factor, right in ((0.98 * SIZES[look.size], True), (1.0, False), (0.9, False)):
                    found = seen(scene)
                    found[k] = replace(found[k], bulk=factor * usual)
                    assert judge(scene.description, found).right == right
