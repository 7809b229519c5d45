"""cascade/denoiser.py: what is prepared once equals what is computed anew, and network outputs become x0 in float32."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import cascade.denoiser
from cascade.denoiser import Condition, Denoiser
from cascade.networks.efficient_unet import EfficientUNet, EfficientUNetConfig
from cascade.networks.unet import UNet, UNetConfig
from cascade.schedules import Cosine, DiscreteTable, uniform_grid
from conditioning.text import TextEmbedding

GRID = uniform_grid(Cosine(), 5)
KINDS = ["base", "classes", "sr"]


def randomized(module):
    """Output layers start at zero, where everything would agree with everything."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module.eval().requires_grad_(False)


def denoiser(kind: str = "base", **kwargs: Any) -> Denoiser:
    shared: dict[str, Any] = {
        "width": 32,
        "multipliers": (1, 2),
        "blocks": (1, 1),
        "embedding_width": 32,
        "text_width": 16,
    }
    shared["out_channels"] = 6 if kwargs.get("learned_variance") else 3
    if kind == "sr":
        network = EfficientUNet(EfficientUNetConfig(**shared, in_channels=6, heads=2))
    else:
        classes = 4 if kind == "classes" else None
        network = UNet(UNetConfig(**shared, attention_levels=(1,), head_channels=32, classes=classes))
    return Denoiser(randomized(network), kwargs.pop("schedule", Cosine()), **kwargs)


def text(*lengths: int) -> TextEmbedding:
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return TextEmbedding(torch.randn(len(lengths), max(lengths), 16), mask)


def condition(kind: str, batch: int = 3) -> Condition:
    if kind == "sr":
        return Condition(text(*range(2, 2 + batch)), torch.randn(batch, 3, 8, 8), torch.linspace(-4, 9, batch))
    return Condition(text(*range(2, 2 + batch)), label=torch.arange(batch) if kind == "classes" else None)


def rows(given: Condition, part: slice) -> Condition:
    fields = {name: getattr(given, name) for name in ("text", "low_res", "aug_logsnr", "label")}
    return Condition(**{name: None if value is None else value[part] for name, value in fields.items()})


def null(given: Condition) -> Condition:
    return Condition(TextEmbedding.null(len(given.text), 16), given.low_res, given.aug_logsnr, given.label)


def constant(values: list[float], **kwargs: Any) -> Denoiser:
    """A denoiser whose network puts out these numbers, one per channel, everywhere."""
    found = denoiser(learned_variance=len(values) == 6, **kwargs)
    found.network.out.weight.zero_()
    found.network.out.bias.copy_(torch.tensor(values))
    return found


