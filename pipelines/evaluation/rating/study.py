"""Who sees what, in which order, on which side: a pure function of (seed, rater, item).

Imagen's protocol on DrawBench (section 4.3 and its appendix): for each prompt a rater sees two sets of 8 uncurated
images, one of each model, and answers two questions, on quality and on alignment with the caption; here both stand
below the two sets. What is added: sides and order are random for each rater, and there are control items, which Imagen
has in its COCO evaluation (there a rater must pass 80% of them).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.evaluation.rating.answers import Preference

if TYPE_CHECKING:
    from pipelines.batch.run import Run

Choice = Literal["a", "neither", "b"]
Side = Literal["a", "b"]

MOST_IMAGES = 8


@dataclass(frozen=True)
class Source:
    """Where a set of images is from: run 0 or 1, and the prompt's number."""

    run: int
    prompt: int


@dataclass(frozen=True)
class Screen:
    """A caption, by its prompt's number, and two sets: side a is on the left."""

    prompt: int
    control: bool
    first: Source
    second: Source
    first_was: Side

    def source(self, side: str) -> Source:
        return self.first if side == self.first_was else self.second

    def preference(self, choice: str) -> Preference:
        if choice == "neither":
            return "neither"
        return "first" if choice == self.first_was else "second"

    def choice(self, preference: Preference) -> Choice:
        if preference == "neither":
            return "neither"
        return "a" if (preference == "first") == (self.first_was == "a") else "b"


class Study:
    """Two complete runs of the same prompts to compare, and everything that determines what a rater sees.

    names: of the two models. controls: control items per prompt, in [0, 1]. Raises ValueError naming what is wrong and
    the remedy.
    """

    def __init__(self, runs: tuple[Run, Run], names: tuple[str, str], *, seed: int = 0, controls: float = 0.1) -> None:
        if names[0] == names[1] or not all(name.strip() for name in names):
            raise ValueError(f"the models are called {names[0]!r} and {names[1]!r}; give two names with --names")
        if not 0 <= controls <= 1:
            raise ValueError(f"--controls is {controls}; expected a share from 0 to 1")
        self.runs, self.names, self.seed, self.controls = runs, names, seed, controls
        self.prompts = runs[0].prompts
        self.images = min(MOST_IMAGES, *(run.images_per_prompt for run in runs))
        _check_prompts(runs)
        if self.control_count and len({record.prompt for record in self.prompts}) < 2:
            raise ValueError("a control item shows images of another prompt and there is only one; say --controls 0")

    @property
    def control_count(self) -> int:
        """How many control items each rater gets; one at least if any are wanted."""
        return max(1, round(self.controls * len(self.prompts))) if self.controls else 0

    @property
    def about(self) -> dict[str, Any]:
        """What determines the items; answers to others are none to these."""
        return {
            "first": self.names[0],
            "second": self.names[1],
            "first_run": _digest(self.runs[0].settings),
            "second_run": _digest(self.runs[1].settings),
            "images": self.images,
            "seed": self.seed,
            "controls": self.controls,
        }

    def path(self, source: Source, image: int) -> Path:
        return self.runs[source.run].path(source.prompt, image)

    def screens(self, rater: str) -> list[Screen]:
        """All prompts in a random order and, one in each of as many equal stretches of it, the control items."""
        order = sorted(range(len(self.prompts)), key=lambda prompt: self._draw(rater, "order", prompt))
        screens = [self._screen(rater, prompt) for prompt in order]
        count, n = self.control_count, len(order)
        for i in reversed(range(count)):  # from the end, so that the places before it stay
            start, end = i * n // count, (i + 1) * n // count
            place = start + self._draw(rater, "place", i) % (end - start)
            # Its caption comes up on its own half of the session away.
            screens.insert(place, self._control(rater, order[(place + n // 2) % n]))
        return screens

    def _screen(self, rater: str, prompt: int) -> Screen:
        return Screen(prompt, False, Source(0, prompt), Source(1, prompt), self._side(rater, "item", prompt))

    def _control(self, rater: str, prompt: int) -> Screen:
        """The prompt's images against another's of the same run: of 16 drawn, the one least alike in its words."""
        run = self._draw(rater, "run", prompt) % 2
        others = [i for i, record in enumerate(self.prompts) if record.prompt != self.prompts[prompt].prompt]
        drawn = [others[self._draw(rater, "other", prompt, i) % len(others)] for i in range(16)]
        other = min(drawn, key=lambda i: self._likeness(prompt, i))
        return Screen(prompt, True, Source(run, prompt), Source(run, other), self._side(rater, "control", prompt))

    def _likeness(self, one: int, other: int) -> float:
        """The share of words that two captions have in common."""
        a, b = self._words[one], self._words[other]
        return len(a & b) / max(1, len(a | b))

    @cached_property
    def _words(self) -> list[frozenset[str]]:
        return [frozenset(re.findall(r"\w+", record.prompt.lower())) for record in self.prompts]

    def _side(self, rater: str, *item: str | int) -> Side:
        return "a" if self._draw(rater, "side", *item) % 2 else "b"

    def _draw(self, rater: str, *item: str | int) -> int:
        """A uniform 64-bit number of its own for each (seed, rater, item)."""
        key = json.dumps([self.seed, rater, *item]).encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())


def _check_prompts(runs: tuple[Run, Run]) -> None:
    first, second = runs
    if len(first.prompts) != len(second.prompts):
        raise ValueError(
            f"{first.folder} has {len(first.prompts)} prompts and {second.folder} {len(second.prompts)}; "
            "rate two runs of the same prompt file"
        )
    for number, (a, b) in enumerate(zip(first.prompts, second.prompts, strict=True)):
        if (a.prompt, a.category) != (b.prompt, b.category):
            raise ValueError(
                f"prompt {number} is {a.prompt!r} ({a.category!r}) in {first.folder} and {b.prompt!r} ({b.category!r}) "
                f"in {second.folder}; rate two runs of the same prompt file"
            )


def _digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
