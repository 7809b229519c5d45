"""`cascade embed`: the captions of a data set to a cache of text embeddings."""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pipelines.process import Process

if TYPE_CHECKING:
    from torch import Tensor

    from cascade.data.skipped import Skipped
    from cascade.data.source import ImageSource
    from conditioning.embedding_cache import EncoderIdentity, Key
    from conditioning.text import TextEncoder

ITEMS_PER_SHARD = 1024
HALF_WRITTEN = re.compile(r"\.(\d{5,}|cache)\.(?:safetensors|json)\.\d+\.saving")  # by atomic_write


def embed(
    data: tyro.conf.Positional[str],
    text_encoder: str,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    split: str | None = None,
    revision: str | None = None,
    max_length: int | None = None,
    padding: Literal["trimmed", "kept"] | None = None,
    max_skipped: float | None = None,
    batch_size: int = 32,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Embed all captions of a data set into a folder that training reads; run again, it adds what is missing.

    To share the work among processes: torchrun --nproc-per-node 4 -m pipelines.cli embed DATA ..., or accelerate launch
    -m pipelines.cli embed DATA ...

    Args:
        data: A folder of images with captions, tar shards, or the hub id of a dataset.
        text_encoder: A folder or a hub id: a T5, or a cascade with one.
        output: The folder to write.
        split: The part of the data; the training split if left out.
        revision: Of the text encoder on the hub.
        max_length: Tokens of a caption, the end included; a cascade's own if left out, else 128.
        padding: Whether what is beyond a caption is kept, as DeepFloyd IF needs it; a cascade's own, else trimmed.
        max_skipped: The share of items that may lack a caption; 0.25 if left out.
        batch_size: How many captions to embed at a time.
        device: cuda if there is one, else cpu.
        dtype: What the encoder computes in; embeddings are stored in bfloat16.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size is {batch_size}; expected at least 1")

    from cascade.data.source import open_source

    source = open_source(data, split)
    process = Process.from_environment()
    encoder, identity = _load(text_encoder, revision, max_length, padding, dtype, process.device(device))
    with listing_skipped():
        result = build_cache(source, encoder, identity, output, process, batch_size=batch_size, max_skipped=max_skipped)
    share = "" if process.world == 1 else f" (process {process.rank} of {process.world})"
    print(f"{output}{share}: {result.made} captions embedded, {result.kept} were there")
    if result.cut:
        print(f"cut to {identity.max_length} tokens, which --max-length sets: {_counted(result.cut, 'caption')}")
    if result.skipped:
        first = result.skipped[0]
        print(f"without a caption: {_counted(len(result.skipped), 'item')}, the first {first.name}: {first.reason}")


@contextmanager
def listing_skipped() -> Iterator[None]:
    """A TooManySkipped is told with the first of the items, a line each, before it ends the command with one line."""
    from cascade.data.skipped import TooManySkipped

    try:
        yield
    except TooManySkipped as error:
        print(f"\n{error.listed()}", file=sys.stderr)
        raise


@dataclass(frozen=True)
class Embedded:
    """made, kept: how many of this process's captions were embedded, and were there. cut: those of `made` that were too
    long. skipped: the items without a caption, of the whole source."""

    made: int
    kept: int
    cut: int
    skipped: list[Skipped]


def build_cache(
    source: ImageSource,
    encoder: TextEncoder,
    identity: EncoderIdentity,
    folder: str | Path,
    process: Process | None = None,
    *,
    batch_size: int = 32,
    max_skipped: float | None = None,
) -> Embedded:
    """Embed the captions of a source that a cache lacks; make the cache where there is none.

    Each shard is written at once, so a process killed at any time leaves whole shards, and the next run makes the same
    ones that are missing. Process r of R makes the shards r, r + R, ... Raises ValueError if the folder is another
    encoder's, if too many items lack a caption, or if an embedding is not finite.
    """
    from tqdm import tqdm

    from conditioning.embedding_cache import HEADER, pack_header, pack_shard, read_header, shard_path
    from weights.store import atomic_write

    folder, process = Path(folder), process or Process()
    if (folder / HEADER).is_file():
        made_by, shards = read_header(folder)
        identity.check(made_by, folder)
    elif folder.is_dir() and any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds files, and no {HEADER} that says what made them; choose another folder")
    else:
        shards = -(-len(source) // ITEMS_PER_SHARD)
    wanted, skipped = find_captions(source, shards, process, max_skipped=max_skipped)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / HEADER).is_file():
        try:
            atomic_write(folder / HEADER, pack_header(identity, shards))
        except FileNotFoundError:  # process 0 has tidied up meanwhile
            if not (folder / HEADER).is_file():
                raise
    _remove_half_written(folder, wanted)
    made = kept = cut = 0
    with tqdm(total=sum(map(len, wanted.values())), desc="embedding", unit="caption", disable=None) as progress:
        for shard, captions in wanted.items():
            path = shard_path(folder, shard)
            rows = _read_rows(path)
            missing = {key: caption for key, caption in captions.items() if key not in rows}
            kept += len(captions) - len(missing)
            progress.update(len(captions) - len(missing))
            if missing:
                cut += sum(len(encoder.tokenizer.ids(text)) >= encoder.max_length for text in missing.values())
                for key, row in _encode(encoder, missing, batch_size):
                    rows[key] = row
                    progress.update()
                atomic_write(path, pack_shard(rows))
                made += len(missing)
    return Embedded(made, kept, cut, skipped)


def find_captions(
    source: ImageSource, shards: int = 1, process: Process | None = None, *, max_skipped: float | None = None
) -> tuple[dict[int, dict[Key, str]], list[Skipped]]:
    """The captions of each of this process's shards, by key; and the items that have none. Raises TooManySkipped."""
    from cascade.data.skipped import MAX_SKIPPED, Skipped, TooManySkipped
    from cascade.data.source import Unusable
    from conditioning.embedding_cache import caption_key

    process, limit = process or Process(), MAX_SKIPPED if max_skipped is None else max_skipped
    wanted: dict[int, dict[Key, str]] = {shard: {} for shard in range(process.rank, shards, process.world)}
    skipped = []
    for item in range(len(source)):
        try:
            captions = source.captions(item)
        except Unusable as error:
            skipped.append(Skipped(source.name(item), str(error)))
            continue
        for caption in captions:
            key = caption_key(caption)
            if (shard := key[0] % shards) in wanted:
                wanted[shard][key] = caption
    if len(skipped) > limit * len(source):
        raise TooManySkipped(
            f"{len(skipped):,} of {len(source):,} items have no caption, and --max-skipped is {limit:g}: mend the "
            "data, or allow more",
            skipped,
        )
    return wanted, skipped


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count > 1 else ''}"