# What is prepared


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_equals_a_fresh_preparation_and_a_level_per_image(kind: str) -> None:
    model, given, z = denoiser(kind), condition(kind), torch.randn(3, 3, 8, 8)
    prepared = model.prepare(given, GRID)
    seen = []
    for level in GRID[:-1]:
        found = model(z, level, prepared).x0
        torch.testing.assert_close(found, model(z, level, model.prepare(given)).x0, rtol=0, atol=1e-5)
        # The input is worked out in float64 for a table and in float32 for a tensor, where 1000 has four decimals.
        torch.testing.assert_close(found, model(z, torch.full((3,), level), prepared).x0, rtol=0, atol=2e-3)
        seen.append(found)
    assert min((a - b).abs().max() for a, b in pairwise(seen)) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_levels_per_image_stay_with_their_images(kind: str) -> None:
    model, given, z = denoiser(kind), condition(kind), torch.randn(3, 3, 8, 8)
    levels = torch.tensor([-3.0, 0.5, 6.0])
    together = model(z, levels, model.prepare(given)).x0
    for i in range(3):
        part = slice(i, i + 1)
        alone = model(z[part], levels[i].item(), model.prepare(rows(given, part))).x0
        torch.testing.assert_close(together[part], alone, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_equals_the_preparation_of_the_slice(kind: str) -> None:
    model, given, z = denoiser(kind), condition(kind, 4), torch.randn(4, 3, 8, 8)
    prepared = model.prepare(given, GRID)
    for part in (slice(1, 3), slice(3, None), slice(None), slice(-2, None)):
        wanted = model(z[part], GRID[2], model.prepare(rows(given, part))).x0
        assert len(prepared[part]) == len(wanted)
        torch.testing.assert_close(model(z[part], GRID[2], prepared[part]).x0, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            model(z[part], torch.full((len(wanted),), GRID[2]), prepared[part]).x0, wanted, rtol=0, atol=2e-3
        )
    twice = prepared[1:4][1:2]  # row 2
    wanted = model(z[2:3], GRID[2], model.prepare(rows(given, slice(2, 3)))).x0
    torch.testing.assert_close(model(z[2:3], GRID[2], twice).x0, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_equals_two_passes(kind: str) -> None:
    model, given, z = denoiser(kind), condition(kind), torch.randn(3, 3, 8, 8)
    pair = model.pair(given, null(given), GRID)
    assert len(pair) == 6
    assert pair.low_res is given.low_res  # kept once, whatever the halves
    one, other = (model(z, GRID[1], model.prepare(half)).x0 for half in (given, null(given)))
    assert (one - other).abs().max() > 1e-2
    found = model(z, GRID[1], pair).x0
    torch.testing.assert_close(found, torch.cat([one, other]), rtol=0, atol=1e-5)
    for part, wanted in ((slice(0, 3), one), (slice(3, 6), other)):
        torch.testing.assert_close(model(z, GRID[1], pair[part]).x0, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(z[1:], GRID[1], pair[4:6]).x0, other[1:], rtol=0, atol=1e-5)


def test_slices_that_mean_nothing_are_refused() -> None:
    model, given = denoiser("sr"), condition("sr")
    pair = model.pair(given, null(given), GRID)
    with pytest.raises(ValueError, match="rows 2:4 straddle the guidance halves of 3 images"):
        pair[2:4]
    for part in (slice(2, 2), slice(0, 3, 2), slice(3, 1), slice(9, 12)):
        with pytest.raises(ValueError, match="must be non-empty with step 1"):
            pair[part]


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_the_table_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    model, given = denoiser("sr"), condition("sr")
    whole = model.prepare(given, GRID)
    wanted = [whole.modulations(level) for level in GRID[:-1]]
    monkeypatch.setattr(cascade.denoiser, "TABLE_NUMBERS", at_once * 3 * model.modulation_width)
    made = []
    compute = model.network.modulations
    monkeypatch.setattr(model.network, "modulations", lambda levels, c: made.append(len(levels)) or compute(levels, c))
    chunked = model.prepare(given, GRID)
    for level, blocks in zip(GRID[:-1], wanted, strict=True):
        for found, block in zip(chunked.modulations(level), blocks, strict=True):
            torch.testing.assert_close(found, block, rtol=0, atol=1e-6)
    assert made == {1: [1, 1, 1, 1, 1], 2: [2, 2, 1], 4: [4, 1]}[at_once]
    chunked.modulations(GRID[0])  # going back is slow and right
    torch.testing.assert_close(chunked.modulations(GRID[0])[0], wanted[0][0], rtol=0, atol=1e-6)


def test_the_modulation_width_is_that_of_the_table() -> None:
    model = denoiser("sr")
    blocks = model.prepare(condition("sr"), GRID).modulations(GRID[0])
    assert sum(block.shape[1] for block in blocks) == model.modulation_width


def test_a_table_is_computed_once_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, z = denoiser("sr"), condition("sr"), torch.randn(3, 3, 8, 8)
    pair = model.pair(given, null(given), GRID)
    calls = []
    for name in ("modulations", "embed_condition", "text_features"):
        method = getattr(model.network, name)
        monkeypatch.setattr(
            model.network, name, lambda *args, _name=name, _method=method: calls.append(_name) or _method(*args)
        )
    for level in GRID[:-1]:
        model(z, level, pair)
        model(z, level, pair[:3])
    assert calls == ["modulations"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_level_off_the_grid_is_computed_on_demand(kind: str) -> None:
    model, given, z = denoiser(kind), condition(kind), torch.randn(3, 3, 8, 8)
    prepared = model.prepare(given, GRID)
    on = model(z, GRID[3], prepared).x0
    off = model(z[1:], 0.123, prepared[1:]).x0
    wanted = model(z[1:], 0.123, model.prepare(rows(given, slice(1, 3)))).x0
    torch.testing.assert_close(off, wanted, rtol=0, atol=1e-5)
    assert torch.equal(model(z, GRID[3], prepared).x0, on)


def test_rows_that_do_not_fit_are_refused() -> None:
    model = denoiser()
    with pytest.raises(ValueError, match=r"cannot tell the batch size from a condition with rows \[\]"):
        model.prepare(Condition())
    with pytest.raises(ValueError, match=r"rows \[2, 3\]"):
        model.prepare(Condition(text(2, 3)), batch=3)
    with pytest.raises(ValueError, match="3 prepared rows do not fit 2 images"):
        model(torch.randn(2, 3, 8, 8), 0.0, model.prepare(condition("base")))


# The float32 boundary


@pytest.mark.parametrize("kind", KINDS)
def test_a_bfloat16_network_gives_float32_images(kind: str) -> None:
    model, given, z = denoiser(kind), condition(kind), torch.randn(3, 3, 8, 8)
    wanted = model(z, GRID[2], model.pair(given, null(given), GRID)).x0
    model.to(torch.bfloat16)
    found = model(z, GRID[2], model.pair(given, null(given), GRID)).x0
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    assert (found - wanted).abs().mean() < 0.03 * wanted.abs().mean()
    per_image = model(z, torch.full((3,), GRID[2]), model.prepare(given)).x0
    assert per_image.dtype == torch.float32
    # z must not be rounded on its way around the network: where all is signal, x0 is z to float32's precision.
    clean = model(z, 20.0, model.prepare(given)).x0
    assert (clean - z).abs().max() < 5e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_weights_in_memory_changes_no_value(kind: str) -> None:
    model, given, z = denoiser(kind), condition(kind), torch.randn(3, 3, 8, 8)
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    convolution = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    wanted = model(z, GRID[2], model.prepare(given)).x0
    model.lay_out()
    assert torch.equal(model(z, GRID[2], model.prepare(given)).x0, wanted)
    assert convolution.weight.is_contiguous()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())

    model.to(torch.bfloat16)
    wanted = model(z, GRID[2], model.prepare(given)).x0
    model.lay_out()
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(tensor, stored[name].bfloat16()) for name, tensor in model.state_dict().items())
    found = model(z, GRID[2], model.prepare(given)).x0
    assert (found - wanted).norm() < 0.02 * wanted.norm()

    model.to(torch.float32).lay_out()
    assert convolution.weight.is_contiguous()


# Network outputs


def levels(z: Tensor) -> list[tuple[float | Tensor, Tensor, Tensor]]:
    """(logsnr, alpha, sigma) for one level, and for a level per image."""
    one, each = torch.tensor([1.5]), torch.tensor([-2.0, 0.0, 3.0])
    found = []
    for logsnr, given in ((one, 1.5), (each, each)):
        snr = logsnr.exp()[:, None, None, None]
        found.append((given, (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()))
    return found


@pytest.mark.parametrize("prediction", ["eps", "x", "v"])
def test_x0_of_a_known_output(prediction: Any) -> None:
    out = torch.tensor([0.3, -0.2, 0.1])
    model, given, z = constant(out.tolist(), prediction=prediction), condition("base"), torch.randn(3, 3, 8, 8)
    out = out[:, None, None].expand(3, 3, 8, 8)
    for logsnr, alpha, sigma in levels(z):
        wanted = {"eps": (z - sigma * out) / alpha, "x": out, "v": alpha * z - sigma * out}[prediction]
        torch.testing.assert_close(model(z, logsnr, model.prepare(given)).x0, wanted)


@pytest.mark.parametrize("prediction", ["eps", "x", "v"])
def test_the_true_output_gives_the_true_image_at_every_level(prediction: Any) -> None:
    """An x0 recovered from exact outputs: eps loses digits as alpha falls, x and v nowhere."""
    x, eps = torch.full((1, 3, 8, 8), 0.25), torch.full((1, 3, 8, 8), -0.5)
    for logsnr in (-6.0, -1.0, 0.0, 4.0, 12.0):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-logsnr))), math.sqrt(1 / (1 + math.exp(logsnr)))
        value = {"eps": -0.5, "x": 0.25, "v": alpha * -0.5 - sigma * 0.25}[prediction]
        model = constant([value] * 3, prediction=prediction)
        found = model(alpha * x + sigma * eps, logsnr, model.prepare(condition("base", 1))).x0
        torch.testing.assert_close(found, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "x", "v"])
