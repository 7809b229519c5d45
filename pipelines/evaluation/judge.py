"""Verdicts: is what was found in a picture what the prompt asked for?

Right means, as in GenEval, that every named attribute is right and nothing else is there. What a prompt does not name
(a size, a material, the ground) may be anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

from cascade.data.toybox.description import SIZES, Description, Look
from cascade.data.toybox.scene import usual_bulks
from cascade.data.toybox.shapes import Vec3

# Counts up with whatever may change a verdict of the same detector, so that scores by other rules are not mixed.
RULES = 2

# World units (scene.py). Scenes keep well clear of them: things side by side are 0.57 or more apart, in depth 0.9.
SIDE, DEPTH, HEIGHT, ALIGNED = 0.25, 0.4, 0.15, 0.45
UNCLEAR = "unclear"  # the noun of a thing too misshapen to be any, the material of one whose texture is mere grain


@dataclass(frozen=True)
class Found:
    """A thing that was seen: what it looks like, where its foot stands (world units), how bulky it is, how sure.

    noun and material may be UNCLEAR, which is wrong whatever was asked for.
    """

    noun: str
    colour: str
    material: str
    position: Vec3
    bulk: float
    score: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """What is wrong, if anything: "number" (of things), "noun", "colour", "size", "material", "relation"."""

    wrong: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        return not self.wrong

    @property
    def bound(self) -> bool:
        """Whether the right number of things has the right nouns in the right colours, wherever they stand."""
        return not {"number", "noun", "colour"} & set(self.wrong)


def judge(description: Description, found: Sequence[Found]) -> Verdict:
    """The verdict under the kindest reading of `found`, in any order: a bound one, then the fewest things wrong."""
    looks = description.looks * description.count
    if len(found) != len(looks):
        return Verdict(("number",))
    usual = usual_bulks(description)
    readings = permutations(found) if description.relation is not None else [tuple(found)]
    verdicts = (_read(description, looks, usual, reading) for reading in readings)
    return min(verdicts, key=lambda verdict: (not verdict.bound, len(verdict.wrong), verdict.wrong))


def _read(description: Description, looks: Sequence[Look], usual: Sequence[float], found: Sequence[Found]) -> Verdict:
    wrong = []
    for name, same in (
        ("noun", lambda look, thing, _: look.noun == thing.noun),
        ("colour", lambda look, thing, _: look.colour == thing.colour),
        ("size", lambda look, thing, bulk: look.size in ("medium", size_class(thing.bulk / bulk))),
        ("material", lambda look, thing, _: look.material in ("plain", thing.material)),
    ):
        if not all(same(*each) for each in zip(looks, found, usual, strict=True)):
            wrong.append(name)
    if description.relation is not None and not all(_related(description.relation, a, b) for a, b in pairwise(found)):
        wrong.append("relation")
    return Verdict(tuple(wrong))


def size_class(factor: float) -> str:
    """The size a thing has that is `factor` times as bulky as is usual: the nearest of SIZES, in ratio."""
    return min(SIZES, key=lambda name: max(factor / SIZES[name], SIZES[name] / max(factor, 1e-6)))


def _related(relation: str, first: Found, second: Found) -> bool:
    x, y, z = (b - a for a, b in zip(first.position, second.position, strict=True))
    if relation == "left":
        return x > SIDE
    if relation == "front":
        return -z > DEPTH and abs(y) < HEIGHT
    return -y > HEIGHT and abs(x) < ALIGNED
