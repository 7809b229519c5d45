"""The text of a call: prompts or embeddings, and what guidance leads away from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from conditioning.text import TextEmbedding
from pipelines.arguments import check_prompts, text_rows, unknown_words

if TYPE_CHECKING:
    from pipelines.text_to_image import Pipeline

Halves = tuple[TextEmbedding | None, TextEmbedding | None]


def count_rows(pipe: Pipeline, prompts: list[str] | None, embeds: TextEmbedding | None, image: Tensor | None) -> int:
    """How many prompts there are; without text, how many images. Raises ValueError."""
    if pipe.text_width is None:
        if prompts is not None or embeds is not None:
            raise ValueError("this cascade takes no text; leave out prompt and prompt_embeds")
        return 1 if image is None else len(image)
    if prompts is not None and embeds is not None and pipe.upscaler is None:
        raise ValueError("give either prompt or prompt_embeds, not both")
    if prompts is None and embeds is None:
        raise ValueError("give prompt or prompt_embeds: what to draw")
    rows = len(prompts or ())
    return rows if embeds is None else len(text_rows(embeds, "prompt_embeds", pipe.text_width, rows or None))


def both_halves(
    pipe: Pipeline,
    prompts: list[str] | None,
    negative: str | Sequence[str] | None,
    embeds: TextEmbedding | None,
    negative_embeds: TextEmbedding | None,
    rows: int,
) -> Halves:
    """Both halves of guidance, `rows` rows each; nothing for a cascade without text."""
    if pipe.text_width is None:
        return None, None
    if negative is not None and negative_embeds is not None and pipe.upscaler is None:
        raise ValueError("give either negative_prompt or negative_prompt_embeds, not both")
    if negative_embeds is not None:
        negative_embeds = text_rows(negative_embeds, "negative_prompt_embeds", pipe.text_width, rows)
    elif pipe.text_encoder is None and embeds is not None and embeds.padding == "kept":
        raise ValueError("give negative_prompt_embeds too: no text is a prompt of its own here, and nothing encodes it")
    with pipe.encoder_at_work():
        text = embeds if embeds is not None else encode(pipe, prompts or [])
        return text, negative_embeds if negative_embeds is not None else away(pipe, negative, rows)


def encode(pipe: Pipeline, prompts: list[str]) -> TextEmbedding:
    """Warns of words that the cascade was not trained on."""
    if pipe.text_encoder is None:
        raise ValueError("this cascade has no text encoder; give prompt_embeds instead of a prompt")
    unknown = [] if pipe.vocabulary is None else unknown_words(prompts, pipe.vocabulary)
    if unknown:
        warnings.warn(
            f"not trained on {', '.join(map(repr, unknown))}, so the picture cannot show it; "
            f"the words of this model are: {', '.join(pipe.vocabulary or [])}",
            stacklevel=2,
        )
    return pipe.text_encoder(prompts)


def away(pipe: Pipeline, negative: str | Sequence[str] | None, rows: int) -> TextEmbedding:
    """What guidance leads away from, for `rows` prompts: the negative prompts, and no text in place of an empty one.

    What no text is, the cascade was trained with: T5("") in DeepFloyd IF's, nothing at all in others.
    """
    prompts = [""] * rows if negative is None else negatives(negative, rows)
    said = [prompt for prompt in prompts if prompt.strip()]
    if not said:
        if pipe.text_encoder is None:
            return TextEmbedding.null(rows, pipe.text_width or 0, device=pipe.device)
        return pipe.text_encoder.null(rows)
    embedded = encode(pipe, said)
    if len(said) == rows or pipe.text_encoder is None:
        return embedded
    null, parts = pipe.text_encoder.null(1), (embedded[i : i + 1] for i in range(len(said)))
    return TextEmbedding.cat([next(parts) if prompt.strip() else null for prompt in prompts])


def negatives(negative: str | Sequence[str], rows: int) -> list[str]:
    """One per prompt. Raises TypeError or ValueError."""
    found = check_prompts(negative, "negative_prompt", may_be_empty=True)
    if len(found) not in (1, rows):
        raise ValueError(f"negative_prompt has {len(found)} entries for {rows} prompts; give one, or one each")
    return found * (rows // len(found))
