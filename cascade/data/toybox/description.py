"""What is said of a scene: the words that captions, prompts and verdicts share.

A description is drawn first and a scene arranged after it (scene.py), so that training captions, test prompts and what
a picture is judged by all mean the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from cascade.data.toybox.materials import MATERIALS
from cascade.data.toybox.nouns import NOUNS
from cascade.data.toybox.shapes import Vec3

# sRGB in [0, 1]; hues at least 22 degrees apart.
COLOURS: dict[str, Vec3] = {
    "red": (0.86, 0.07, 0.11),
    "orange": (0.98, 0.46, 0.04),
    "yellow": (0.97, 0.85, 0.07),
    "green": (0.13, 0.62, 0.18),
    "turquoise": (0.08, 0.74, 0.72),
    "blue": (0.10, 0.27, 0.86),
    "purple": (0.47, 0.16, 0.74),
    "pink": (0.99, 0.42, 0.68),
    "white": (0.94, 0.94, 0.93),
    "black": (0.07, 0.07, 0.08),
}

# How large a thing is, as a factor on what is usual in such a scene. "medium" is never named.
SIZES: dict[str, float] = {"small": 0.56, "medium": 1.0, "large": 1.3}

COUNTS: dict[str, int] = {"two": 2, "three": 3, "four": 4, "five": 5}

# What the first thing is to the second. Captions also say them the other way round: right of, behind, underneath.
RELATIONS = ("left", "front", "on")

KINDS = ("one", "count", "left", "front", "on", "stack")
KIND_WEIGHTS: dict[str, float] = {"one": 0.36, "count": 0.16, "left": 0.14, "front": 0.10, "on": 0.12, "stack": 0.12}
# How often a material other than plain is named of a thing.
MADE: dict[str, float] = {"one": 0.35, "count": 0.1, "left": 0.2, "front": 0.2, "on": 0.2, "stack": 0.0}

Pairings = Literal["seen", "held out", "any"]


@dataclass(frozen=True)
class Look:
    """One thing as words: a noun, its colour, and where they are worth naming its size and material."""

    noun: str
    colour: str
    size: str = "medium"
    material: str = "plain"

    def __post_init__(self) -> None:
        for name, known in (("noun", NOUNS), ("colour", COLOURS), ("size", SIZES), ("material", MATERIALS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(sorted(known))}")


@dataclass(frozen=True)
class Description:
    """`count` things that look alike, or two things in a relation, or a stack of three from the top down ("on")."""

    looks: tuple[Look, ...]
    count: int = 1
    relation: str | None = None

    def __post_init__(self) -> None:
        if self.relation is None:
            if len(self.looks) != 1 or not 1 <= self.count <= max(COUNTS.values()):
                raise ValueError(
                    f"{self.count} of {len(self.looks)} looks: expected 1 to {max(COUNTS.values())} things of one look"
                )
        elif self.relation not in RELATIONS or self.count != 1:
            raise ValueError(f"relation {self.relation!r}, count {self.count}: expected one of {RELATIONS} and count 1")
        elif len(self.looks) not in ((2, 3) if self.relation == "on" else (2,)):
            raise ValueError(f"relation {self.relation!r} of {len(self.looks)} things: expected two, or three for 'on'")

    @property
    def kind(self) -> str:
        """One of KINDS."""
        if self.relation is None:
            return "one" if self.count == 1 else "count"
        return "stack" if len(self.looks) == 3 else self.relation

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Description:
        record = json.loads(text)
        return cls(looks=tuple(Look(**look) for look in record.pop("looks")), **record)


@dataclass(frozen=True)
class HeldOut:
    """The pairings no training scene shows: (noun, colour), (noun, material), (noun, relation, noun)."""

    colours: frozenset[tuple[str, str]]
    materials: frozenset[tuple[str, str]]
    relations: frozenset[tuple[str, str, str]]

    def holds(self, description: Description) -> bool:
        """Whether a description holds any of them."""
        looks, relation = description.looks, description.relation
        return any(
            (look.noun, look.colour) in self.colours or (look.noun, look.material) in self.materials for look in looks
        ) or any((a.noun, relation, b.noun) in self.relations for a, b in pairwise(looks))


@cache
def held_out() -> HeldOut:
    """The committed list, held_out.json; it was drawn once and never changes, or models have seen what it holds."""
    lists = json.loads((Path(__file__).parent / "held_out.json").read_text())
    return HeldOut(
        *(frozenset(tuple(entry) for entry in lists[name]) for name in ("colours", "materials", "relations"))
    )


def sample_description(
    rng: np.random.Generator,
    kind_weights: Mapping[str, float] = KIND_WEIGHTS,
    pairings: Pairings = "seen",
    made: float | None = None,
) -> Description:
    """Weights of KINDS need not sum to 1. "seen" (what training shows) holds no held-out pairing; "held out" does.

    made: how often a material is named of a thing, in every kind of scene; None for MADE.
    """
    unknown = set(kind_weights) - set(KINDS)
    if unknown:
        raise ValueError(f"scene kinds {sorted(unknown)}: expected among {KINDS}")
    if made is not None and not 0 <= made <= 1:
        raise ValueError(f"made {made}: expected a share from 0 to 1")
    weights = np.array(list(kind_weights.values()), dtype=np.float64)
    kind = list(kind_weights)[rng.choice(len(weights), p=weights / weights.sum())]
    while True:
        description = _DRAW[kind](rng, MADE[kind] if made is None else made)
        if pairings == "any" or held_out().holds(description) == (pairings == "held out"):
            return description


def _look(rng: np.random.Generator, *, sized: float = 0.0, made: float = 0.0) -> Look:
    """sized, made: how often a size other than medium and a material other than plain are named."""
    noun, colour = pick(rng, NOUNS), pick(rng, COLOURS)
    size = ("small", "large")[rng.integers(2)] if rng.random() < sized else "medium"
    material = MATERIALS[1 + rng.integers(len(MATERIALS) - 1)] if rng.random() < made else "plain"
    return Look(noun, colour, size, material)


def _different(rng: np.random.Generator, how_many: int, **kwargs: float) -> tuple[Look, ...]:
    """Looks of which no two share noun and colour, as no caption tells those apart; two large ones find no room."""
    while True:
        looks = tuple(_look(rng, **kwargs) for _ in range(how_many))
        large = sum(look.size == "large" for look in looks)
        if len({(look.noun, look.colour) for look in looks}) == how_many and large <= 1:
            return looks


_DRAW: dict[str, Callable[[np.random.Generator, float], Description]] = {
    "one": lambda rng, made: Description((_look(rng, sized=0.3, made=made),)),
    "count": lambda rng, made: Description((_look(rng, made=made),), count=COUNTS[pick(rng, COUNTS)]),
    "left": lambda rng, made: Description(_different(rng, 2, sized=0.15, made=made), relation="left"),
    "front": lambda rng, made: Description(_different(rng, 2, made=made), relation="front"),
    "on": lambda rng, made: Description(_different(rng, 2, made=made), relation="on"),
    "stack": lambda rng, made: Description(_different(rng, 3, made=made), relation="on"),
}


def pick(rng: np.random.Generator, names: Mapping[str, object]) -> str:
    return list(names)[rng.integers(len(names))]
