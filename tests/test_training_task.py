"""cascade/training/diffusion.py: what a batch is, and what its loss."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_tasks import BASE, DROPOUT, LOOP, PLAIN, SR, Shapes, encode, log, randomized, task, whole

from cascade.denoiser import Condition, Denoiser
from cascade.networks.unet import UNetConfig
from cascade.parameterization import LossWeight
from cascade.schedules import Cosine, LinearBeta
from cascade.stage import StageConfig
from cascade.training.diffusion import DiffusionTask
from cascade.training.loop import Loop
from cascade.training.schedule import Budget
from conditioning.text import TextEmbedding

GREY = 191 / 127.5 - 1


def spied(found: DiffusionTask) -> dict[str, Any]:
    """What the denoiser is given in the latest batch."""
    seen: dict[str, Any] = {}
    prepare, output = found.model.prepare, found.model.output

    def prepare_spy(condition: Condition, **kwargs: Any) -> Any:
        seen["condition"] = condition
        return prepare(condition, **kwargs)

    def output_spy(z: Tensor, logsnr: Tensor, prepared: Any) -> Tensor:
        seen["z"], seen["logsnr"] = z, logsnr
        return output(z, logsnr, prepared)

    found.model.prepare, found.model.output = prepare_spy, output_spy  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("config", [BASE, SR, DROPOUT])
def test_batch_k_is_a_pure_function_of_seed_and_k(config: StageConfig) -> None:
    found, other = randomized(task(config)), task(config)
    other.model.load_state_dict(found.model.state_dict())
    wanted = [found.loss(whole(found, k))[0].item() for k in range(4)]
    torch.randn(7), np.random.rand(3), random.random()
    assert [other.loss(whole(other, k))[0].item() for k in (3, 1, 0, 2)] == [wanted[k] for k in (3, 1, 0, 2)]
    assert len(set(wanted)) == 4
    reseeded = DiffusionTask(found.stage, Shapes(), encode, replace(found.config, seed=1))
    assert reseeded.loss(whole(reseeded, 0))[0].item() != wanted[0]


def test_times_are_spread_evenly_and_noised_accordingly() -> None:
    found = task(PLAIN, batch_size=8, samples=Shapes(191))
    seen = spied(found)
    levels, offsets = [], set()
    for step in range(15):
        found.loss(whole(found, step))
        t = found.model.schedule.time(seen["logsnr"].double())
        assert sorted((t * 8).long().tolist()) == list(range(8))
        offsets.add(round((t[0].item() * 8) % 1, 6))
        levels.append(seen["logsnr"])
        alpha, sigma = seen["logsnr"].sigmoid().sqrt(), (-seen["logsnr"]).sigmoid().sqrt()
        eps = (seen["z"] - GREY * alpha[:, None, None, None]) / sigma[:, None, None, None]
        assert abs(eps[t > 0.1].mean()) < 0.15
        assert eps[t > 0.1].std().item() == pytest.approx(1, abs=0.1)
    assert len(offsets) == 15
    assert torch.cat(levels).unique().numel() == 120


@pytest.mark.parametrize("prediction", ["eps", "x", "v"])
@pytest.mark.parametrize(
    "weight", [LossWeight("eps_mse"), LossWeight("truncated_snr"), LossWeight("sigmoid", bias=-1.0)]
)
def test_the_loss_is_the_weighted_error_of_x0(prediction: Any, weight: LossWeight) -> None:
    """A new network's output is zero; its x0 and so its loss can be told from z alone."""
    config = replace(PLAIN, prediction=prediction, schedule=Cosine(-3.0, 3.0))
    found = task(config, samples=Shapes(191), loss=weight)
    seen = spied(found)
    loss, _ = found.loss(whole(found, 0))
    snr = seen["logsnr"].exp()
    x0 = found.model(seen["z"], seen["logsnr"], found.model.prepare(Condition(), batch=4)).x0
    error = (x0 - GREY).square().mean(dim=(1, 2, 3))
    wanted = {
        "eps_mse": snr,
        "truncated_snr": snr.clamp(min=1),
        "sigmoid": math.exp(-1) / (1 + math.exp(-1) / snr),
    }[weight.name]
    assert loss.item() == pytest.approx((wanted * error).mean().item(), rel=1e-4)


