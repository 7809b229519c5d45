"""Text-only pre-training of a small T5 by span corruption (T5 paper, section 3.1.4; Imagen freezes such a T5).

The lines of a step are packed: several share a row, and a block-diagonal mask keeps each to itself, so that hardly any
compute goes into padding. Shapes: R rows, N input tokens, M target tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from conditioning.text import TextEncoder
from conditioning.tokenizer import EOS, PAD, Tokenizer

if TYPE_CHECKING:
    from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration

IGNORED = -100  # a target position that counts for nothing, as torch's cross entropy has it
# How far around a token is to be read off its encoding. A diffusion model attends to encodings as to a set, without
# positions: what stands beside a word it can only know from the word's own.
OFFSETS = (-4, -3, -2, -1, 1, 2, 3, 4)


def corrupt(
    ids: Sequence[int],
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    *,
    noise_density: float = 0.15,
    mean_span: float = 3.0,
) -> tuple[list[int], list[int]]:
    """Replace random spans by sentinels: (input ids, target ids), both ending in EOS.

    input: the text with span k replaced by sentinel k. target: sentinel k followed by span k, for every k. At least one
    token is masked. T5 lets a text begin with a kept token and end with a masked one, which is harmless in 512 packed
    tokens; in a caption with a single span it would always mask the end, so here both ends may be either.
    """
    length = len(ids)
    if length == 0:
        raise ValueError("an empty line cannot be corrupted")
    noise = min(max(round(length * noise_density), 1), max(length - 1, 1))
    kept = length - noise
    spans = min(max(round(noise / mean_span), 1), kept + 1)
    masked = _parts(noise, spans, rng)
    # Between two spans lies at least one kept token; before the first and after the last there may be none.
    gaps = _parts(kept + 2, spans + 1, rng)
    gaps[0] -= 1
    gaps[-1] -= 1
    inputs: list[int] = []
    targets: list[int] = []
    at = 0
    for k in range(spans):
        inputs += ids[at : at + gaps[k]]
        at += gaps[k]
        inputs.append(tokenizer.sentinel(k))
        targets.append(tokenizer.sentinel(k))
        targets += ids[at : at + masked[k]]
        at += masked[k]
    inputs += ids[at:]
    return [*inputs, EOS], [*targets, EOS]


def _parts(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """`total` as `count` positive parts in order, all ways equally likely."""
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [total]))).tolist()


@dataclass(frozen=True)
class SmallT5:
    """The shape of the T5 to pre-train: v1.1's gated GELU, embeddings tied; no dropout, as in v1.1's pre-training."""

    d_model: int = 192
    encoder_layers: int = 4
    decoder_layers: int = 1  # thrown away after pre-training
    heads: int = 4
    d_kv: int = 48
    d_ff: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")

    def build(self, vocab_size: int) -> T5ForConditionalGeneration:
        """Random weights from torch's global generator; but the encoder's heads begin in turn by looking one to the
        left, one to the right, leftwards and rightwards.

        T5's position biases begin near 0 and go about a learning rate a step, too slowly for a short run: after one of
        1,400 steps the largest was 0.25, and encodings did not tell the order of the words.
        """
        from transformers.models.t5.configuration_t5 import T5Config
        from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration

        # Tied: v1.1's separate output matrix starts with unit variance, which at this width means logits of size 14.
        common: dict[str, Any] = {"tie_word_embeddings": True, "decoder_start_token_id": PAD}
        config = T5Config(
            vocab_size=vocab_size,
            d_model=self.d_model,
            num_layers=self.encoder_layers,
            num_decoder_layers=self.decoder_layers,
            num_heads=self.heads,
            d_kv=self.d_kv,
            d_ff=self.d_ff,
            feed_forward_proj="gated-gelu_pytorch_tanh",  # v1.1's "gated-gelu" in one kernel
            dropout_rate=0.0,
            pad_token_id=PAD,
            eos_token_id=EOS,
            **common,
        )
        model = T5ForConditionalGeneration(config)
        bias = model.encoder.get_parameter("block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        with torch.no_grad():
            bias.copy_(_looking_around(bias.shape[0] // 2)[:, torch.arange(self.heads) % 4])
        return model


def _looking_around(distances: int) -> Tensor:
    """(2 x distances, 4): biases of the buckets, to the left in order of distance from 0 on and then to the right."""
    bias = torch.zeros(2, distances, 4)
    bias[0, 1, 0] = bias[1, 1, 1] = 4.0
    away = -0.5 * torch.arange(distances)
    for side in (0, 1):
        bias[side, :, 2 + side] = away
        bias[1 - side, :, 2 + side] = away - 4.0
    bias[0, 0] = 0.0  # the token itself, which is neither
    return bias.flatten(0, 1)


@dataclass(frozen=True)
class Packed:
    """A step's lines in rows. ids are int64; `lines` number the line a token belongs to, 0 for padding."""

    inputs: Tensor  # R N
    input_lines: Tensor  # R N
    decoder_inputs: Tensor  # R M, the targets of each line one later, PAD first
    targets: Tensor  # R M, IGNORED where padded
    target_lines: Tensor  # R M

    def to(self, device: torch.device) -> Packed:
        return Packed(*(getattr(self, f.name).to(device) for f in fields(self)))


