"""Attention over image positions and text.

Shapes: B batch, C channels, H W pixels, L = H W, N text tokens, D text width, h heads, d channels per head.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, softmax

from cascade.networks.blocks import group_norm


@dataclass(frozen=True)
class TextFeatures:
    """What a network reads from a text embedding: computed once per prompt, not once per step.

    keys_values: one (key, value) pair per attention layer in the order they run, each B h N d.
    mask: B N bool, True where a token may be attended to, or None if every token may.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor | None

    def __getitem__(self, rows: slice) -> "TextFeatures":
        pairs = tuple((k[rows], v[rows]) for k, v in self.keys_values)
        return TextFeatures(pairs, None if self.mask is None else self.mask[rows])


class TokenGroupNorm(nn.GroupNorm):
    """A group norm over tokens B N D: a group's statistics are those of its channels over all tokens, so it is for text
    of one length whose padding is kept.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Attention from pixels to text and, unless ``cross_only``, to pixels, in one softmax (Imagen, appendix B.1).

    The text keys and values are normalized and projected by `text_keys_values`, and stand before the image's.
    ``text_norm`` is "layer" (each token by itself) or "group" (`TokenGroupNorm`); ``bias`` is that of queries, keys and
    values. The output projection starts at zero, so a new network starts as its convolutions alone.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        text_width: int | None,
        *,
        cross_only: bool = False,
        text_norm: Literal["layer", "group"] = "layer",
        bias: bool = False,
        groups: int = 32,
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"attention width {hidden} is not divisible by {heads} heads")
        if cross_only and text_width is None:
            raise ValueError("attention to text alone needs a text width")
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.query = nn.Linear(channels, hidden, bias=bias)
        self.key_value = None if cross_only else nn.Linear(channels, 2 * hidden, bias=bias)
        if text_width is not None:
            self.text_norm = nn.LayerNorm(text_width) if text_norm == "layer" else TokenGroupNorm(32, text_width)
            self.text_key_value = nn.Linear(text_width, 2 * hidden, bias=bias)
        self.out = nn.Linear(hidden, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B L hd -> B h L d

    def text_keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B h N d each) of tokens B N D."""
        key, value = self.text_key_value(self.text_norm(tokens)).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        """x B C H W; text as from `text_keys_values`; mask B N."""
        height, width = x.shape[-2:]
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # B C H W -> B L C
        query = self._split(self.query(tokens))
        bias = None
        if self.key_value is None:
            if text is None:
                raise ValueError("attention to text alone needs text")
            key, value = text
        else:
            key, value = (self._split(part) for part in self.key_value(tokens).chunk(2, dim=-1))
            if text is not None:
                key, value = torch.cat([text[0], key], dim=2), torch.cat([text[1], value], dim=2)
        if mask is not None and text is not None:
            visible = mask if self.key_value is None else nn.functional.pad(mask, (0, height * width), value=True)
            bias = visible[:, None, None, :]
        out = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out = self.out(out.transpose(1, 2).flatten(2))  # B h L d -> B L C
        return x + out.transpose(1, 2).unflatten(2, (height, width))


class TextPool(nn.Module):
    """Attention pooling of text tokens into one vector, normalized first (Imagen, section 2.3)."""

    def __init__(self, text_width: int, out_width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_width)
        self.score = nn.Linear(text_width, heads, bias=False)
        self.out = nn.Linear(heads * text_width, out_width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens B N D, mask B N -> B E."""
        tokens = self.norm(tokens)
        score = self.score(tokens).float().masked_fill(~mask[..., None], float("-inf"))
        weight = softmax(score, dim=1).to(tokens.dtype)  # B N h
        return self.out(torch.einsum("bnh,bnd->bhd", weight, tokens).flatten(1))


class TextAttentionPool(nn.Module):
    """Attention pooling by a query of its own: the tokens' mean and a learned vector make one more token, which attends
    to all (CLIP's pooling, section 2.4, over text); a norm before and after.
    """

    def __init__(self, text_width: int, out_width: int, heads: int) -> None:
        super().__init__()
        if text_width % heads:
            raise ValueError(f"the text width {text_width} is not divisible by the pooling's {heads} heads")
        self.heads = heads
        self.norm = nn.LayerNorm(text_width)
        self.position = nn.Parameter(torch.randn(1, text_width) * text_width**-0.5)
        self.query = nn.Linear(text_width, text_width)
        self.key_value = nn.Linear(text_width, 2 * text_width)
        self.out = nn.Linear(text_width, out_width)
        self.out_norm = nn.LayerNorm(out_width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens B N D, mask B N -> B E."""
        tokens = self.norm(tokens)
        weight = mask[..., None].to(tokens.dtype)  # B N 1
        mean = (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        pooled = mean + self.position  # B 1 D
        tokens = torch.cat([pooled, tokens], dim=1)
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B N hd -> B h N d
            for x in (self.query(pooled), *self.key_value(tokens).chunk(2, dim=-1))
        )
        visible = nn.functional.pad(mask, (1, 0), value=True)[:, None, None, :]
        out = scaled_dot_product_attention(query, key, value, attn_mask=visible)  # B h 1 d
        return self.out_norm(self.out(out.flatten(1)))
