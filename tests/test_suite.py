"""Suites: the toybox's is the committed one, and asks what it says it asks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from toybox_scenes import counted, read

from cascade.data.toybox import COLOURS, MATERIALS, NOUNS, Description, Look, held_out, plain_caption, vocabulary
from cascade.data.toybox.captions import MANY, ONE, RELATED
from cascade.data.toybox.description import KINDS, RELATIONS
from pipelines.evaluation.suite import TOYBOX, Prompt, read_suite, toybox_suite

AT_LEAST = dict.fromkeys(("colours", "counting", "positional", "materials", "conflicting", "paraphrase"), 80)
AT_LEAST |= {"sizes": 60, "stacks": 60}
FORMS = {"one": len(ONE), "count": len(MANY), **{kind: len(templates) for kind, templates in RELATED.items()}}


@cache
def committed() -> dict[str, list[Prompt]]:
    found: dict[str, list[Prompt]] = {}
    for prompt in read_suite(TOYBOX):
        found.setdefault(prompt.category, []).append(prompt)
    return found


def expected(category: str) -> list[Description]:
    return [prompt.expected for prompt in committed()[category] if prompt.expected is not None]


def named(description: Description) -> set[str]:
    """What a description says beyond nouns and colours."""
    sizes, materials = (
        {look.size for look in description.looks} - {"medium"},
        {look.material for look in description.looks} - {"plain"},
    )
    return ({"size"} if sizes else set()) | ({"material"} if materials else set())


def test_the_committed_suite_is_the_one_that_is_written() -> None:
    """Otherwise run `python -m pipelines.evaluation.suite`, and measure anew whatever was measured by it."""
    assert read_suite(TOYBOX) == toybox_suite()
    assert TOYBOX.read_text(encoding="utf-8") == "".join(prompt.to_json() + "\n" for prompt in toybox_suite())


def test_there_are_enough_prompts_and_none_twice() -> None:
    counts = Counter(prompt.category for prompt in read_suite(TOYBOX))
    assert set(counts) == set(AT_LEAST)
    assert all(counts[category] >= wanted for category, wanted in AT_LEAST.items())
    assert counts.total() >= 600
    assert len({prompt.prompt for prompt in read_suite(TOYBOX)}) == counts.total()


def test_only_conflicting_prompts_hold_what_training_never_shows() -> None:
    for category in committed():
        held = {held_out().holds(description) for description in expected(category)}
        assert held == {category == "conflicting"}, category


def test_every_prompt_says_what_is_expected_in_words_of_the_vocabulary() -> None:
    for prompt in read_suite(TOYBOX):
        assert set(prompt.prompt.split()) <= vocabulary(), prompt.prompt
        assert prompt.expected is not None
        assert read(prompt.prompt) == prompt.expected.looks, prompt.prompt
        assert counted(prompt.prompt) == prompt.expected.count, prompt.prompt
        plain = {plain_caption(prompt.expected, form) for form in range(FORMS[prompt.expected.kind])}
        if prompt.category == "paraphrase":
            assert prompt.prompt != plain_caption(prompt.expected)
        else:
            assert prompt.prompt in plain


def test_each_category_asks_for_what_it_is_called() -> None:
    assert {description.kind for description in expected("colours")} == {"one"}
    assert {look.colour for description in expected("colours") for look in description.looks} == set(COLOURS)
    assert Counter(description.count for description in expected("counting")).keys() == {1, 2, 3, 4, 5}
    assert all(
        prompt.prompt.split()[0] in ("one", "two", "three", "four", "five") for prompt in committed()["counting"]
    )
    assert {description.relation for description in expected("positional")} == set(RELATIONS)
    for words in ("to the left of", "to the right of", "in front of", "behind", "on top of", "underneath"):
        assert sum(f" {words} " in prompt.prompt for prompt in committed()["positional"]) >= 18, words
    assert {look.material for description in expected("materials") for look in description.looks} == set(MATERIALS[1:])
    assert {look.size for description in expected("sizes") for look in description.looks} == {"small", "large"}
    assert {description.kind for description in expected("sizes")} == {"one", "left"}
    assert {description.kind for description in expected("stacks")} == {"stack"}
    assert {description.kind for description in expected("conflicting")} == {"one", "left", "front", "on"}
    assert {description.kind for description in expected("paraphrase")} == set(KINDS)
    nouns = Counter(look.noun for category in committed() for d in expected(category) for look in d.looks)
    assert set(nouns) == set(NOUNS)


def test_each_category_asks_for_nothing_else() -> None:
    says = {"sizes": {"size"}, "materials": {"material"}, "conflicting": {"material"}}
    for category in set(committed()) - {"paraphrase"}:
        for description in expected(category):
            assert named(description) <= says.get(category, set()), (category, description)
    assert all(named(description) for category in ("sizes", "materials") for description in expected(category))


def test_a_suite_without_expectations_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    prompts = [
        Prompt("DrawBench", "a café “in” Ωmega"),
        Prompt("toys", "a red cube", Description((Look("cube", "red"),))),
    ]
    path.write_text("".join(prompt.to_json() + "\n" for prompt in prompts), encoding="utf-8")
    assert read_suite(path) == prompts
    path.write_text('{"prompt": "ü", "category": "c"}', encoding="utf-8")
    assert read_suite(path) == [Prompt("c", "ü")]


GOOD = Prompt("toys", "a red cube", Description((Look("cube", "red"),))).to_json()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a red cube", "Expecting value"),
        ("", "Expecting value"),
        ('["toys", "a red cube"]', "expected a JSON object with category and prompt"),
        ('{"category": "toys"}', "'prompt'"),
        ('{"prompt": "a red cube"}', "'category'"),
        (GOOD.replace('"cube"', '"cat"'), "noun 'cat': expected one of airplane"),
        (GOOD.replace('"size"', '"sise"'), "sise"),
        (GOOD.replace('"count": 1', '"count": 7'), "7 of 1 looks"),
        (GOOD.replace('"relation": null', '"relation": null, "near": 1'), "near"),
        ('{"category": "toys", "prompt": "a red cube", "expected": 3}', "expected a JSON object"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{GOOD}\n{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(ValueError, match=message) as refused:
        read_suite(path)
    assert f"{path}, line 3: expected a JSON object with category and prompt" in str(refused.value)


@pytest.mark.parametrize("change", [lambda record: record, lambda record: record | {"expected": None}])
def test_lines_are_plain_json(change: Callable[[dict], dict], tmp_path: Path) -> None:
    record = json.loads(Prompt("toys", "a red cube").to_json())
    assert record == {"category": "toys", "prompt": "a red cube"}
    (tmp_path / "one.jsonl").write_text(json.dumps(change(record)))
    assert read_suite(tmp_path / "one.jsonl") == [Prompt("toys", "a red cube")]