def pack(pairs: Sequence[tuple[list[int], list[int]]], length: int) -> Packed:
    """Pack (input ids, target ids) in order into rows of at most `length` inputs and as many targets."""
    rows: list[list[int]] = [[]]  # the numbers of the pairs in each row
    n = m = 0
    for i, (inputs, targets) in enumerate(pairs):
        n, m = n + len(inputs), m + len(targets)
        if rows[-1] and max(n, m) > length:
            rows.append([])
            n, m = len(inputs), len(targets)
        rows[-1].append(i)
    return Packed(
        inputs=_stack([[t for i in row for t in pairs[i][0]] for row in rows], PAD),
        input_lines=_stack([[i + 1 for i in row for _ in pairs[i][0]] for row in rows], 0),
        decoder_inputs=_stack([[t for i in row for t in [PAD, *pairs[i][1][:-1]]] for row in rows], PAD),
        targets=_stack([[t for i in row for t in pairs[i][1]] for row in rows], IGNORED),
        target_lines=_stack([[i + 1 for i in row for _ in pairs[i][1]] for row in rows], 0),
    )


def _mask(queries: Tensor, keys: Tensor, causal: bool = False) -> Tensor:
    """Additive mask (R, 1, Q, K): attend within a line only. It is finite, so a row of padding alone is no NaN."""
    allowed = queries[:, :, None] == keys[:, None, :]
    if causal:
        allowed = allowed.tril()
    bias = torch.zeros(allowed.shape, device=allowed.device)
    return bias.masked_fill(~allowed, torch.finfo(bias.dtype).min)[:, None]


