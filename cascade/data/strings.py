"""Many strings in two arrays: a million names take their bytes, not a million objects.

Worker processes share such arrays with their parent for as long as they live; a list of strings they copy, page by
page, by counting references.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class PackedStrings(Sequence[str]):
    """A sequence of strings that does not change."""

    def __init__(self, strings: Iterable[str]) -> None:
        data = bytearray()
        ends = [0]
        for string in strings:
            data += string.encode("utf-8", "surrogateescape")  # a file's name may be any bytes
            ends.append(len(data))
        self._data = np.frombuffer(bytes(data), np.uint8)
        self._ends = np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        begin, end = self._ends[index % len(self)], self._ends[index % len(self) + 1]
        return self._data[begin:end].tobytes().decode("utf-8", "surrogateescape")
