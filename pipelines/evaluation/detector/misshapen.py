"""Toys gone wrong as generated ones do: parts missing, moved, swollen, of another shape or of another toy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from cascade.data.toybox.nouns import NOUNS
from cascade.data.toybox.shapes import KINDS, Noun, Part

Parts = tuple[Part, ...]
STRETCHABLE = ("cylinder", "cone")  # in other proportions, they are still what they were


def misshape(name: str, rng: np.random.Generator) -> Noun:
    """A noun after one to three changes to its parts."""
    noun = NOUNS[name]
    parts = noun.parts
    for _ in range(rng.integers(1, 4)):
        changes = [_graft, _cross, _reshape, _stretch, _move, _drop]
        if len(parts) == 1:
            changes = changes[:3] if name in STRETCHABLE else changes[:4]
        parts = changes[rng.integers(len(changes))](parts, rng)
    return replace(noun, parts=parts)


@contextmanager
def known(nouns: Mapping[str, Noun]) -> Iterator[None]:
    """Nouns that can be rendered like the world's own, for as long as this lasts."""
    NOUNS.update(nouns)
    try:
        yield
    finally:
        for name in nouns:
            del NOUNS[name]


def _some_noun(rng: np.random.Generator) -> Noun:
    return list(NOUNS.values())[rng.integers(len(NOUNS))]


def _pick(parts: Parts, rng: np.random.Generator) -> int:
    """Rather a large one."""
    size = np.array([np.prod(part.half) for part in parts]) ** 0.4
    return int(rng.choice(len(parts), p=size / size.sum()))


def _with(parts: Parts, which: int, change: Callable[[Part], Part]) -> Parts:
    return (*parts[:which], change(parts[which]), *parts[which + 1 :])


def _drop(parts: Parts, rng: np.random.Generator) -> Parts:
    """A part, or all that are like it, such as wheels."""
    which = _pick(parts, rng)
    alike = [(part.kind, part.paint, part.shade) == _looks(parts[which]) for part in parts]
    if rng.random() < 0.5 or all(alike):
        alike = [i == which for i in range(len(parts))]
    return tuple(part for part, gone in zip(parts, alike, strict=True) if not gone) or parts


def _looks(part: Part) -> tuple[str, str, float]:
    return part.kind, part.paint, part.shade


def _move(parts: Parts, rng: np.random.Generator) -> Parts:
    x, y, z = rng.normal(0, 0.18, 3)
    return _with(
        parts,
        _pick(parts, rng),
        lambda part: replace(part, centre=(part.centre[0] + x, part.centre[1] + y, part.centre[2] + z)),
    )


def _stretch(parts: Parts, rng: np.random.Generator) -> Parts:
    x, y, z = np.exp(rng.normal(0, 0.4, 3))
    return _with(
        parts,
        _pick(parts, rng),
        lambda part: replace(part, half=(part.half[0] * x, part.half[1] * y, part.half[2] * z)),
    )


def _reshape(parts: Parts, rng: np.random.Generator) -> Parts:
    kind = KINDS[rng.integers(len(KINDS))]
    return _with(parts, _pick(parts, rng), lambda part: replace(part, kind=kind))


def _graft(parts: Parts, rng: np.random.Generator) -> Parts:
    """Some of another toy's parts, where that has them."""
    other = _some_noun(rng).parts
    return parts + tuple(other[i] for i in range(len(other)) if rng.random() < 0.4)


def _cross(parts: Parts, rng: np.random.Generator) -> Parts:
    """The lower half of one toy and the upper half of another, or the other way round."""
    other, cut, above = _some_noun(rng).parts, rng.uniform(0.3, 0.7), rng.random() < 0.5
    kept = tuple(part for part in parts if (part.centre[1] > cut) == above)
    taken = tuple(part for part in other if (part.centre[1] > cut) != above)
    return kept + taken or parts
