"""Stage: what it draws, what that costs, drawing from an image, and the settings that are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from single_stages import BASE, SAMPLING, SR, base_config, built, draw, last, sr_config, text
from torch import Tensor

from cascade.randomness import Draws
from cascade.samplers import SAMPLERS
from cascade.stage import Augmentation, Sampling, Stage
from cascade.thresholding import Thresholding
from conditioning.lowres import augment
from conditioning.text import TextEmbedding


def counted(stage: Stage) -> list[int]:
    """Grows by the rows of every pass through the network."""
    passes: list[int] = []
    stage.denoiser.network.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    return passes


# One image, whatever the batch


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["base", "sr"])
def test_an_image_is_the_same_in_any_batch(kind: str, sampler: str) -> None:
    stage = built(base_config() if kind == "base" else sr_config(low=4))
    low_res = None if kind == "base" else torch.randn(3, 3, 4, 4).clamp(-1, 1)
    sampling = replace(SAMPLING, sampler=sampler)
    words, null = text(3), TextEmbedding.null(3, 16)
    together = draw(stage, [5, 6, 7], low_res=low_res, sampling=sampling)
    assert together.shape == (3, 3, 8, 8)
    for i in range(3):
        part = slice(i, i + 1)
        alone = draw(
            stage,
            [5 + i],
            text=words[part],
            null=null[part],
            low_res=None if low_res is None else low_res[part],
            sampling=sampling,
        )
        torch.testing.assert_close(together[part], alone, rtol=0, atol=1e-4)
    assert min((together[i] - together[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1


def test_seeds_and_stages_have_their_own_noise() -> None:
    stage = built(base_config())
    kwargs = {"text": text(1), "null": TextEmbedding.null(1, 16)}
    one = last(stage.sample(Draws([5], 0), (8, 8), **kwargs))
    assert torch.equal(last(stage.sample(Draws([5], 0), (8, 8), **kwargs)), one)
    assert (last(stage.sample(Draws([6], 0), (8, 8), **kwargs)) - one).abs().max() > 0.1
    assert (last(stage.sample(Draws([5], 1), (8, 8), **kwargs)) - one).abs().max() > 0.1


def test_text_and_guidance_reach_the_image() -> None:
    stage = built(base_config())
    seeds = [3, 4]
    plain = draw(stage, seeds)
    other = TextEmbedding(text(2).tokens.flip(0), torch.ones(2, 6) > 0)
    assert (draw(stage, seeds, text=other) - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert (draw(stage, seeds, null=other) - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    off = replace(SAMPLING, guidance_scale=1.0)
    assert (draw(stage, seeds, sampling=off) - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert torch.equal(draw(stage, seeds, sampling=off, null=None), draw(stage, seeds, sampling=off, null=other))


@pytest.mark.parametrize("size", [(4, 12), (12, 4), (2, 2)])
def test_other_sizes_and_shapes_are_drawn(size: tuple[int, int]) -> None:
    assert draw(built(base_config()), [0, 1], size).shape == (2, 3, *size)
    low_res = torch.zeros(1, 3, size[0] // 2, size[1] // 2)
    sr = built(sr_config())
    assert draw(sr, [0], size, low_res=low_res).shape == (1, 3, *size)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_thresholded_images_are_in_range(kind: Any) -> None:
    stage = built(base_config())
    with torch.no_grad():
        stage.denoiser.network.out.weight.mul_(20)
    free = replace(SAMPLING, thresholding=Thresholding("none"))
    assert draw(stage, [0, 1], sampling=free).abs().max() > 1.5
    found = draw(stage, [0, 1], sampling=replace(SAMPLING, thresholding=Thresholding(kind)))
    assert found.abs().max() <= 1 + 1e-6


# What it costs


@pytest.mark.parametrize(
    ("changes", "with_text", "rows"),
    [
        ({"guidance_scale": 1.0}, True, [2, 2, 2]),
        ({"guidance_scale": 5.0}, True, [4, 4, 4]),
        ({"guidance_scale": 0.0}, True, [4, 4, 4]),
        ({"guidance_scale": 5.0, "guidance_interval": (-100.0, 0.5)}, True, [4, 4, 2]),
        ({"guidance_scale": 5.0}, False, [2, 2, 2]),
        ({"guidance_scale": 1.0, "sampler": "heun"}, True, [2, 2, 2, 2, 2]),
    ],
)
def test_a_step_is_one_pass_and_guidance_doubles_its_rows(changes: dict, with_text: bool, rows: list[int]) -> None:
    stage = built(base_config(network=BASE if with_text else replace(BASE, text_width=None)))
    passes = counted(stage)
    draw(stage, [0, 1], sampling=replace(SAMPLING, **changes))
    assert passes == rows


def test_a_stage_without_text_ignores_the_cascades_text() -> None:
    stage = built(base_config(network=replace(BASE, text_width=None)))
    assert torch.equal(draw(stage, [0], text=text(1), null=None), draw(stage, [0]))


def test_a_class_conditional_stage_draws_its_class_free_half() -> None:
    stage = built(base_config(network=replace(BASE, text_width=None, classes=5)))
    told = []
    stage.denoiser.network.class_embedding.register_forward_pre_hook(lambda module, args: told.append(args[0]))
    draw(stage, [0, 1])
    assert [label.tolist() for label in told] == [[5, 5]]


def test_a_class_is_drawn_and_guided_away_from_none() -> None:
    stage = built(base_config(network=replace(BASE, text_width=None, classes=5)))
    told, passes = [], counted(stage)
    stage.denoiser.network.class_embedding.register_forward_pre_hook(lambda module, args: told.append(args[0]))
    label = torch.tensor([3, 0])
    guided = draw(stage, [0, 1], label=label)
    plain = draw(stage, [0, 1], label=label, sampling=replace(SAMPLING, guidance_scale=1.0))
    assert [row.tolist() for row in told] == [[3, 0, 5, 5], [3, 0]]
    assert passes == [4, 4, 4, 2, 2, 2]
    none = draw(stage, [0, 1])
    for one, other in ((guided, plain), (plain, none)):
        assert (one - other).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_what_a_stage_needs_is_asked_for() -> None:
    with pytest.raises(ValueError, match="stage 'sr-16' enlarges an image: give low_res"):
        draw(built(sr_config()), [0], (16, 16))
    with pytest.raises(ValueError, match="this network needs text"):
        draw(built(base_config()), [0], text=None)
    with pytest.raises(ValueError, match="guidance needs the null embedding beside the text"):
        draw(built(base_config()), [0], null=None)


# Starting from an image


def test_a_start_begins_its_grid_at_that_time() -> None:
    stage = built(base_config())
    image = torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
    kwargs = {"text": text(1), "null": TextEmbedding.null(1, 16)}
    whole = list(stage.sample(Draws([0], 0), (8, 8), **kwargs))
    part = list(stage.sample(Draws([0], 0), (8, 8), start=(0.6, image), **kwargs))
    assert (len(part), len(whole)) == (2, 3)
    assert whole[0].logsnr == stage.denoiser.schedule(1.0)
    assert part[0].logsnr == stage.denoiser.schedule(0.6)
    assert all(a.logsnr < b.logsnr for a, b in pairwise(part))
    seen = []
    stage.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    list(stage.sample(Draws([0], 0), (8, 8), start=(0.6, image), **kwargs))
    noise = Draws([0], 0).normal("start", (3, 8, 8))
    torch.testing.assert_close(seen[0], augment(image, torch.tensor([part[0].logsnr]), noise))
    # Barely noised, it stays what it was; from the top, it does not matter.
    near = draw(
        stage,
        [0],
        start=(0.002, image),
        sampling=replace(SAMPLING, guidance_scale=1.0, thresholding=Thresholding("none")),
    )
    assert (near - image).abs().max() < 0.05
    far = [draw(stage, [0], start=(1.0, sign * image)) for sign in (1, -1)]
    assert (far[0] - far[1]).abs().max() < 1e-2


@pytest.mark.parametrize("time", [0.0, 1.5, -1.0])
def test_a_start_outside_the_process_is_refused(time: float) -> None:
    with pytest.raises(ValueError, match=r"time in \(0, 1\]"):
        draw(built(base_config()), [0], start=(time, torch.zeros(1, 3, 8, 8)))


def test_after_step_replaces_z() -> None:
    stage = built(base_config())
    levels = []

    def hold(z: Tensor, logsnr: float) -> Tensor:
        levels.append(logsnr)
        return torch.zeros_like(z)

    assert (draw(stage, [0], after_step=hold) == 0).all()
    assert levels == [stage.denoiser.schedule(t) for t in (2 / 3, 1 / 3)] + [float("inf")]


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"sampler": "euler"}, "unknown sampler 'euler': choose one of ddpm, ddim, dpmpp_2m, heun"),
        ({"guidance_scale": float("nan")}, r"guidance scale must be a number >= 0 \(1 is off\), got nan"),
        ({"guidance_scale": -1.0}, "guidance scale"),
        ({"guidance_scale": float("inf")}, "guidance scale"),
        ({"aug_level": 1.1}, r"aug_level must be in \[0, 1\], got 1.1"),
        ({"aug_level": -0.1}, "aug_level"),
        ({"aug_level": float("nan")}, "aug_level"),
    ],
)
def test_sampling_settings_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**changes)
    with pytest.raises(ValueError, match=message):
        Sampling().override(**changes)


def test_none_keeps_a_setting() -> None:
    found = SAMPLING.override(steps=9, guidance_scale=None, sampler=None, aug_level=0.0)
    assert found == replace(SAMPLING, steps=9, aug_level=0.0)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (base_config, {"network": replace(BASE, in_channels=6)}, "a base stage's network takes 3 channels, got 6"),
        (
            sr_config,
            {"network": replace(SR, in_channels=3)},
            "a super-resolution stage's network takes 6 channels, got 3",
        ),
        (base_config, {"learned_variance": True}, "with learned variance puts out 6 channels, got 3"),
        (
            base_config,
            {"network": replace(BASE, out_channels=6)},
            "without learned variance puts out 3 channels, got 6",
        ),
        (sr_config, {"augmentation": None}, "told the level of an augmentation, and there is none"),
        (sr_config, {"network": replace(SR, augmented=False)}, "not told the level of the augmentation"),
        (
            base_config,
            {"network": replace(BASE, augmented=True), "augmentation": Augmentation()},
            "a base stage has no low-resolution image to augment",
        ),
        (base_config, {"resolution": (8, 9)}, r"resolution \(8, 9\) is not divisible by the network's 2"),
    ],
)
def test_stage_configs_are_checked(config: Any, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
