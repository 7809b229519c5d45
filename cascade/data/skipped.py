"""What training leaves out, and when that is too much.

Items are looked at when their turn comes, not before: a million files need not be opened twice. `find_skipped` opens
them for those who want to know beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cascade.data.source import ImageSource, Unusable
from cascade.data.transform import Transform

MAX_SKIPPED = 0.25
FIRST_VERDICT = 200  # items seen before the share means something; fewer where an epoch is shorter
SHOWN = 10


@dataclass(frozen=True)
class Skipped:
    """An item that was left out, and why."""

    name: str
    reason: str


class TooManySkipped(ValueError):
    """Too many items cannot be used. ``skipped`` are those that were found, each once."""

    def __init__(self, message: str, skipped: Iterable[Skipped] = ()) -> None:
        super().__init__(message)
        self.skipped = list({one.name: one for one in skipped}.values())

    def listed(self) -> str:
        """The first of them, a line each, and how many more there are."""
        lines = [f"  {one.name}: {one.reason}" for one in self.skipped[:SHOWN]]
        if len(self.skipped) > SHOWN:
            lines.append(f"  and {len(self.skipped) - SHOWN:,} more")
        return "\n".join(lines)


class NothingUsable(TooManySkipped):
    """No item was found for a sample."""


class SkipLog:
    """Counts what was left out, and names each item once in a file of JSON lines.

    path: the file, appended to; each process has its own. items: in the source. limit: the share of items whose turn
    came that may have been left out.
    """

    def __init__(self, path: str | Path, items: int, limit: float = MAX_SKIPPED) -> None:
        if not 0 <= limit <= 1:
            raise ValueError(f"the share that may be skipped must be in [0, 1], got {limit}")
        self.path, self.items, self.limit = Path(path), items, limit
        self.seen = self.skipped = 0
        self._named: dict[str, Skipped] = {one.name: one for one in _read(self.path)}
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a") as file:
                file.write("\n")

    @property
    def named(self) -> list[Skipped]:
        """Every item left out so far, once."""
        return list(self._named.values())

    def record(self, skipped: Sequence[Sequence[Skipped]]) -> None:
        """Count a batch: for every sample the items that were tried before it, such as ``Batch.skipped``.

        Raises TooManySkipped once the share is above the limit, after FIRST_VERDICT items or an epoch.
        """
        self.seen += len(skipped)
        self.skipped += sum(map(bool, skipped))  # what was tried in an item's place does not count: its turn will come
        self._name(one for tried in skipped for one in tried)
        if self.seen >= min(FIRST_VERDICT, self.items) and self.skipped > self.limit * self.seen:
            share = self.skipped / self.seen
            raise self.too_many(f"{self.skipped:,} of {self.seen:,} items ({share:.0%}) cannot be used")

    def too_many(self, what: str, skipped: Iterable[Skipped] = ()) -> TooManySkipped:
        """The error that says so, once all that were found are in the file."""
        self._name(skipped)
        return TooManySkipped(
            f"{what}, and data.max_skipped is {self.limit:g}: mend the data, or allow more. All that were found are in "
            f"{self.path}",
            self.named,
        )

    def _name(self, skipped: Iterable[Skipped]) -> None:
        fresh = {one.name: one for one in skipped if one.name not in self._named}
        if fresh:
            self._named |= fresh
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(asdict(one)) + "\n" for one in fresh.values()))


def _read(path: Path) -> Iterator[Skipped]:
    """What a run that is resumed has named already; a line that a kill cut short does not count."""
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            yield Skipped(**json.loads(line))
        except (ValueError, TypeError):
            continue


def find_skipped(source: ImageSource, transform: Transform, items: Iterable[int]) -> Iterator[Skipped]:
    """Which of these items of a source cannot be used: captions and images are read in full."""
    rng = np.random.default_rng(0)
    for item in items:
        try:
            source.captions(item)
            transform(source.image(item), rng)
        except Unusable as error:
            yield Skipped(source.name(item), str(error))