class SpanCorruption:
    """A training task, for one process: the lines of a batch are packed together. Batches are a pure function of
    (seed, step).

    captions, plain_text: two lists of lines; a step takes `caption_share` of its batch from the captions, rounded to
    whole lines, all drawn with replacement. A line longer than `max_length` tokens gives a random window of it.
    """

    def __init__(
        self,
        captions: Sequence[str],
        plain_text: Sequence[str],
        tokenizer: Tokenizer,
        shape: SmallT5 | None = None,
        *,
        seed: int = 0,
        batch_size: int = 64,
        caption_share: float = 0.8,
        max_length: int = 40,
    ) -> None:
        if not 0 <= caption_share <= 1:
            raise ValueError(f"caption_share is {caption_share}; expected 0 to 1")
        if batch_size < 1 or max_length < 2:
            raise ValueError(f"batch_size is {batch_size}, max_length {max_length}; expected at least 1 and 2")
        self.tokenizer = tokenizer
        self.seed, self.batch_size, self.max_length = seed, batch_size, max_length
        self._captions = _encode(captions, tokenizer)
        self._plain = _encode(plain_text, tokenizer)
        self._from_captions = round(batch_size * caption_share)
        if self._from_captions and not self._captions:
            raise ValueError(f"caption_share is {caption_share} and there are no captions; give some, or set it to 0")
        if self._from_captions < batch_size and not self._plain:
            raise ValueError(f"caption_share is {caption_share} and there is no plain text; give some, or set it to 1")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = (shape or SmallT5()).build(tokenizer.size)
            width = self.model.config.d_model
            self.neighbours = torch.nn.Linear(width, len(OFFSETS) * width, bias=False)
            torch.nn.init.normal_(self.neighbours.weight, std=0.01)
            self.model.add_module("neighbours", self.neighbours)  # trained with it, and of no use after

    def batch(self, step: int, rows: range | None = None) -> Packed:
        """The packed lines of a step, on the CPU. Raises ValueError for a part of its rows."""
        if rows is not None and len(rows) != self.batch_size:
            raise ValueError("span corruption packs a whole batch: train in one process, without accumulation")
        rng = np.random.default_rng([self.seed, step])
        pairs: list[tuple[list[int], list[int]]] = []
        for i in range(self.batch_size):
            lines = self._captions if i < self._from_captions else self._plain
            line = lines[rng.integers(len(lines))]
            begin = int(rng.integers(max(len(line) - self.max_length, 0) + 1))
            pairs.append(corrupt(line[begin : begin + self.max_length], self.tokenizer, rng))
        return pack(pairs, 2 * self.max_length)

    def loss(self, batch: Packed) -> tuple[Tensor, dict[str, float]]:
        """The mean cross entropies, in nats, of the target tokens; of reading each input token off its own encoding
        with the tied embeddings; and of reading those around it off the same, at OFFSETS. Added; and each beside how
        many targets there were.

        Without the second, words that may stand in each other's place get one vector; without the third, nothing asks
        a word's to say which words it belongs to. The encoder is for telling a diffusion model what was said of what.
        """
        count = float((batch.targets != IGNORED).sum())
        batch = batch.to(self.model.shared.weight.device)
        encoded = self.model.encoder(
            input_ids=batch.inputs, attention_mask=_mask(batch.input_lines, batch.input_lines)
        ).last_hidden_state  # R N D
        decoded = self.model.decoder(
            input_ids=batch.decoder_inputs,
            attention_mask=_mask(batch.target_lines, batch.target_lines, causal=True),
            encoder_hidden_states=encoded,
            encoder_attention_mask=_mask(batch.target_lines, batch.input_lines),
            use_cache=False,
        ).last_hidden_state  # R M D
        hidden = decoded[batch.targets != IGNORED] * self.model.config.d_model**-0.5  # tied embeddings: T5's scale
        spans = F.cross_entropy(self.model.lm_head(hidden).float(), batch.targets[batch.targets != IGNORED])
        there = batch.input_lines > 0
        kept = F.cross_entropy(self.model.lm_head(encoded[there]).float(), batch.inputs[there])
        around = self._around(encoded, batch.inputs, batch.input_lines)
        losses = {"span_loss": spans, "kept_loss": kept, "around_loss": around}
        return spans + kept + around, {"target_tokens": count} | {name: loss.item() for name, loss in losses.items()}

    def _around(self, encoded: Tensor, inputs: Tensor, lines: Tensor) -> Tensor:
        """encoded R N D, inputs and lines R N. The mean over OFFSETS; 0 where no line has two tokens."""
        told = self.neighbours(encoded).chunk(len(OFFSETS), dim=-1)
        losses = []
        for offset, telling in zip(OFFSETS, told, strict=True):
            if abs(offset) >= lines.shape[1]:
                continue
            here = slice(max(0, -offset), lines.shape[1] - max(0, offset))
            there = slice(max(0, offset), lines.shape[1] - max(0, -offset))
            same = (lines[:, here] == lines[:, there]) & (lines[:, here] > 0)
            if same.any():
                logits = self.model.lm_head(telling[:, here][same]).float()
                losses.append(F.cross_entropy(logits, inputs[:, there][same]))
        return torch.stack(losses).mean() if losses else encoded.sum() * 0

    def export(self, folder: str | Path) -> None:
        """Write the encoder (bf16 safetensors) and the tokenizer; TextEncoder.from_pretrained loads them."""
        from transformers.models.t5.configuration_t5 import T5Config
        from transformers.models.t5.modeling_t5 import T5EncoderModel

        encoder = T5EncoderModel(T5Config.from_dict(self.model.config.to_dict()))
        weights = {k: v for k, v in self.model.state_dict().items() if k.startswith(("shared.", "encoder."))}
        encoder.load_state_dict(weights)
        TextEncoder(encoder, self.tokenizer).to(dtype=torch.bfloat16).save_pretrained(folder)


def _encode(lines: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    return [ids for ids in map(tokenizer.ids, lines) if ids]


def _stack(rows: list[list[int]], fill: int) -> Tensor:
    """Rows of different lengths -> (B, longest), int64."""
    stacked = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        stacked[i, : len(row)] = row
    return torch.from_numpy(stacked)
