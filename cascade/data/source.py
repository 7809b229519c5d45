"""Where training examples come from: one map-style interface, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cascade.data.order import permutation

if TYPE_CHECKING:
    from PIL.Image import Image

# The names under which a table, a JSON file or a dataset may have the caption; of several, the first counts.
CAPTION_NAMES = ("text", "caption", "prompt")


class Unusable(ValueError):
    """An item that cannot be trained on. The message says why; training takes another in its place and counts it."""


class ImageSource(Protocol):
    """Images with captions, by index. It can be pickled, and what it reads, it reads when asked.

    ``name`` always works. ``captions`` and ``image`` raise Unusable where an item lacks one or it cannot be read.
    """

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call the item in messages, such as the path of its file."""
        ...

    def captions(self, index: int) -> list[str]:
        """At least one, none of them empty; a sample shows one of them."""
        ...

    def image(self, index: int) -> bytes | Image:
        """The file as it is, or a picture."""
        ...


def open_source(data: str | Path, split: str | None = None) -> ImageSource:
    """The source behind a path or an id.

    data: a folder of images; a tar shard or a folder of them; scenes that render_collection wrote; what `datasets`
    saved; or the hub id of a dataset. split: a part of it by name, such as "train"; None is the training part where
    there are several. Raises ValueError or OSError saying what was looked for.
    """
    path = Path(data).expanduser()
    if path.is_dir() and any(path.glob("images-*.npy")):
        from cascade.data.toybox.source import ToyboxSource

        return ToyboxSource(path)
    if (path.is_dir() and any(path.rglob("*.tar"))) or (path.is_file() and ".tar" in path.suffixes):
        from cascade.data.tar import TarSource

        return TarSource(path, split)
    if path.is_dir() and not (path / "dataset_info.json").is_file() and not (path / "dataset_dict.json").is_file():
        from cascade.data.folder import FolderSource

        return FolderSource(path, split)
    if not path.exists() and (isinstance(data, Path) or data.startswith((".", "~", "/")) or data.count("/") != 1):
        raise FileNotFoundError(
            f"no folder {str(data)!r} (looked for {path.absolute()}); check the path. A dataset on the hub has an id "
            "of the form 'owner/name'"
        )
    from cascade.data.hub import open_dataset

    return open_dataset(str(path if path.exists() else data), split)


class Part:
    """Items start .. stop - 1 of a source, after all of its items were put in a random order."""

    def __init__(self, source: ImageSource, start: int, stop: int, seed: int) -> None:
        self.source, self.start, self.stop = source, start, stop
        self._order = permutation(len(source), seed)

    def __len__(self) -> int:
        return self.stop - self.start

    def _index(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self._order(self.start + index)

    def name(self, index: int) -> str:
        return self.source.name(self._index(index))

    def captions(self, index: int) -> list[str]:
        return self.source.captions(self._index(index))

    def image(self, index: int) -> bytes | Image:
        return self.source.image(self._index(index))


def hold_out(source: ImageSource, count: int, seed: int = 0) -> tuple[Part, Part]:
    """(training, validation): ``count`` items chosen by ``seed`` are kept from training."""
    if not 0 < count < len(source):
        raise ValueError(f"held_out is {count}, and there are {len(source)} items: expected 1 to {len(source) - 1}")
    return Part(source, count, len(source), seed), Part(source, 0, count, seed)


def checked_captions(value: Any) -> list[str]:
    """What stands where captions are expected, a string or a list of them, without the empty ones.

    Raises Unusable if none is left.
    """
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence) or not all(isinstance(caption, str) for caption in value):
        raise Unusable(f"the caption is {value!r:.100}; expected text, or a list of texts")
    captions = [caption.strip() for caption in value if caption.strip()]
    if not captions:
        raise Unusable("the caption is empty")
    try:
        "".join(captions).encode()
    except UnicodeEncodeError:
        raise Unusable("the caption is no valid Unicode; save it as UTF-8") from None
    return captions


def find_caption(record: Any) -> Any:
    """The value of the first of CAPTION_NAMES that a record (keys in any case) has, else None."""
    if not isinstance(record, dict):
        return None
    names = {key.strip().lower(): key for key in record if isinstance(key, str)}
    return next((record[names[name]] for name in CAPTION_NAMES if name in names), None)
