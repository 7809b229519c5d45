"""The text of a whole run, embedded before the first image is drawn, so that the encoder can then be set aside.

The prompts of a group are embedded together. What an embedding is, to the last bit, depends on what it is embedded
with, and groups stay the same whatever is missing and however many processes there are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from conditioning.captions import preprocess
from conditioning.text import TextEmbedding, TextEncoder
from pipelines.text_to_image import Pipeline

Rows = dict[str, TextEmbedding]  # one row for each prompt


@dataclass(frozen=True)
class Texts:
    """groups: for each group of prompts, its embeddings, on the CPU; prompts that the encoder refuses are not in them.
    away: one row, of what guidance leads away from."""

    groups: list[Rows]
    away: TextEmbedding


def embed(
    encoder: TextEncoder,
    groups: Sequence[Sequence[str]],
    negative_prompt: str | None,
    refused: Callable[[str, Exception], None],
) -> Texts:
    """Embed groups of prompts, each distinct one once. refused: told of a prompt that cannot be embedded, and why.

    Warns once of prompts that are cut, as they are too long for the encoder.
    """
    seen: dict[tuple[str, ...], Rows] = {}
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the prompt has .* tokens", UserWarning)  # a line for each that is cut
        for group in groups:
            key = tuple(dict.fromkeys(group))
            if key not in seen:
                seen[key] = _rows(encoder, key, refused)
            found.append(seen[key])
    _warn_of_cut_prompts(encoder, dict.fromkeys(prompt for group in groups for prompt in group))
    away = encoder([negative_prompt]) if negative_prompt and negative_prompt.strip() else encoder.null(1)
    return Texts(found, away.to("cpu"))


def _warn_of_cut_prompts(encoder: TextEncoder, prompts: Collection[str]) -> None:
    ids = encoder.tokenizer.ids
    cut = [prompt for prompt in prompts if len(ids(preprocess(prompt, encoder.preprocessing))) >= encoder.max_length]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(prompts)} prompts are longer than the {encoder.max_length} tokens that the model "
            f"reads, and are cut; the first is {cut[0]!r:.100}",
            stacklevel=3,
        )


def _rows(encoder: TextEncoder, prompts: Sequence[str], refused: Callable[[str, Exception], None]) -> Rows:
    try:
        embeddings = encoder(prompts).to("cpu")
    except (ValueError, TypeError) as error:
        if len(prompts) == 1:
            refused(prompts[0], error)
            return {}
        return {prompt: row for one in prompts for prompt, row in _rows(encoder, [one], refused).items()}
    return {prompt: embeddings[i : i + 1] for i, prompt in enumerate(prompts)}


@contextmanager
def encoder_set_aside(pipe: Pipeline, *, keep: bool) -> Iterator[None]:
    """Without its text encoder a pipeline draws from embeddings. keep: it comes back afterwards, from the CPU."""
    encoder = pipe.text_encoder
    pipe.text_encoder = None
    if encoder is None or not keep:
        yield
        return
    device = encoder.device
    encoder.to("cpu")
    try:
        yield
    finally:
        pipe.text_encoder = encoder.to(device)