def test_every_output_is_float32(prediction: Any) -> None:
    model = denoiser(prediction=prediction, learned_variance=True).to(torch.bfloat16)
    x0, fraction = model(torch.randn(3, 3, 8, 8), 0.5, model.prepare(condition("base")))
    assert (x0.dtype, fraction.dtype) == (torch.float32, torch.float32)


def test_a_learned_variance_is_a_fraction_of_the_last_channels() -> None:
    model = constant([0.1, 0.2, 0.3, -1.0, 0.0, 1.0], prediction="x")
    given, z = condition("base"), torch.randn(3, 3, 8, 8)
    x0, fraction = model(z, 0.5, model.prepare(given))
    torch.testing.assert_close(x0[0, :, 0, 0], torch.tensor([0.1, 0.2, 0.3]))
    assert fraction.shape == x0.shape == (3, 3, 8, 8)
    torch.testing.assert_close(fraction[0, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))
    both = model(z, 0.5, model.pair(given, null(given), GRID))
    assert both.x0.shape == both.variance_fraction.shape == (6, 3, 8, 8)
    assert denoiser()(z, 0.5, denoiser().prepare(given)).variance_fraction is None


@pytest.mark.parametrize(
    "schedule", [Cosine(), Cosine(-12.0, 12.0, shift=-2.0), DiscreteTable(), DiscreteTable("linear", 50)]
)
def test_the_noise_input_rises_with_the_noise_within_0_and_1000(schedule: Any) -> None:
    model = denoiser(schedule=schedule)
    grid = [-40.0, *uniform_grid(schedule, 9)[:-1], 40.0]
    numbers = [model.noise_input(level) for level in grid]
    assert all(0 <= number <= 1000 for number in numbers)
    assert all(a >= b for a, b in pairwise(numbers))
    assert all(a > b for a, b in pairwise(numbers[1:-1]))
    torch.testing.assert_close(model.noise_input(torch.tensor(grid)), torch.tensor(numbers), rtol=1e-5, atol=2e-3)


def test_the_noise_input_is_the_time_of_the_plain_cosine_or_the_index_into_a_table() -> None:
    model = denoiser(schedule=Cosine(shift=-3.0))
    for angle in (0.1, 0.5, 0.9):  # alpha = cos, sigma = sin
        logsnr = -2 * math.log(math.tan(angle * math.pi / 2))
        assert model.noise_input(logsnr) == pytest.approx(1000 * angle)
    table = DiscreteTable("cosine", 1000)
    model = denoiser(schedule=table)
    for index in (0, 1, 500, 998, 999):
        assert model.noise_input(float(table.levels()[index])) == pytest.approx(index, abs=1e-6)


def test_the_augmentation_level_is_told_in_the_same_units() -> None:
    model, given = denoiser("sr"), condition("sr")
    told = []
    model.network.augmentation_embedding.register_forward_pre_hook(lambda module, args: told.append(args[0]))
    model.prepare(given)
    torch.testing.assert_close(told[0], model.noise_input(given.aug_logsnr))


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match='prediction must be "eps", "x" or "v", got \'noise\''):
        denoiser(prediction="noise")
