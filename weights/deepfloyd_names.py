"""The tensor names of DeepFloyd IF's U-Nets in diffusers, mapped to ours one to one.

Ours numbers the layers in the order they run; diffusers' counts blocks (levels), and residual blocks and attentions
within them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def tensor_names(network: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Our tensor names to diffusers', for a network as in `stage_config`.

    Where there are several, ours holds theirs one after the other along its first dimension (keys, then values).
    """
    return {
        f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs)
        for ours, theirs in _modules(network)
        for kind in ("weight", "bias")
    } | {"text_pool.position": ("add_embedding.pool.positional_embedding",)}


def _modules(network: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from _pairs("", "", {"stem": "conv_in", "out_norm": "conv_norm_out", "out": "conv_out"})
    embeddings = {"noise_embedding": "time_embedding"}
    if network["augmented"]:
        embeddings["augmentation_embedding"] = "class_embedding"
    for ours, theirs in embeddings.items():
        yield from _pairs(f"{ours}.", f"{theirs}.", {"linear1": "linear_1", "linear2": "linear_2"})
    if network["text_projection"] is not None:
        yield "text_projection", ("encoder_hid_proj",)
    yield from _pairs("text_pool.", "add_embedding.", {"norm": "norm1", "out": "proj", "out_norm": "norm2"})
    yield from _pairs("text_pool.", "add_embedding.pool.", {"query": "q_proj", "key_value": ("k_proj", "v_proj")})

    levels = len(network["multipliers"])
    number = 0
    for level in range(levels):
        blocks = network["blocks"][level]
        for i in range(blocks):
            shape = network["multipliers"]
            skip = i == 0 and level > 0 and shape[level] != shape[level - 1]
            attends = level in network["attention_levels"]
            yield from _layer(network, f"down.{number}.", f"down_blocks.{level}.", i, skip=skip, attends=attends)
            number += 1
        if level < levels - 1:
            yield from _block(f"down.{number}.", f"down_blocks.{level}.downsamplers.0.", skip=False)
            number += 1
    yield from _layer(network, "middle.0.", "mid_block.", 0, skip=False, attends=True)
    yield from _layer(network, "middle.1.", "mid_block.", 1, skip=False, attends=False)
    number = 0
    for block in range(levels):
        level = levels - 1 - block
        attends = level in network["attention_levels"]
        for i in range(network["blocks"][level] + 1):
            yield from _layer(network, f"up.{number}.", f"up_blocks.{block}.", i, skip=True, attends=attends)
            number += 1
        if level > 0:
            yield from _block(f"up.{number}.", f"up_blocks.{block}.upsamplers.0.", skip=False)
            number += 1


def _layer(
    network: Mapping[str, Any], ours: str, theirs: str, i: int, *, skip: bool, attends: bool
) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from _block(ours, f"{theirs}resnets.{i}.", skip=skip)
    if attends:
        names: dict[str, str | tuple[str, ...]] = {
            "norm": "group_norm",
            "text_norm": "norm_cross",
            "query": "to_q",
            "text_key_value": ("add_k_proj", "add_v_proj"),
            "out": "to_out.0",
        }
        if network["attention"] == "joint":
            names["key_value"] = ("to_k", "to_v")
        yield from _pairs(f"{ours}attention.", f"{theirs}attentions.{i}.", names)


def _block(ours: str, theirs: str, *, skip: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"modulation": "time_emb_proj"}
    yield from _pairs(f"{ours}block.", theirs, names | ({"skip": "conv_shortcut"} if skip else {}))


def _pairs(ours: str, theirs: str, names: Mapping[str, str | tuple[str, ...]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, other in names.items():
        yield ours + name, tuple(theirs + each for each in ((other,) if isinstance(other, str) else other))
