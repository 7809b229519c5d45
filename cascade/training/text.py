"""The text of a run: what embeds its captions and its sample prompts, and what stands for no text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conditioning.captions import Preprocessing
from conditioning.embedding_cache import HEADER, EmbeddingCache, EncoderIdentity, read_header
from conditioning.text import Padding, TextEmbedding, TextEncoder
from weights.store import MANIFEST, read_manifest

Encode = Callable[[list[str]], TextEmbedding]
TOKENS = ("max_length", "padding", "preprocessing")  # what an embedding depends on beside the encoder


@dataclass(frozen=True)
class TextConfig:
    """encoder: a T5, or a cascade with one, as a folder or hub id, that encodes captions while training; embeddings:
    the folder that `cascade embed` filled, to read instead. With both, they must belong together, and the encoder is
    for sample prompts. null_prompt: what is said for no text (IF: ""); None for zeros.

    A config file need not say what the cache, or the cascade that the encoder is of, says already.
    """

    encoder: str | None = None
    embeddings: str | None = None
    revision: str | None = None
    max_length: int = 128
    padding: Padding = "trimmed"
    preprocessing: Preprocessing = "none"
    null_prompt: str | None = None

    def __post_init__(self) -> None:
        if self.encoder is None and self.embeddings is None:
            raise ValueError("give an encoder, or the folder of its embeddings")
        if self.encoder is None and self.null_prompt is not None:
            raise ValueError(f"the null prompt {self.null_prompt!r} needs an encoder, beside the embeddings")


@dataclass(frozen=True)
class Text:
    """captions: what embeds those of the data; prompts: any others. null: one row for no text, None for zeros."""

    captions: Encode | EmbeddingCache
    prompts: Encode
    width: int
    null: TextEmbedding | None = None


def load_encoder(config: TextConfig, dtype: torch.dtype | None = None) -> TextEncoder:
    assert config.encoder is not None, "asked for by whoever calls this"
    return TextEncoder.from_pretrained(
        config.encoder,
        dtype=dtype,
        revision=config.revision,
        max_length=config.max_length,
        padding=config.padding,
        preprocessing=config.preprocessing,
        null_prompt=config.null_prompt,
    )


def open_text(config: TextConfig, device: torch.device) -> Text:
    """Raises ValueError or OSError if the encoder or the cache is not there, or if they do not belong together."""
    encoder = None if config.encoder is None else load_encoder(config)
    null = None if encoder is None or config.null_prompt is None else encoder.null(1)
    if config.embeddings is None:
        assert encoder is not None, "TextConfig asks for one of the two"
        return Text(encoder.to(device), encoder, encoder.width, null)
    identity = None if encoder is None else EncoderIdentity.of(encoder, str(config.encoder), config.revision)
    cache = EmbeddingCache(config.embeddings, identity)
    for name in TOKENS:
        stored, wanted = getattr(cache.identity, name), getattr(config, name)
        if stored != wanted:
            raise ValueError(f"{cache.folder} was embedded with {name} {stored!r}, and text.{name} is {wanted!r}")

    def cached(prompts: list[str]) -> TextEmbedding:
        for prompt in prompts:
            if prompt not in cache:
                raise ValueError(
                    f"{cache.folder} has no embedding of the prompt {prompt!r}: say in text.encoder what embeds it, or "
                    "take one of the captions"
                )
        return cache(prompts)

    return Text(cache, encoder or cached, cache.identity.width, null)


def completed(text: Mapping[str, Any]) -> dict[str, Any]:
    """A [text] table with what the cache and the cascade say, where it leaves that open."""
    given, known = dict(text), {}
    if embeddings := given.get("embeddings"):
        folder = Path(str(embeddings)).expanduser()
        if (folder / HEADER).is_file():
            made_by, _ = read_header(folder)
            known = {name: getattr(made_by, name) for name in TOKENS}
    stored = of_cascade(str(given["encoder"])) if given.get("encoder") else None
    if stored is not None:
        known |= {name: stored[name] for name in (*TOKENS, "null_prompt") if stored.get(name) is not None}
        if stored.get("model"):
            given |= {"encoder": stored["model"], "revision": stored.get("revision")}
    return known | given


def of_cascade(name: str) -> dict[str, Any] | None:
    """What a cascade's manifest says of its text encoder; None for a folder that is no cascade, and for a hub id.

    Raises ValueError if it has none.
    """
    folder = Path(name).expanduser()
    if not (folder / MANIFEST).is_file():
        return None
    stored = read_manifest(folder)["text_encoder"]
    if stored is None:
        raise ValueError(f"{name} is a cascade without a text encoder")
    return stored
