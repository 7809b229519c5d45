"""What training leaves out, and when that is too much.

Items are looked at when their turn comes, not before: a million files need not be opened twice. `find_skipped` opens
them all, for those who want to know beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

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
    """Too many items cannot be used. The message lists the first of them."""

    def __init__(self, message: str, skipped: Sequence[Skipped] = ()) -> None:
        skipped = list({one.name: one for one in skipped}.values())
        lines = [f"{message}:" if skipped else message]
        lines += [f"  {one.name}: {one.reason}" for one in skipped[:SHOWN]]
        if len(skipped) > SHOWN:
            lines.append(f"  and {len(skipped) - SHOWN} more")
        super().__init__("\n".join(lines))


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
        fresh = [one for tried in skipped for one in tried if one.name not in self._named]
        fresh = list({one.name: one for one in fresh}.values())
        if fresh:
            self._named.update({one.name: one for one in fresh})
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(asdict(one)) + "\n" for one in fresh))
        if self.seen >= min(FIRST_VERDICT, self.items) and self.skipped > self.limit * self.seen:
            raise TooManySkipped(
                f"{self.skipped} of {self.seen} items cannot be used, more than the share of {self.limit:g} that is "
                f"allowed; mend the data, or allow more. All that were found are in {self.path}",
                self.named,
            )


def _read(path: Path) -> Iterator[Skipped]:
    """What a run that is resumed has named already; a line that a kill cut short does not count."""
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            yield Skipped(**json.loads(line))
        except (ValueError, TypeError):
            continue


class _Trial(Dataset[Skipped | None]):
    """Item by item, why it cannot be used, if so."""

    def __init__(self, source: ImageSource, transform: Transform) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Skipped | None:
        try:
            self.source.captions(index)
            self.transform(self.source.image(index), np.random.default_rng(0))
        except Unusable as error:
            return Skipped(self.source.name(index), str(error))
        return None


def find_skipped(source: ImageSource, transform: Transform, workers: int = 0) -> Iterator[Skipped]:
    """Every item of a source that cannot be used, in its order: captions and images are read in full."""
    for found in DataLoader(_Trial(source, transform), batch_size=None, num_workers=workers):
        if found is not None:
            yield found
