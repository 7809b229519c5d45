"""A trained network goes on with another text encoder: what it reads of text is mapped from the old one's by least
squares, so that it starts near where it was, rather than deaf.

B captions, N tokens, D text width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from cascade.networks.attention import Attention, TextPool
from cascade.networks.base import DiffusionNetwork
from conditioning.text import TextEmbedding

# Ridges, as shares of the mean square: of the map, and of the biases, which must not drown what they are added to.
MAP_RIDGE, BIAS_RIDGE = 1e-3, 1e-2


@torch.no_grad()
def carry_over(network: DiffusionNetwork, before: TextEmbedding, after: TextEmbedding) -> float:
    """Change the network's maps of text in place, so that it takes ``after`` nearly for ``before``: B N D each, of the
    same captions by the old and the new encoder, many times D tokens in all.

    Returns the share of the old embeddings' variance, normalized as the network does, that the new ones explain
    linearly. Raises ValueError if they are not of the same tokens, or not of the width that the network reads, or if
    that reads in another way than by layer norms and linear maps.
    """
    if before.tokens.shape != after.tokens.shape or not torch.equal(before.mask, after.mask):
        raise ValueError(
            f"embeddings of shapes {tuple(before.tokens.shape)} and {tuple(after.tokens.shape)}: expected those of the "
            "same captions by two encoders of one width with the same tokenizer"
        )
    width = before.tokens.shape[-1]
    if network.text_width != width:
        raise ValueError(f"embeddings of width {width} for a network that reads {network.text_width or 'no text'}")
    readers = [module for module in network.modules() if isinstance(module, Attention)]
    plain = all(isinstance(reader.text_norm, nn.LayerNorm) for reader in readers)
    if not plain or network.text_projection is not None or not isinstance(network.text_pool, TextPool):
        raise ValueError(
            "this network projects its text, pools it by attention or normalizes it in groups, which cannot be carried "
            "over: train it anew on the other encoder"
        )
    old, new = (layer_norm(e.tokens[e.mask].double(), (width,)) for e in (before, after))
    square = new.T @ new
    mapping = torch.linalg.solve(_ridged(square, MAP_RIDGE), new.T @ old).T  # D D: old ~ mapping @ new
    for reader in readers:
        assert isinstance(reader.text_norm, nn.LayerNorm), "or it was refused"
        reader.text_key_value.weight.copy_(_remap(reader.text_norm, reader.text_key_value.weight, mapping))
    pool = network.text_pool
    heads = len(pool.score.weight)
    pooling = torch.cat([pool.score.weight, pool.out.weight.unflatten(1, (heads, width)).flatten(0, 1)])
    score, out = _remap(pool.norm, pooling, mapping).split([heads, len(pooling) - heads])
    pool.score.weight.copy_(score)
    pool.out.weight.copy_(out.unflatten(0, (-1, heads)).flatten(1))
    left = old - new @ mapping.T
    return 1 - float(left.square().sum() / (old - old.mean(dim=0)).square().sum())


def _remap(norm: nn.LayerNorm, reader: Tensor, mapping: Tensor) -> Tensor:
    """What reads (K D) the new tokens after the norm, whose gain becomes 1 and whose bias reads as it did, as
    nearly as a small one can: by it the network knows no text.
    """
    reader = reader.double()
    remapped = reader @ torch.diag(norm.weight.double()) @ mapping
    bias = torch.linalg.solve(_ridged(remapped.T @ remapped, BIAS_RIDGE), remapped.T @ (reader @ norm.bias.double()))
    norm.weight.fill_(1.0)
    norm.bias.copy_(bias)
    return remapped


def _ridged(square: Tensor, share: float) -> Tensor:
    return square + share * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
