"""Descriptions in words: a small grammar with paraphrases, lower case, a closed vocabulary."""

from __future__ import annotations

from functools import cache

import numpy as np

from cascade.data.toybox.description import COLOURS, COUNTS, Description, Look
from cascade.data.toybox.nouns import NOUNS
from cascade.data.toybox.scene import GROUNDS

# The first of each list is the plain one. {a} a thing with its article, {t} the same without, {k} the count, {ts} the
# plural, {A} {B} {C} the things of a relation with their articles, {p} any of PREFIXES.
PREFIXES = ("", "a photo of ", "a picture of ", "an image of ")
ONE = ("{a}", "the {t}", "one {t}")
MANY = ("{k} {ts}", "a group of {k} {ts}")
PAIR = "a pair of {ts}"
RELATED: dict[str, tuple[str, ...]] = {
    "left": (
        "{A} to the left of {B}",
        "{A} left of {B}",
        "{B} to the right of {A}",
        "{B} right of {A}",
        "{A} on the left and {B} on the right",
    ),
    "front": ("{A} in front of {B}", "{B} behind {A}"),
    "on": ("{A} on top of {B}", "{A} on {B}", "{B} with {A} on top", "{B} under {A}", "{B} underneath {A}"),
    "stack": ("{A} on top of {B} on top of {C}", "{A} on {B} on {C}", "{C} under {B} under {A}"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")}
# As an adjective, and after the noun.
MATERIAL_WORDS: dict[str, tuple[str, str]] = {
    "metal": ("metal", "made of metal"),
    "brick": ("brick", "made of bricks"),
    "denim": ("denim", "made of denim"),
    "wood": ("wooden", "made of wood"),
    "tile": ("tiled", "covered in tiles"),
    "checker": ("checkered", "with a checkered pattern"),
}
BACKDROP = "{caption} against a {ground} background"

PLAIN_SHARE = 0.4
SYNONYM_SHARE = 0.15
CLAUSE_SHARE = 0.25
GROUND_SHARE = 0.1


def plain_caption(description: Description, form: int = 0) -> str:
    """The canonical caption: "a red car", "two small blue balls", "a red wooden cube to the left of a blue house".

    form: which of the kind's templates, in the plainest words otherwise.
    """
    return _say(description, None, form)


def caption(description: Description, rng: np.random.Generator, ground: str | None = None) -> str:
    """One of the captions, drawn with `rng`: PLAIN_SHARE of the time the plain one, else in any words of the grammar.

    `ground`, a key of GROUNDS, is named GROUND_SHARE of the time.
    """
    text = _say(description, None if rng.random() < PLAIN_SHARE else rng)
    if ground is not None and rng.random() < GROUND_SHARE:
        text = BACKDROP.format(caption=text, ground=ground)
    return text


def paraphrase(description: Description, rng: np.random.Generator) -> str:
    """A caption other than the plain one."""
    while (text := _say(description, rng)) == plain_caption(description):
        pass
    return text


@cache
def vocabulary() -> frozenset[str]:
    """Every word that a caption can hold."""
    templates = [*PREFIXES, *ONE, *MANY, PAIR, *(line for lines in RELATED.values() for line in lines), BACKDROP]
    templates += ["a an that is", *(" ".join(words) for words in (*SIZE_WORDS.values(), *MATERIAL_WORDS.values()))]
    words = {word for template in templates for word in template.split() if "{" not in word}
    words.update(COLOURS, COUNTS, *(ground.split() for ground in GROUNDS))
    for name, noun in NOUNS.items():
        words.update((name, noun.plural, *noun.synonyms))
    return frozenset(words)


def _say(description: Description, rng: np.random.Generator | None, form: int = 0) -> str:
    """The plain caption in template `form`, or with an rng one of all."""
    looks, kind, count = description.looks, description.kind, description.count
    prefix = _choose(PREFIXES, rng)
    if kind == "one":
        thing = _name(looks[0], rng, clauses=True)
        return prefix + _choose(ONE, rng, form).format(a=_with_article(thing), t=thing)
    if kind == "count":
        number = next(word for word, value in COUNTS.items() if value == count)
        templates = (*MANY, PAIR) if count == 2 else MANY
        return prefix + _choose(templates, rng, form).format(k=number, ts=_name(looks[0], rng, plural=True))
    things = {letter: _with_article(_name(look, rng)) for letter, look in zip("ABC", looks, strict=False)}
    return prefix + _choose(RELATED[kind], rng, form).format(**things)


def _name(look: Look, rng: np.random.Generator | None, *, plural: bool = False, clauses: bool = False) -> str:
    """ "small red wooden cube"; with an rng also synonyms and, if asked, "small cube that is red", "made of wood"."""
    noun = NOUNS[look.noun]
    word = noun.plural if plural else look.noun
    if rng is not None and not plural and noun.synonyms and rng.random() < SYNONYM_SHARE:
        word = _choose(noun.synonyms, rng)
    before = [_choose(SIZE_WORDS[look.size], rng)] if look.size in SIZE_WORDS else []
    after = []
    if rng is not None and clauses and rng.random() < CLAUSE_SHARE:
        after.append(f"that is {look.colour}")
    else:
        before.append(look.colour)
    if look.material in MATERIAL_WORDS:
        adjective, clause = MATERIAL_WORDS[look.material]
        if rng is not None and clauses and not after and rng.random() < CLAUSE_SHARE:
            after.append(clause)
        else:
            before.append(adjective)
    return " ".join([*before, word, *after])


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _choose(options: tuple[str, ...], rng: np.random.Generator | None, form: int = 0) -> str:
    return options[form] if rng is None else options[rng.integers(len(options))]
