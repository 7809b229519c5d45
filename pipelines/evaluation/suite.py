"""Suites: prompts by category, with the expected scene beside each where it can be stated.

A suite is a text file with one JSON object a line: "category", "prompt", and for the toybox "expected" (a
`Description`). `toybox.jsonl` is the toybox suite; `python -m pipelines.evaluation.suite` writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cascade.data.toybox.captions import paraphrase, plain_caption
from cascade.data.toybox.description import COUNTS, KIND_WEIGHTS, Description, Pairings, sample_description
from cascade.data.toybox.materials import MATERIALS
from pipelines.prompts import PromptRecord

TOYBOX = Path(__file__).parent / "toybox.jsonl"
MEDIUM, PLAIN = frozenset({"medium"}), frozenset({"plain"})  # what a prompt that names neither size nor material has


@dataclass(frozen=True)
class Prompt:
    """A line of a suite; `expected` is None where no toybox scene can say what is meant."""

    category: str
    prompt: str
    expected: Description | None = None

    def to_json(self) -> str:
        record = {"category": self.category, "prompt": self.prompt}
        return json.dumps(record | ({"expected": asdict(self.expected)} if self.expected else {}))


def read_suite(path: Path) -> list[Prompt]:
    """Raises ValueError naming the line that cannot be read."""
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            expected = record.get("expected")
            prompts.append(
                Prompt(
                    record["category"],
                    record["prompt"],
                    Description.from_json(json.dumps(expected)) if expected else None,
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with category and prompt ({error})"
            ) from None
    return prompts


def from_record(record: PromptRecord) -> Prompt:
    """A line of any prompt file, or of a run, as a line of a suite.

    Raises ValueError or TypeError where its "expected" is no Description.
    """
    expected = record.extra.get("expected")
    return Prompt(
        record.category, record.prompt, Description.from_json(json.dumps(expected)) if expected is not None else None
    )


def toybox_suite() -> list[Prompt]:
    """The prompts of TOYBOX, in eight of DrawBench's kinds of category.

    All but "conflicting" (held-out pairings) are of pairings that training shows, and all but "paraphrase" in plain
    words.
    """
    return [*_distinct(_toybox_prompts(np.random.default_rng(0)))]


def _toybox_prompts(rng: np.random.Generator) -> Iterator[Prompt]:
    def draw(
        kind: str,
        *,
        sizes: Set[str] | None = MEDIUM,
        materials: Set[str] | None = PLAIN,
        count: int | None = None,
        pairings: Pairings = "seen",
    ) -> Description:
        """One whose things have just these sizes and materials, and that counts so many; None is any."""
        while True:
            found = sample_description(rng, {kind: 1.0}, pairings)
            if (
                sizes in (None, {look.size for look in found.looks})
                and materials in (None, {look.material for look in found.looks})
                and count in (None, found.count)
            ):
                return found

    def say(category: str, description: Description, form: int = 0) -> Prompt:
        return Prompt(category, plain_caption(description, form), description)

    for _ in range(100):
        yield say("colours", draw("one"))
    for _ in range(20):
        yield say("counting", draw("one"), form=2)
        for count in COUNTS.values():
            yield say("counting", draw("count", count=count))
    for _ in range(20):
        for kind, form in (("left", 0), ("left", 2), ("front", 0), ("front", 1), ("on", 0), ("on", 4)):
            yield say("positional", draw(kind), form)
    for _ in range(24):
        for size in ("small", "large"):
            yield say("sizes", draw("one", sizes={size}))
        yield say("sizes", draw("left", sizes={"small", "large"}))
    for _ in range(15):
        for material in MATERIALS[1:]:
            yield say("materials", draw("one", materials={material}))
    for _ in range(20):
        for kind in ("one", "one", "left", "front", "on"):
            materials = None if kind == "one" else PLAIN
            yield say("conflicting", draw(kind, materials=materials, pairings="held out"))
    for _ in range(60):
        yield say("stacks", draw("stack"))
    for kind in KIND_WEIGHTS:
        for _ in range(17):
            description = draw(kind, sizes=None, materials=None)
            yield Prompt("paraphrase", paraphrase(description, rng), description)


def _distinct(prompts: Iterator[Prompt]) -> Iterator[Prompt]:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.prompt not in seen:
            seen.add(prompt.prompt)
            yield prompt


if __name__ == "__main__":
    TOYBOX.write_text("".join(prompt.to_json() + "\n" for prompt in toybox_suite()), encoding="utf-8")
