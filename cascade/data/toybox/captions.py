"""What a scene is called: a small grammar with paraphrases, lower case, a closed vocabulary."""

from __future__ import annotations

from functools import cache

import numpy as np

from cascade.data.toybox.nouns import NOUNS
from cascade.data.toybox.scene import COLOURS, COUNTS, Scene, Thing

# The first of each list is the plain one. {c} colour, {n} noun, {ns} plural, {a} and {an} the articles that fit {c} and
# {n}, {k} the count, {A} and {B} the first and the second thing with their articles.
ONE = (
    "{a} {c} {n}",
    "the {c} {n}",
    "a photo of {a} {c} {n}",
    "a picture of {a} {c} {n}",
    "one {c} {n}",
    "{an} {n} that is {c}",
)
MANY = ("{k} {c} {ns}", "a photo of {k} {c} {ns}", "a picture of {k} {c} {ns}")
PAIR = ("a pair of {c} {ns}",)
RELATED: dict[str, tuple[str, ...]] = {
    "left": (
        "{A} to the left of {B}",
        "{A} left of {B}",
        "{B} to the right of {A}",
        "{B} right of {A}",
        "{A} on the left and {B} on the right",
    ),
    "on": (
        "{A} on top of {B}",
        "{A} on {B}",
        "{B} with {A} on top",
        "{B} under {A}",
        "{B} underneath {A}",
    ),
}
PLAIN_SHARE = 0.4
SYNONYM_SHARE = 0.15


def plain_caption(scene: Scene) -> str:
    """The canonical caption, e.g. "a red car", "two blue balls", "a red car to the left of a blue house"."""
    if scene.relation is not None:
        first, second = (_phrase(thing, thing.noun) for thing in scene.things)
        return RELATED[scene.relation][0].format(A=first, B=second)
    template = ONE[0] if len(scene.things) == 1 else MANY[0]
    return _fill(template, scene.things[0], scene.things[0].noun, len(scene.things))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the scene's captions, drawn with `rng`; at least PLAIN_SHARE of the time the plain one, in plain words."""
    if rng.random() < PLAIN_SHARE:
        return plain_caption(scene)
    if scene.relation is not None:
        first, second = (_phrase(thing, _word(thing.noun, rng)) for thing in scene.things)
        return _choose(RELATED[scene.relation], rng).format(A=first, B=second)
    thing, count = scene.things[0], len(scene.things)
    if count == 1:
        return _fill(_choose(ONE[1:], rng), thing, _word(thing.noun, rng), 1)
    return _fill(_choose(MANY + PAIR if count == 2 else MANY, rng), thing, thing.noun, count)


@cache
def vocabulary() -> frozenset[str]:
    """Every word that a caption can hold."""
    words = {"a", "an"} if any(_article(colour) == "an" for colour in COLOURS) else {"a"}
    for template in (*ONE, *MANY, *PAIR, *RELATED["left"], *RELATED["on"]):
        words.update(word for word in template.split() if not word.startswith("{"))
    words.update(COLOURS, COUNTS)
    for name, noun in NOUNS.items():
        words.update((name, noun.plural, *noun.synonyms))
    return frozenset(words)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _phrase(thing: Thing, word: str) -> str:
    return f"{_article(thing.colour)} {thing.colour} {word}"


def _word(noun: str, rng: np.random.Generator) -> str:
    synonyms = NOUNS[noun].synonyms
    return _choose(synonyms, rng) if synonyms and rng.random() < SYNONYM_SHARE else noun


def _choose(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _fill(template: str, thing: Thing, word: str, count: int) -> str:
    number = next((name for name, value in COUNTS.items() if value == count), "")
    plural = NOUNS[thing.noun].plural
    return template.format(a=_article(thing.colour), an=_article(word), c=thing.colour, n=word, ns=plural, k=number)
