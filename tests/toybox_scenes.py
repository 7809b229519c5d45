"""What the toybox's tests share: scenes to look at, and captions read back."""

from __future__ import annotations

import re
from functools import cache

from cascade.data.toybox import COLOURS, NOUNS, Look, Scene, Thing, sample_scene
from cascade.data.toybox.captions import MATERIAL_WORDS, SIZE_WORDS
from cascade.data.toybox.description import COUNTS


@cache
def scenes() -> tuple[Scene, ...]:
    return tuple(sample_scene(7, index) for index in range(400))


@cache
def of_kind(kind: str) -> tuple[Scene, ...]:
    return tuple(sample_scene(7, index, {kind: 1.0}) for index in range(60))


def single(noun: str, colour: str, material: str = "plain", **changes: str) -> Scene:
    """One large thing in the middle."""
    thing = Thing(Look(noun, colour, material=material), (0.0, 0.0, 0.0), 1.2 / NOUNS[noun].bulk, 35.0)
    return Scene((thing,), **{"ground": "beige", "light": "left"} | changes)


# Every word that says something of a thing, and what it says; written out again rather than taken from the grammar.
NOUN_OF = {word: name for name, noun in NOUNS.items() for word in (name, noun.plural, *noun.synonyms)}
SIZE_OF = {"small": "small", "tiny": "small", "little": "small", "large": "large", "big": "large", "huge": "large"}
MATERIAL_OF = {
    **{"metal": "metal", "brick": "brick", "bricks": "brick", "denim": "denim", "wooden": "wood", "wood": "wood"},
    **{"tiled": "tile", "tiles": "tile", "checkered": "checker"},
}
# How captions of several things relate them: to which relation that amounts, and whether its first thing comes first.
PHRASES = {
    "to the left of": ("left", True),
    "left of": ("left", True),
    "to the right of": ("left", False),
    "right of": ("left", False),
    "on the left and": ("left", True),
    "in front of": ("front", True),
    "behind": ("front", False),
    "on top of": ("on", True),
    "on": ("on", True),
    "with": ("on", False),
    "under": ("on", False),
    "underneath": ("on", False),
}
assert set(SIZE_WORDS) == set(SIZE_OF.values())
assert set(MATERIAL_WORDS) == set(MATERIAL_OF.values())


def relating(text: str) -> str | None:
    """The longest of PHRASES in a caption of several things."""
    text = text.partition(" against a ")[0]
    return max((phrase for phrase in PHRASES if f" {phrase} " in text), key=len, default=None)


def read(text: str) -> tuple[Look, ...]:
    """The looks that a caption names, in the order of its description; a plural is one look."""
    text = text.partition(" against a ")[0]
    told: list[dict[str, str]] = [{}]
    for word in text.split():
        for part, meanings in (("size", SIZE_OF), ("colour", dict(zip(COLOURS, COLOURS, strict=True)))):
            if word in meanings:
                told[-1][part] = meanings[word]
        if word in MATERIAL_OF:
            told[-1]["material"] = MATERIAL_OF[word]
        if word in NOUN_OF:
            told[-1]["noun"] = NOUN_OF[word]
            told.append({})
    after = told.pop()  # of a single thing, more may be said after its noun
    if len(told) == 1:
        told[0] |= after
        return (Look(**told[0]),)
    looks = tuple(Look(**look) for look in told)
    phrase = relating(text)
    assert phrase is not None, text
    return looks if PHRASES[phrase][1] else looks[::-1]


def counted(text: str) -> int:
    """How many things alike a caption names."""
    found = re.search(r"\b(two|three|four|five|pair)\b", text)
    return 1 if found is None else {"pair": 2, **COUNTS}[found[0]]
