"""Captions of the toybox: they say what is there, in good English, in a closed vocabulary."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from toybox_scenes import NOUN_OF, PHRASES, counted, of_kind, read, relating

from cascade.data.toybox import (
    COLOURS,
    NOUNS,
    Description,
    Look,
    caption,
    paraphrase,
    plain_caption,
    sample_description,
    vocabulary,
)
from cascade.data.toybox.captions import GROUND_SHARE, MANY, ONE, PAIR, PLAIN_SHARE, RELATED
from cascade.data.toybox.description import KINDS
from cascade.data.toybox.scene import GROUNDS

RED_CAR, ORANGE_CONE = Look("car", "red"), Look("cone", "orange")
WOODEN = Look("cube", "red", "small", "wood")


def drawn(description: Description, count: int, ground: str | None = None) -> list[str]:
    rng = np.random.default_rng(0)
    return [caption(description, rng, ground) for _ in range(count)]


@cache
def told() -> tuple[tuple[Description, str], ...]:
    """Descriptions of all kinds, with a caption of each."""
    rng, grounds = np.random.default_rng(1), list(GROUNDS)
    found = [sample_description(rng, {kind: 1.0}, "any") for kind in KINDS for _ in range(700)]
    return tuple((description, caption(description, rng, grounds[rng.integers(4)])) for description in found)


@pytest.mark.parametrize(
    ("description", "wanted"),
    [
        (Description((RED_CAR,)), "a red car"),
        (Description((ORANGE_CONE,)), "an orange cone"),
        (Description((WOODEN,)), "a small red wooden cube"),
        (Description((Look("boat", "white", "large"),)), "a large white boat"),
        (Description((Look("hat", "black", material="tile"),)), "a black tiled hat"),
        (Description((Look("ball", "blue"),), count=2), "two blue balls"),
        (Description((Look("snowman", "pink"),), count=3), "three pink snowmen"),
        (Description((Look("cactus", "green", material="checker"),), count=5), "five green checkered cacti"),
        (Description((RED_CAR, WOODEN), relation="left"), "a red car to the left of a small red wooden cube"),
        (Description((RED_CAR, ORANGE_CONE), relation="front"), "a red car in front of an orange cone"),
        (Description((ORANGE_CONE, RED_CAR), relation="on"), "an orange cone on top of a red car"),
        (
            Description((RED_CAR, WOODEN, ORANGE_CONE), relation="on"),
            "a red car on top of a small red wooden cube on top of an orange cone",
        ),
    ],
)
def test_the_plain_caption(description: Description, wanted: str) -> None:
    assert plain_caption(description) == wanted
    texts = drawn(description, 300)
    assert texts.count(wanted) / 300 == pytest.approx(PLAIN_SHARE, abs=0.15)
    assert len(set(texts)) >= 8


def test_the_forms_of_the_plain_caption() -> None:
    one, two = Description((RED_CAR,)), Description((RED_CAR,), count=2)
    left = Description((RED_CAR, ORANGE_CONE), relation="left")
    on = Description((RED_CAR, ORANGE_CONE), relation="on")
    assert [plain_caption(one, form) for form in range(len(ONE))] == ["a red car", "the red car", "one red car"]
    assert [plain_caption(two, form) for form in range(len(MANY) + 1)] == [
        "two red cars",
        "a group of two red cars",
        "a pair of red cars",
    ]
    assert plain_caption(left, 2) == "an orange cone to the right of a red car"
    assert plain_caption(left, 4) == "a red car on the left and an orange cone on the right"
    assert plain_caption(on, 4) == "an orange cone underneath a red car"


def test_captions_say_what_is_there() -> None:
    """Read back without the grammar, word by word: looks, their order, the relation and the count."""
    used = Counter()
    for description, text in told():
        assert read(text) == description.looks, text
        assert counted(text) == description.count, text
        phrase = relating(text) if description.relation is not None else None
        assert description.relation == (PHRASES[phrase][0] if phrase else None), text
        used[description.kind, phrase] += 1
        noun = next(word for word in text.split() if word in NOUN_OF)
        assert (noun == NOUNS[NOUN_OF[noun]].plural) == (description.count > 1), text
    assert {phrase for kind, phrase in used if kind not in ("one", "count", "stack")} == set(PHRASES)
    assert {phrase for kind, phrase in used if kind == "stack"} == {"on top of", "on", "under"}


@pytest.mark.parametrize("kind", RELATED)
def test_every_plain_template_says_the_same(kind: str) -> None:
    for scene in of_kind(kind)[:20]:
        for form in range(len(RELATED[kind])):
            text = plain_caption(scene.description, form)
            phrase = relating(text)
            assert read(text) == scene.description.looks, text
            assert phrase is not None
            assert PHRASES[phrase][0] == scene.relation


def test_a_pair_is_two() -> None:
    assert PAIR == "a pair of {ts}"
    for count in (2, 3):
        texts = drawn(Description((RED_CAR,), count=count), 200)
        assert any("pair" in text for text in texts) == (count == 2)


def test_captions_use_the_vocabulary_and_all_of_it() -> None:
    words = Counter(word for _, text in told() for word in text.split())
    assert set(words) == vocabulary()
    assert all(re.fullmatch("[a-z]+", word) for word in words)


def test_articles_fit_what_follows() -> None:
    texts = {text for _, text in told()} | set(drawn(Description((Look("car", "orange"),)), 4000))
    assert "an automobile that is orange" in texts
    assert not [text for text in texts if re.search(r"\ba [aeiou]|\ban [^aeiou]", text)]
    assert any("an image of" in text for text in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_paraphrase_says_the_same_in_other_words(kind: str) -> None:
    rng = np.random.default_rng(2)
    for scene in of_kind(kind)[:30]:
        text = paraphrase(scene.description, rng)
        assert text != plain_caption(scene.description)
        assert read(text) == scene.description.looks
        assert " against " not in text


def test_the_ground_is_named_now_and_then() -> None:
    description = Description((RED_CAR, ORANGE_CONE), relation="on")
    for ground in GROUNDS:
        ending = f" against a {ground} background"
        named = [text for text in drawn(description, 600, ground) if text.endswith(ending)]
        assert len(named) / 600 == pytest.approx(GROUND_SHARE, abs=0.05)
        assert plain_caption(description) + ending in named
        assert all(read(text) == description.looks for text in named)
    assert not any("background" in text for text in drawn(description, 600))


def test_captions_are_drawn_with_the_generator_given() -> None:
    description = of_kind("left")[0].description
    assert drawn(description, 30) == drawn(description, 30)
    assert len(set(drawn(description, 30))) > 10


def test_reading_captions_back_finds_mistakes() -> None:
    """The reader of these tests tells apart what differs in one word."""
    text = "a small red wooden cube to the left of a blue ball"
    wanted = (Look("cube", "red", "small", "wood"), Look("ball", "blue"))
    assert read(text) == wanted
    for old, new in (("red", "pink"), ("cube", "hat"), ("small ", ""), ("wooden", "brick"), ("left", "right")):
        assert read(text.replace(old, new)) != wanted
    assert read("a cube that is red") == read("a red cube") == (Look("cube", "red"),)
    assert set(COLOURS) <= vocabulary()