def test_errors_are_told_by_quarters_of_the_noise() -> None:
    """A zero v: at the clean end the error is that of the noise, 1; at the noisy end that of the image, 0.25."""
    found = task(PLAIN, samples=Shapes(191))
    sums = Counter()
    for step in range(20):
        loss, figures = found.loss(whole(found, step))
        assert list(figures) == [f"error_q{q}" for q in (1, 2, 3, 4)]
        assert loss.item() == pytest.approx(sum(figure.mean().item() for figure in figures.values()) / 4, rel=1e-4)
        sums.update({name: figure.mean().item() for name, figure in figures.items()})
    assert sums["error_q1"] / 20 == pytest.approx(1, abs=0.1)
    assert sums["error_q4"] / 20 == pytest.approx(0.25, abs=0.05)
    assert sums["error_q1"] > sums["error_q2"] > sums["error_q3"] > sums["error_q4"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_captions_are_dropped_as_often_as_asked(share: float) -> None:
    found = task(batch_size=250, samples=Shapes(text_dropout=share))
    found.model.output = lambda z, logsnr, prepared: torch.zeros_like(z)  # type: ignore[method-assign]
    seen, dropped = spied(found), 0
    for step in range(4):
        found.loss(whole(found, step))
        text = seen["condition"].text
        rows = (text.tokens == 0).all(dim=(1, 2))
        dropped += int(rows.sum())
        assert text.mask[rows].sum(dim=1).tolist() == [1] * int(rows.sum())
        assert text.mask[~rows].sum(dim=1).tolist() == [4] * int((~rows).sum())
    assert abs(dropped - 1000 * share) <= 3.5 * math.sqrt(1000 * share * (1 - share))


def test_a_dropped_caption_is_the_null_embedding_to_the_network() -> None:
    found = randomized(task(samples=Shapes(text_dropout=1.0)))
    seen = spied(found)
    found.loss(whole(found, 0))
    network, text = found.model.network, seen["condition"].text
    null = TextEmbedding.null(4, 8)
    torch.testing.assert_close(
        network.embed_condition(4, text.tokens, text.mask, None, None),
        network.embed_condition(4, null.tokens, null.mask, None, None),
    )
    z, logsnr = torch.randn(4, 3, 8, 8), torch.zeros(4)
    with torch.no_grad():
        outputs = [Denoiser.output(found.model, z, logsnr, found.model.prepare(Condition(t))) for t in (text, null)]
    torch.testing.assert_close(*outputs)


def test_a_null_prompt_stands_for_a_dropped_caption() -> None:
    found, null = task(samples=Shapes(text_dropout=0.5)), encode(["the empty prompt of another model"])
    told = DiffusionTask(found.stage, Shapes(text_dropout=0.5), encode, replace(found.config, batch_size=32), null=null)
    seen, batch = spied(told), whole(told, 0)
    told.loss(batch)
    text, dropped = seen["condition"].text, batch.samples.dropped
    assert 0 < dropped.sum() < 32
    for row, out in enumerate(dropped):
        wanted = null if out else encode([batch.samples.captions[row]])
        count = int(wanted.mask.sum())
        assert torch.equal(text.tokens[row, :count], wanted.tokens[0, :count])
        assert text.mask[row].sum() == count


@pytest.mark.parametrize("config", [BASE, SR])
def test_rows_are_those_of_the_whole_batch(config: StageConfig) -> None:
    """However a batch is split among processes and parts, every image keeps its noise, time, level and caption."""
    found = task(config, batch_size=6)
    batch = whole(found, 5)
    parts = [found.batch(5, range(0, 2)), found.batch(5, range(2, 6))]
    for name in ("time", "noise", "level", "blur_sigma"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert torch.equal(torch.cat([part.samples.images for part in parts]), batch.samples.images)
    assert [caption for part in parts for caption in part.samples.captions] == batch.samples.captions
    assert [i for part in parts for i in part.samples.indices] == batch.samples.indices == list(range(30, 36))
    for name in ("noise", "level", "time") if config is SR else ("noise", "time"):
        assert len(getattr(batch, name).flatten(1 if name == "noise" else 0).unique(dim=0)) == 6
    if config is SR:
        assert batch.level_noise is not None
        assert not torch.equal(batch.level_noise, batch.noise)
        assert torch.equal(torch.cat([part.level_noise for part in parts]), batch.level_noise)


def test_parts_of_a_batch_have_its_gradient() -> None:
    found = randomized(task(SR, batch_size=8))
    found.loss(whole(found, 0))[0].backward()
    wanted = [p.grad.clone() for p in found.model.parameters()]
    found.model.zero_grad()
    for rows in (range(0, 4), range(4, 8)):
        (found.loss(found.batch(0, rows))[0] / 2).backward()
    for p, gradient in zip(found.model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_stage_without_text_or_augmentation_trains(tmp_path: Path) -> None:
    network = UNetConfig(32, (1,), (1,), (), 32, in_channels=6)
    plain = replace(SR, network=network, augmentation=None, schedule=LinearBeta())
    Loop(task(plain), LOOP, tmp_path).run(Budget(steps=2))
    assert all(math.isfinite(line["loss"]) for line in log(tmp_path))


def test_all_of_a_batch_is_put_where_a_gpu_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning takes a GPU; that every tensor is asked for it does not."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor if tensor.dtype == torch.bool else tensor + 1)
    found = task(SR)
    batch = whole(found, 0)
    batch = replace(batch, samples=replace(batch.samples, text=encode(batch.samples.captions)))
    pinned = batch.pin_memory()
    for name in ("time", "noise", "level", "blur_sigma", "level_noise"):
        assert torch.equal(getattr(pinned, name), getattr(batch, name) + 1)
    assert torch.equal(pinned.samples.images, batch.samples.images + 1)
    assert torch.equal(pinned.samples.text.tokens, batch.samples.text.tokens + 1)  # with what masks hide
    assert (pinned.samples.names, pinned.seed) == (batch.samples.names, batch.seed)
    assert not torch.equal(pinned.noise, batch.noise)
    assert batch.to(torch.device("meta")).samples.text.tokens.is_meta
