"""What judges say of the images of a run: RUN/scores/NAME.jsonl.

    {"judge": "toybox", "version": "sha256:...", "measure": "right"}
    {"prompt": 12, "image": 3, "right": false, "wrong": ["colour"]}

A header, then a line per image, appended as it is judged. Lines of a judge that measures a "score" have
{"prompt": 12, "image": 3, "score": 0.31}; the header of an outside judge has its "command", too. A line that a kill cut
short does not count.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.batch.run import Lines, Run

FOLDER = "scores"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Measure = Literal["right", "score"]
Key = tuple[int, int]  # numbers of prompt and image


@dataclass(frozen=True)
class ImageScore:
    """score: 1 or 0 where the measure is "right". wrong: what is wrong, where a judge says so."""

    score: float
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scores:
    """What one judge says, by the numbers of prompt and image."""

    judge: str
    version: str
    measure: Measure
    values: Mapping[Key, ImageScore]


@dataclass(frozen=True)
class Judge:
    """Someone who scores images. version: what the scores depend on, beside the image and its prompt.

    judge: given a run and the images to score, yields what becomes their lines. command: of a program; only noted.
    """

    name: str
    version: str
    judge: Callable[[Run, Sequence[Key]], Iterator[Mapping[str, Any]]]
    command: str | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"a judge named {self.name!r}; expected letters, digits, dots, - and _: it names a file")


@dataclass
class _Stored:
    version: str = ""
    measure: Measure | None = None  # None: nothing is there
    values: dict[Key, ImageScore] = field(default_factory=dict)


def read_scores(run_folder: Path) -> list[Scores]:
    """All that judges have said of a run, by their names. Raises ValueError naming a file that is damaged."""
    found = []
    for path in sorted((run_folder / FOLDER).glob("*.jsonl")):
        stored = _read(path)
        if stored.measure is not None:
            found.append(Scores(path.stem, stored.version, stored.measure, stored.values))
    return found


def score_run(run: Run, judge: Judge) -> Scores:
    """Have a judge score the images that are there and that it has not scored yet; what it says is kept at once.

    Raises ValueError where another version of the judge has scored the run, and what the judge raises.
    """
    path = run.folder / FOLDER / f"{judge.name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with closing(Lines(path, exclusive=True)) as lines:
        stored = _read(path)
        if stored.measure is not None and stored.version != judge.version:
            raise ValueError(
                f"{path} is by another {judge.name} ({stored.version} there, {judge.version} here); "
                "give this one another name (--name), or delete that file"
            )
        n = run.images_per_prompt
        todo = [key for key in (divmod(j, n) for j in sorted(run.made)) if key not in stored.values]
        for record in judge.judge(run, todo) if todo else ():
            key, measure, value = parse(record)
            if stored.measure is None:
                command = {"command": judge.command} if judge.command else {}
                lines.append({"judge": judge.name, "version": judge.version, **command, "measure": measure})
                stored.measure = measure
            elif stored.measure != measure:
                raise ValueError(f'{path} is of "{stored.measure}", and {judge.name} now says "{measure}"')
            lines.append(record)
            stored.values[key] = value
    if stored.measure is None:
        raise ValueError(f"{run.folder} has no images to score")
    return Scores(judge.name, judge.version, stored.measure, stored.values)


def parse(record: Any) -> tuple[Key, Measure, ImageScore]:
    """A line about an image: its numbers, what is measured, and the score. Raises ValueError naming what is wrong."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{record!r}; expected an object")
    unknown = record.keys() - {"prompt", "image", "score", "right", "wrong"}
    if unknown or ("score" in record) == ("right" in record):
        raise ValueError(f'{dict(record)}; expected prompt, image, and either "score", or "right" and perhaps "wrong"')
    for name in ("prompt", "image"):
        if type(record.get(name)) is not int:
            raise ValueError(f"{name} is {record.get(name)!r}; expected a number as in the manifest")
    key = (record["prompt"], record["image"])
    if "score" in record:
        score = record["score"]
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"the score of image {key[1]} of prompt {key[0]} is {score!r}; expected a finite number")
        return key, "score", ImageScore(float(score))
    right, wrong = record["right"], record.get("wrong", [])
    if not isinstance(right, bool) or not isinstance(wrong, list) or not all(isinstance(one, str) for one in wrong):
        raise ValueError(f'{dict(record)}; expected true or false for "right", and a list of texts for "wrong"')
    return key, "right", ImageScore(float(right), tuple(wrong))


def _read(path: Path) -> _Stored:
    stored = _Stored()
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut short
        try:
            if stored.measure is None:
                stored.version, stored.measure = _header(record)
            else:
                key, measure, value = parse(record)
                if measure != stored.measure:
                    raise ValueError(f'a "{measure}" in a file of "{stored.measure}"')
                stored.values[key] = value
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; delete the file, and score the run again") from None
    return stored


def _header(record: Any) -> tuple[str, Measure]:
    try:
        if isinstance(record["version"], str) and record["measure"] in ("right", "score"):
            return record["version"], record["measure"]
    except (KeyError, TypeError):
        pass
    raise ValueError(f"{record!r} is no header; expected judge, version, and the measure right or score")
