"""Stages carried over to another text encoder."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cascade.networks.base import DiffusionNetwork
from cascade.networks.efficient_unet import EfficientUNet, EfficientUNetConfig
from cascade.networks.unet import UNet, UNetConfig
from cascade.training.carry_over import carry_over
from conditioning.text import TextEmbedding

WIDTH = 16
UNET = UNetConfig(
    width=8, multipliers=(1, 2), blocks=(1, 1), attention_levels=(1,), embedding_width=16, head_channels=8,
    text_width=WIDTH, groups=4,
)  # fmt: skip
EFFICIENT = EfficientUNetConfig(
    width=8, multipliers=(1, 2), blocks=(1, 1), embedding_width=16, heads=2, text_width=WIDTH, groups=4
)


def made(kind: type, config: object) -> DiffusionNetwork:
    """A network all of whose weights are random, as a trained one's."""
    torch.manual_seed(0)
    network = kind(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def embedding(seed: int, captions: int = 400) -> TextEmbedding:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < torch.randint(1, 7, (captions, 1), generator=generator)
    return TextEmbedding(torch.randn(captions, 6, WIDTH, generator=generator) * mask[..., None], mask, "trimmed")


@torch.no_grad()
def read(network: DiffusionNetwork, text: TextEmbedding, rows: int = 8) -> list[torch.Tensor]:
    """All that a network makes of text: its pooled vector, and the keys and values of its layers."""
    tokens, mask = text.tokens[:rows], text.mask[:rows]
    level = torch.zeros(rows) if network.augmented else None
    pairs = network.text_features(tokens, mask).keys_values
    there = mask[:, None, :, None]
    return [
        network.embed_condition(rows, tokens, mask, level, None),
        *(part * there for pair in pairs for part in pair),
    ]


@pytest.mark.parametrize(("kind", "config"), [(UNet, UNET), (EfficientUNet, EFFICIENT)])
def test_what_another_encoder_says_in_other_channels_is_read_as_before(kind, config) -> None:
    """A permutation of channels, with noise in none: it is found, but for the ridges."""
    network, text = made(kind, config), embedding(0)
    other = replace(text, tokens=text.tokens[..., torch.randperm(WIDTH, generator=torch.Generator().manual_seed(1))])
    before = read(network, text)
    deaf = read(network, other)
    explained = carry_over(network, text, other)
    assert explained > 0.999
    after = read(network, other)
    assert len(before) > 2
    for was, unmapped, now in zip(before, deaf, after, strict=True):
        spread = was.std().item()
        assert (now - was).square().mean() ** 0.5 < 0.05 * spread
        assert (unmapped - was).square().mean() ** 0.5 > 0.5 * spread


def test_what_cannot_be_explained_is_said() -> None:
    text, unrelated = embedding(0), embedding(0)
    unrelated = replace(unrelated, tokens=torch.randn(text.tokens.shape, generator=torch.Generator().manual_seed(2)))
    assert carry_over(made(UNet, UNET), text, unrelated) < 0.05


def test_embeddings_of_other_tokens_are_refused() -> None:
    network, text = made(UNet, UNET), embedding(0)
    with pytest.raises(ValueError, match="with the same tokenizer"):
        carry_over(network, text, embedding(1))
    with pytest.raises(ValueError, match=r"\(400, 6, 16\) and \(400, 6, 8\)"):
        carry_over(network, text, replace(text, tokens=text.tokens[..., :8]))


def test_a_network_that_reads_otherwise_is_refused() -> None:
    network, text = made(UNet, UNET), embedding(0)
    network.text_projection = nn.Linear(WIDTH, WIDTH)
    with pytest.raises(ValueError, match="train it anew"):
        carry_over(network, text, text)
    grouped = made(UNet, replace(UNET, text_width=32, text_norm="group"))
    wide = replace(text, tokens=text.tokens.repeat(1, 1, 2))
    with pytest.raises(ValueError, match="in groups"):
        carry_over(grouped, wide, wide)
    with pytest.raises(ValueError, match="width 32 for a network that reads 16"):
        carry_over(made(UNet, UNET), wide, wide)


def test_no_text_still_means_about_the_same() -> None:
    """Its vector is zero, so only the norms' biases speak for it."""
    network, text = made(UNet, UNET), embedding(0)
    nothing = TextEmbedding(torch.zeros(1, 6, WIDTH), torch.arange(6)[None] < 1, "trimmed")
    before = read(network, nothing, rows=1)
    carry_over(network, text, replace(text, tokens=text.tokens.flip(-1)))
    for was, now in zip(before, read(network, nothing, rows=1), strict=True):
        assert (now - was).norm() < 0.35 * was.norm()
