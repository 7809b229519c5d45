"""The parts of a data set by name: what `datasets` takes for training, validation and test."""

from __future__ import annotations

from collections.abc import Collection, Iterable

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_KNOWN = {name for names in SPLITS.values() for name in names}


def find_split(members: Iterable[Collection[str]], split: str | None, where: object) -> str | None:
    """The name under which a split is found; None if everything is meant.

    members: the words in the name of each part of the data. split: None is the training split, provided that every part
    belongs to some split: a folder `train` beside a folder `tree` may hold pictures of trains. Raises ValueError naming
    the splits there are.
    """
    members = list(members)
    if split is None and not all(_KNOWN.intersection(words) for words in members):
        return None
    found = {word for words in members for word in words}
    for name in SPLITS.get(split or "train", (split,)):
        if name in found:
            return name
    if split is None:
        return None
    there = ", ".join(sorted(found & _KNOWN)) or "none"
    raise ValueError(f"{where} has no split {split!r}; there is {there}")
