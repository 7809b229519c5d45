"""Text embeddings on disk: a folder that stands in for the text encoder that filled it.

    cache.json            the encoder: name, revision, fingerprint, width, how it is used; the number of shards
    00000.safetensors     the captions whose key is 0 modulo that number, by key

A caption's key is a hash of it, so one that repeats is stored once, and whoever has a caption knows its shard. Of a
shard's B captions and their T tokens in all it holds: keys (B, 2) int64; ends (B,) int64, where each caption's tokens
end; lengths (B,) int64, how many of them are unmasked; tokens (T, D) bfloat16. What is beyond a caption is stored only
where the padding is "kept". D is the width of the encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from conditioning.captions import Preprocessing
from conditioning.text import Padding, TextEmbedding, TextEncoder

FORMAT = 1
HEADER = "cache.json"
OPEN_SHARDS = 512  # mapped at a time by each process
PROBES = 1024  # numbers of each weight that go into the fingerprint

Key = tuple[int, int]


@dataclass(frozen=True)
class EncoderIdentity:
    """Which embeddings an encoder makes. Two encoders are the same if their weights, max_length, padding and
    preprocessing are; name and revision only say where they came from.

    fingerprint: a hash of the tokenizer and of PROBES numbers of every weight in bfloat16, so it does not depend on the
    type the weights are loaded in, or how their files are split.
    """

    name: str
    revision: str | None
    fingerprint: str
    width: int
    max_length: int
    padding: Padding
    preprocessing: Preprocessing

    @staticmethod
    def of(encoder: TextEncoder, name: str, revision: str | None = None) -> EncoderIdentity:
        digest = hashlib.sha256()
        for size in (encoder.tokenizer.pieces, encoder.tokenizer.extra_ids):
            digest.update(f"{size} ".encode())
        digest.update("\n".join(encoder.tokenizer.words(list(range(encoder.tokenizer.pieces)))).encode())
        for key, weight in sorted(encoder.model.named_parameters()):  # shared ones once
            flat = weight.detach().reshape(-1)
            probes = flat[:: max(1, flat.numel() // PROBES)].to(torch.bfloat16).cpu()
            digest.update(f"{key} {tuple(weight.shape)}".encode() + probes.view(torch.int16).numpy().tobytes())
        fingerprint = digest.hexdigest()[:32]
        use = (encoder.max_length, encoder.padding, encoder.preprocessing)
        return EncoderIdentity(name, revision, fingerprint, encoder.width, *use)

    def __str__(self) -> str:
        at = f" at revision {self.revision}" if self.revision else ""
        return (
            f"{self.name}{at} (fingerprint {self.fingerprint[:8]}, width {self.width}, "
            f"max_length {self.max_length}, padding {self.padding}, preprocessing {self.preprocessing})"
        )

    def check(self, other: EncoderIdentity, folder: Path) -> None:
        """Raises ValueError naming both unless ``other``, which made the cache in ``folder``, makes the same."""
        decisive = ("fingerprint", "max_length", "padding", "preprocessing")
        names = [name for name in decisive if getattr(self, name) != getattr(other, name)]
        if names:
            raise ValueError(
                f"the embeddings in {folder} are those of {other}, and the encoder is {self}: they differ in "
                f"{', '.join(names)}. Use the encoder and settings of the cache, or `cascade embed` into another folder"
            )


def caption_key(caption: str) -> Key:
    """128 bits of the caption's SHA-256, as two integers."""
    first, second = np.frombuffer(hashlib.sha256(caption.encode()).digest()[:16], ">i8").tolist()
    return first, second


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.safetensors"


def pack_header(identity: EncoderIdentity, shards: int) -> str:
    return json.dumps({"format": FORMAT, "shards": shards, "encoder": asdict(identity)}, indent=2) + "\n"


def read_header(folder: Path) -> tuple[EncoderIdentity, int]:
    """Who filled a cache, and the number of its shards. Raises ValueError or OSError."""
    path = folder / HEADER
    if not path.is_file():
        raise FileNotFoundError(f"no {HEADER} in {folder}: expected a folder that `cascade embed` wrote")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, and this version reads {FORMAT}")
        encoder = {field.name: header["encoder"][field.name] for field in fields(EncoderIdentity)}
        return EncoderIdentity(**encoder), int(header["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); `cascade embed` into another folder") from None


def pack_shard(rows: Mapping[Key, tuple[Tensor, int]]) -> bytes:
    """The file that holds these captions: tokens (N, D) bfloat16, and how many of them are unmasked."""
    keys = sorted(rows)
    tokens = [rows[key][0] for key in keys]
    return save(
        {
            "keys": torch.tensor(keys, dtype=torch.int64),
            "ends": torch.tensor([len(own) for own in tokens]).cumsum(0),
            "lengths": torch.tensor([rows[key][1] for key in keys]),
            "tokens": torch.cat(tokens),
        }
    )


class Shard:
    """A shard, mapped: a caption's tokens are read when they are asked for. Raises ValueError if it is damaged."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
            self.keys, self._ends, self._lengths = (
                self._file.get_tensor(name).numpy() for name in ("keys", "ends", "lengths")
            )
            self._tokens = self._file.get_slice("tokens")
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); run the same `cascade embed` again") from error

    def row(self, key: Key) -> tuple[Tensor, int] | None:
        """Tokens (N, D) bfloat16, and how many of them are unmasked; None if the caption is not here."""
        i = int(np.searchsorted(self.keys[:, 0], key[0]))
        while i < len(self.keys) and self.keys[i, 0] == key[0]:
            if self.keys[i, 1] == key[1]:
                return self._tokens[int(self._ends[i - 1]) if i else 0 : int(self._ends[i])], int(self._lengths[i])
            i += 1
        return None


class EmbeddingCache:
    """Called like the text encoder that filled it: captions -> TextEmbedding, in bfloat16, on the CPU.

    encoder: the one expected; None takes any. Raises ValueError or OSError if the folder is no cache, or another
    encoder's.
    """

    def __init__(self, folder: str | Path, encoder: EncoderIdentity | None = None) -> None:
        self.folder = Path(folder)
        self.identity, self.shards = read_header(self.folder)
        if encoder is not None:
            encoder.check(self.identity, self.folder)
        self._open: OrderedDict[int, Shard | None] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": OrderedDict()}  # every process maps its own

    def __contains__(self, caption: str) -> bool:
        return self._find(caption) is not None

    def __call__(self, captions: Sequence[str]) -> TextEmbedding:
        """Raises ValueError naming the first caption that is not there."""
        rows = []
        for caption in captions:
            row = self._find(caption)
            if row is None:
                raise ValueError(
                    f"{self.folder} has no embedding of the caption {caption!r}; run `cascade embed` again on the data "
                    "as it is now, which adds what is missing"
                )
            rows.append(row)
        tokens = pad_sequence([tokens for tokens, _ in rows], batch_first=True)  # B N D
        lengths = torch.tensor([length for _, length in rows])
        return TextEmbedding(tokens, torch.arange(tokens.shape[1]) < lengths[:, None], self.identity.padding)

    def _find(self, caption: str) -> tuple[Tensor, int] | None:
        key = caption_key(caption)
        shard = key[0] % self.shards
        if shard not in self._open:
            path = shard_path(self.folder, shard)
            self._open[shard] = Shard(path) if path.is_file() else None
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        found = self._open[shard]
        return None if found is None else found.row(key)