def _remove_half_written(folder: Path, shards: Container[int]) -> None:
    """What a killed process left of these shards; others may be writing theirs right now."""
    for path in folder.glob(".*.saving"):
        found = HALF_WRITTEN.fullmatch(path.name)
        if found and (int(found[1]) in shards if found[1].isdigit() else 0 in shards):
            path.unlink(missing_ok=True)


def _read_rows(path: Path) -> dict[Key, tuple[Tensor, int]]:
    """What a shard holds; nothing if there is none, or it is damaged."""
    from conditioning.embedding_cache import Shard

    if not path.is_file():
        return {}
    try:
        shard = Shard(path)
    except ValueError:
        return {}
    keys = [(int(first), int(second)) for first, second in shard.keys]
    return {key: row for key in keys if (row := shard.row(key)) is not None}


def _encode(
    encoder: TextEncoder, captions: dict[Key, str], batch_size: int
) -> Iterator[tuple[Key, tuple[Tensor, int]]]:
    """Captions of about the same length go together. Raises ValueError if an embedding is not finite."""
    import warnings

    import torch

    keys = sorted(captions, key=lambda key: (len(captions[key]), key))
    for begin in range(0, len(keys), batch_size):
        batch = keys[begin : begin + batch_size]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of captions that are cut, which are counted instead
            found = encoder([captions[key] for key in batch]).to("cpu", torch.bfloat16)
        if not found.tokens.isfinite().all():
            raise ValueError(f"the text encoder's output is not finite in {encoder.dtype}; choose --dtype float32")
        for key, tokens, mask in zip(batch, found.tokens, found.mask, strict=True):
            length = int(mask.sum())
            yield key, (tokens[:length] if found.padding == "trimmed" else tokens, length)


def _load(
    name: str, revision: str | None, max_length: int | None, padding: str | None, dtype: str, device: str
) -> tuple[TextEncoder, EncoderIdentity]:
    """An encoder as it is to be used; what is not given is what a cascade's manifest says."""
    import torch

    from cascade.training.text import TextConfig, completed, load_encoder
    from conditioning.embedding_cache import EncoderIdentity

    given = {"revision": revision, "max_length": max_length, "padding": padding}
    said = {key: value for key, value in given.items() if value is not None}
    config = TextConfig(**completed({"encoder": name, **said}))
    assert config.encoder is not None, "it was given"
    encoder = load_encoder(config, getattr(torch, dtype)).to(device)
    return encoder, EncoderIdentity.of(encoder, config.encoder, _commit(config.encoder, config.revision))


def _commit(name: str, revision: str | None) -> str | None:
    """The commit of what was fetched from the hub; None for a folder."""
    if Path(name).expanduser().is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "text_encoder/config.json"):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            path = Path(found)
            return path.parts[path.parts.index("snapshots") + 1]
    return revision
