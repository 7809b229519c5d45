"""cascade/networks/: attention, blocks and norms against their formulas."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import randomized
from torch import Tensor, nn

from cascade.networks.attention import Attention, TextPool
from cascade.networks.blocks import GroupNorm, NoiseEmbedding, ResBlock


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_norm_keeps_the_layout_of_its_maps(side: int, layout: torch.memory_format) -> None:
    norm = GroupNorm(4, 64).bfloat16()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 64, side, side).bfloat16().to(memory_format=layout)
    found = norm(x)
    assert found.is_contiguous(memory_format=layout)
    wanted = nn.functional.group_norm(x.float(), 4, norm.weight.float(), norm.bias.float())
    assert (found - wanted).norm() < 4e-3 * wanted.norm()


@pytest.mark.parametrize("cross_only", [False, True])
def test_attention_is_one_softmax_over_text_and_image(cross_only: bool) -> None:
    layer = randomized(Attention(32, 2, 24, 16, cross_only=cross_only)).double()
    x, tokens = torch.randn(2, 32, 2, 3).double(), torch.randn(2, 5, 16).double()
    mask = torch.arange(5)[None] < torch.tensor([[5], [2]])
    found = layer(x, layer.text_keys_values(tokens), mask)
    pixels = layer.norm(x).flatten(2).mT
    keys, values = layer.text_key_value(layer.text_norm(tokens)).chunk(2, dim=-1)
    visible = mask
    if not cross_only:
        own_keys, own_values = layer.key_value(pixels).chunk(2, dim=-1)
        keys, values = torch.cat([keys, own_keys], dim=1), torch.cat([values, own_values], dim=1)
        visible = torch.cat([mask, torch.ones(2, 6) > 0], dim=1)
    heads = []
    for part in (slice(0, 12), slice(12, 24)):
        score = layer.query(pixels)[..., part] @ keys[..., part].mT / 12**0.5
        weight = score.masked_fill(~visible[:, None], float("-inf")).softmax(dim=-1)
        heads.append(weight @ values[..., part])
    wanted = x + layer.out(torch.cat(heads, dim=-1)).mT.reshape(2, 32, 2, 3)
    torch.testing.assert_close(found, wanted)


def test_text_pool_weighs_the_unmasked_tokens() -> None:
    pool = randomized(TextPool(16, 8, heads=2)).double()
    tokens, mask = torch.randn(1, 4, 16).double(), torch.tensor([[True, True, False, True]])
    seen = pool.norm(tokens[mask][None])
    weight = pool.score(seen).softmax(dim=1)
    wanted = pool.out(torch.cat([(weight[..., h : h + 1] * seen).sum(dim=1) for h in range(2)], dim=-1))
    torch.testing.assert_close(pool(tokens, mask), wanted, rtol=0, atol=1e-6)  # the softmax is in float32


@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_residual_block_follows_its_formula(resample: str | None) -> None:
    block = randomized(ResBlock(32, 64, 8, resample=resample, residual_scale=0.5))
    x, modulation = torch.randn(2, 32, 4, 6), torch.randn(2, 128)

    def resampled(h: Tensor) -> Tensor:
        if resample == "down":
            return h.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5))
        return h if resample is None else h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    scale, shift = modulation[:, :64, None, None], modulation[:, 64:, None, None]
    h = block.conv1(resampled(torch.nn.functional.silu(block.norm1(x))))
    h = block.conv2(torch.nn.functional.silu(block.norm2(h) * (1 + scale) + shift))
    torch.testing.assert_close(block(x, modulation), 0.5 * (block.skip(resampled(x)) + h))


def test_noise_embedding_tells_levels_apart_in_any_dtype() -> None:
    embed = NoiseEmbedding(32, 32).requires_grad_(False)
    levels = torch.tensor([0.0, 0.1, 1.0, 500.0, 501.0, 1000.0])
    rows = embed(levels)
    assert torch.cdist(rows, rows)[~torch.eye(6, dtype=torch.bool)].min() > 1e-3
    # 500 and 501 are one number in bfloat16: the sinusoids must not be.
    low = embed.to(torch.bfloat16)(levels)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), rows, rtol=0, atol=0.02)


def test_attention_to_text_alone_needs_text() -> None:
    with pytest.raises(ValueError, match="needs a text width"):
        Attention(32, 2, 32, None, cross_only=True)
