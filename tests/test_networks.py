"""cascade/networks/: shapes, what a network heeds and what it must not, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_networks import inputs, network, new, randomized, run, text
from torch import Tensor, nn

from cascade.networks.attention import Attention
from cascade.networks.blocks import ResBlock
from conditioning.text import TextEmbedding

KINDS = ["unet", "efficient"]


# Shapes


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_any_multiple_of_the_divisor_is_drawn_at_its_size(kind: str, patch: int) -> None:
    net = network(kind, patch=patch, out_channels=6)
    assert net.config.divisor == patch * {"unet": 2, "efficient": 4}[kind]
    for size in ((1, 1), (2, 3), (3, 1)):
        height, width = (side * net.config.divisor for side in size)
        out = run(net, **inputs(net, 2, (height, width)))
        assert out.shape == (2, 6, height, width)
        assert out.isfinite().all()
        assert out.std() > 0


def test_level_counts_blocks_and_attention_are_what_the_config_says() -> None:
    net = network("unet", multipliers=(1, 2, 3), blocks=(1, 2, 1), attention_levels=(0, 2))
    assert sum(isinstance(m, ResBlock) for m in net.modules()) == (4 + 2) + 2 + (4 + 3 + 2)
    assert sum(isinstance(m, Attention) for m in net.modules()) == (1 + 1) + 1 + (2 + 2)
    assert run(net, **inputs(net)).shape == (2, 3, 8, 8)
    assert (
        network("unet", attention_levels=()).text_features(torch.randn(1, 2, 16), torch.ones(1, 2) > 0).keys_values
        == ()
    )
    deep = network("efficient", multipliers=(1, 2, 2), blocks=(1, 2, 3))
    assert sum(isinstance(m, Attention) for m in deep.modules()) == 2
    assert run(deep, **inputs(deep)).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("groups", [1, 8, 32])
def test_every_norm_has_the_groups_of_the_config(groups: int) -> None:
    net = network("unet", groups=groups)
    norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {groups}
    assert len(norms) == 1 + sum(2 * isinstance(m, ResBlock) + isinstance(m, Attention) for m in net.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_one_graph(kind: str) -> None:
    """torch.compile finds nothing in it that it would have to leave to Python."""
    net = network(kind)
    given = inputs(net)
    wanted = run(net, **given)
    net.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(run(net, **given), wanted)


# New networks


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_network_puts_out_zeros(kind: str) -> None:
    net = new(kind)
    assert (run(net, **inputs(net)) == 0).all()
    assert (run(randomized(net), **inputs(net)) != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_new_blocks_are_their_skips(kind: str) -> None:
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(ResBlock(32, 32, 8)(x, torch.randn(2, 64)), x)
    assert torch.equal(Attention(32, 2, 32, 16)(x, None, None), x)


@pytest.mark.parametrize("changes", [{}, {"patch": 2, "text_width": None, "augmented": True, "classes": 3}])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_there_from_the_start_and_is_trained(kind: str, changes: dict) -> None:
    if kind == "efficient":
        changes = {key: value for key, value in changes.items() if key != "classes"}
    net = network(kind, **changes).train()
    before = {name: parameter.shape for name, parameter in net.named_parameters()}
    data = inputs(net)
    tokens, mask = (None, None) if data["text"] is None else (data["text"].tokens, data["text"].mask)
    condition = net.embed_condition(2, tokens, mask, data["augmentation"], data["label"])
    features = None if tokens is None else net.text_features(tokens, mask)
    net(data["x"], net.paired_modulations(data["level"], condition), features).square().mean().backward()
    assert {name: parameter.shape for name, parameter in net.named_parameters()} == before
    assert net.state_dict().keys() == before.keys()  # no buffers: weights alone are the model
    untrained = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untrained == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_and_a_restored_network_draw_the_same(kind: str) -> None:
    net = network(kind)
    data = inputs(net)
    wanted = run(net, **data)
    assert torch.equal(run(copy.deepcopy(net), **data), wanted)
    other = new(kind).eval()
    assert not torch.equal(run(other, **data), wanted)
    other.load_state_dict(net.state_dict())
    assert torch.equal(run(other, **data), wanted)
    with torch.device("meta"):
        assert {k: v.shape for k, v in new(kind).state_dict().items()} == {
            k: v.shape for k, v in net.state_dict().items()
        }


# Conditioning


ATTENTION = [("unet", {}), *(("efficient", {"attention": kind}) for kind in ("joint", "text", None))]


@pytest.mark.parametrize(("kind", "changes"), ATTENTION)
def test_a_prompt_is_drawn_the_same_alone_or_beside_a_longer_one(kind: str, changes: dict) -> None:
    net = network(kind, **changes)
    data = inputs(net, 1)
    short, long = text(3), text(7)
    alone = run(net, **data | {"text": short})
    doubled = {
        name: value if value is None else torch.cat([value] * 2) for name, value in data.items() if name != "text"
    }
    beside = run(net, **doubled, text=TextEmbedding.cat([long, short]))
    torch.testing.assert_close(beside[1:], alone, rtol=0, atol=1e-5)
    assert (beside[:1] - alone).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "changes"), ATTENTION)
def test_masked_tokens_are_not_read(kind: str, changes: dict) -> None:
    net = network(kind, **changes)
    data = inputs(net)
    tokens, mask = torch.randn(2, 6, 16), torch.arange(6)[None] < torch.tensor([[2], [4]])
    wanted = run(net, **data | {"text": TextEmbedding(tokens, mask, "kept")})
    garbage = torch.where(mask[..., None], tokens, 100 * torch.randn_like(tokens))
    found = run(net, **data | {"text": TextEmbedding(garbage, mask, "kept")})
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    garbage[1, 3, 0] += 1
    assert not torch.allclose(run(net, **data | {"text": TextEmbedding(garbage, mask, "kept")}), wanted, atol=1e-4)


@pytest.mark.parametrize(("kind", "changes"), ATTENTION)
def test_a_batch_of_null_prompts_is_finite_with_its_gradients(kind: str, changes: dict) -> None:
    net = network(kind, **changes)
    data = inputs(net)
    null = TextEmbedding.null(2, 16)
    assert run(net, **data | {"text": null}).isfinite().all()
    beside = TextEmbedding.cat([null, text(5)])[:2]  # padded, and all its padding masked
    condition = net.embed_condition(2, beside.tokens, beside.mask, data["augmentation"], None)
    features = net.text_features(beside.tokens, beside.mask)
    out = net(data["x"], net.paired_modulations(data["level"], condition), features)
    torch.testing.assert_close(out, run(net, **data | {"text": null}), rtol=0, atol=1e-5)
    out.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


CHANGES: dict[str, Any] = {
    "x": lambda data: data["x"] + torch.eye(8),
    "level": lambda data: data["level"] + 1,
    "text": lambda data: text(3, 4),
    "augmentation": lambda data: data["augmentation"] + 1,
    "label": lambda data: data["label"] + 1,
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("unet", name) for name in CHANGES] + [("efficient", name) for name in CHANGES if name != "label"],
)
def test_everything_it_is_told_matters(kind: str, name: str) -> None:
    net = network(kind, **({"classes": 4, "augmented": True} if kind == "unet" else {}))
    data = inputs(net)
    wanted = run(net, **data)
    assert torch.equal(run(net, **data), wanted)
    changed = run(net, **data | {name: CHANGES[name](data)})
    assert ((changed - wanted).abs().amax(dim=(1, 2, 3)) > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_low_resolution_image_matters(kind: str) -> None:
    net = network(kind, in_channels=6)
    data = inputs(net)
    x = data["x"].clone()
    x[0, 3:] += 0.1
    changed = (run(net, **data | {"x": x}) - run(net, **data)).abs().amax(dim=(1, 2, 3))
    assert changed[0] > 1e-3
    assert changed[1] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_read_by_the_pool_and_by_attention(kind: str) -> None:
    net = network(kind)
    data = inputs(net)
    one, other = text(4, 4), text(4, 4)

    @torch.no_grad()
    def mixed(pooled: TextEmbedding, attended: TextEmbedding) -> Tensor:
        condition = net.embed_condition(2, pooled.tokens, pooled.mask, data["augmentation"], None)
        features = net.text_features(attended.tokens, attended.mask)
        return net(data["x"], net.paired_modulations(data["level"], condition), features)

    assert (mixed(one, one) - mixed(other, one)).abs().max() > 1e-3
    assert (mixed(one, one) - mixed(one, other)).abs().max() > 1e-3


def test_no_class_is_a_row_of_its_own() -> None:
    net = network("unet", classes=3, text_width=None)
    rows = net.embed_condition(4, None, None, None, torch.arange(4))
    assert len(torch.unique(rows, dim=0)) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_all_levels_equals_a_level_at_a_time(kind: str) -> None:
    net = network(kind)
    tokens = text(2, 5)
    augmentation = torch.tensor([3.0, 70.0]) if net.augmented else None
    condition = net.embed_condition(2, tokens.tokens, tokens.mask, augmentation, None)
    levels = torch.tensor([0.0, 12.5, 1000.0])
    table = net.modulations(levels, condition)
    for s, level in enumerate(levels):
        paired = net.paired_modulations(level.expand(2), condition)
        assert len(paired) == len(table)
        for block, row in zip(table, paired, strict=True):
            torch.testing.assert_close(block[s], row, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_without_text_need_none(kind: str) -> None:
    net = network(kind, text_width=None)
    assert run(net, **inputs(net)).std() > 0
    assert not any("text" in name for name in net.state_dict())


@pytest.mark.parametrize(
    ("attention", "layers", "in_image"), [("joint", 2, True), ("text", 2, False), (None, 0, False)]
)
def test_what_an_efficient_network_attends_to(attention: Any, layers: int, in_image: bool) -> None:
    net = network("efficient", attention=attention)
    found = [module for module in net.modules() if isinstance(module, Attention)]
    assert len(found) == layers
    assert all((layer.key_value is not None) == in_image for layer in found)
    assert len(net.text_features(torch.randn(1, 2, 16), torch.ones(1, 2) > 0).keys_values) == layers
    assert run(net, **inputs(net)).std() > 0


# Refusals


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("unet", {"blocks": (1,)}, r"one block count per level, got \(1,\) for multipliers \(1, 2\)"),
        ("unet", {"blocks": (), "multipliers": ()}, "one block count per level"),
        ("unet", {"attention_levels": (2,)}, r"attention_levels \(2,\) names a level outside 0\.\.1"),
        ("unet", {"attention_levels": (-1,)}, "outside 0"),
        ("unet", {"width": 48}, "width must be a multiple of .*32.*got 48"),
        ("unet", {"groups": 0}, "the norms need at least 1 group, got 0"),
        ("unet", {"head_channels": 20, "multipliers": (1, 2)}, "attention width 64 is not divisible by 3 heads"),
        ("efficient", {"blocks": (1, 1, 1)}, "one block count per level"),
        ("efficient", {"attention": "image"}, 'attention must be "joint", "text" or null, got \'image\''),
        ("efficient", {"attention": "text", "text_width": None}, 'attention "text" needs a text_width'),
        ("efficient", {"width": 16}, "width must be a multiple of .*32.*got 16"),
        ("efficient", {"heads": 7}, "attention width 128 is not divisible by 7 heads"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(kind: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new(kind, **changes)


@pytest.mark.parametrize(
    ("name", "message"),
    [("text", "text"), ("augmentation", "an augmentation level"), ("label", "a class label")],
)
def test_conditions_must_be_those_the_network_was_built_for(name: str, message: str) -> None:
    full = network("unet", classes=4, augmented=True)
    bare = network("unet", text_width=None)
    data = inputs(full)
    with pytest.raises(ValueError, match=f"this network needs {message}"):
        run(full, **data | {name: None})
    with pytest.raises(ValueError, match=f"this network does not take {message}"):
        run(bare, **{"text": None, "augmentation": None, "label": None} | {k: data[k] for k in ("x", "level", name)})
