"""Stage and Cascade: sampling with one stage and with several, sizes, augmentation, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.build import build_stage
from cascade.chain import Cascade
from cascade.data.samples import Sample
from cascade.networks.efficient_unet import EfficientUNetConfig
from cascade.networks.unet import UNetConfig
from cascade.randomness import Draws
from cascade.samplers import SAMPLERS
from cascade.schedules import Cosine, LinearBeta
from cascade.stage import Augmentation, Sampling, Stage, StageConfig
from cascade.thresholding import Thresholding
from cascade.training.diffusion import DiffusionConfig, DiffusionTask
from conditioning.lowres import augment, downsample, upsample
from conditioning.text import TextEmbedding

BASE = UNetConfig(32, (1, 2), (1, 1), (1,), 32, head_channels=32, text_width=16)
SR = EfficientUNetConfig(32, (1,), (1,), 32, heads=2, text_width=16)
SR3 = UNetConfig(32, (1, 1), (1, 1), (), 32, in_channels=6)
SAMPLING = Sampling(steps=3, guidance_scale=3.0, aug_level=0.3)


def base_config(side: int = 8, **changes: Any) -> StageConfig:
    return StageConfig(**{"name": "base", "resolution": (side, side), "network": BASE, "sampling": SAMPLING} | changes)


def sr_config(low: int = 8, ratio: int = 2, **changes: Any) -> StageConfig:
    side = low * ratio
    values = {
        "name": f"sr-{side}",
        "resolution": (side, side),
        "low_resolution": (low, low),
        "network": SR,
        "augmentation": Augmentation(),
        "sampling": SAMPLING,
    }
    return StageConfig(**values | changes)


def plain_sr_config(**changes: Any) -> StageConfig:
    """SR3: no text, no augmentation."""
    return sr_config(network=SR3, augmentation=None, schedule=LinearBeta(), **changes)


def built(config: StageConfig) -> Stage:
    """With random weights everywhere: output layers start at zero, where everything would agree with everything."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        stage = build_stage(config)
        with torch.no_grad():
            for parameter in stage.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return stage.eval()


def text(batch: int) -> TextEmbedding:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(6)[None] < torch.tensor([6, 2, 4, 1, 5, 3])[:batch, None]
    return TextEmbedding(torch.randn(6, 6, 16, generator=generator)[:batch], mask)


def last(steps: Any) -> Tensor:
    return list(steps)[-1].z


def draw(stage: Stage, seeds: list[int], size: tuple[int, int] = (8, 8), **kwargs: Any) -> Tensor:
    if stage.config.network.text_width is not None:
        kwargs = {"text": text(len(seeds)), "null": TextEmbedding.null(len(seeds), 16)} | kwargs
    return last(stage.sample(Draws(seeds, 0), size, **kwargs))


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


# Conditioning augmentation


class Counting(Draws):
    def __init__(self, seeds: list[int], stage: int) -> None:
        super().__init__(seeds, stage)
        self.purposes: list[str] = []

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        self.purposes.append(purpose)
        return super().normal(purpose, shape)


def test_the_low_resolution_image_is_augmented_once_a_call() -> None:
    stage = built(sr_config(low=4))
    seen, draws = [], Counting([0, 1], 0)
    stage.denoiser.network.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, 3:]))
    last(
        stage.sample(
            draws,
            (8, 8),
            text=text(2),
            null=TextEmbedding.null(2, 16),
            low_res=torch.zeros(2, 3, 4, 4),
            sampling=replace(SAMPLING, sampler="ddpm"),
        )
    )
    assert sorted(draws.purposes) == ["augmentation", "start", "steps", "steps"]
    assert len(seen) == 3
    for conditioning in seen:
        assert torch.equal(conditioning, torch.cat([seen[0][:2]] * 2))  # at every step and in both halves
    assert seen[0].std() > 0.1


def trained_on(stage: Stage, count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of a training batch: what the low-resolution image was made of, that image, and the level told."""
    blocks = torch.randint(13, 243, (count, 3, size[0] // 4, size[1] // 4), generator=torch.Generator().manual_seed(3))
    pictures = blocks.byte().repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    samples, given = [Sample(i, picture, "a picture", False, "") for i, picture in enumerate(pictures)], []
    prepare = stage.denoiser.prepare
    stage.denoiser.prepare = lambda condition, **kwargs: given.append(condition) or prepare(condition, **kwargs)  # type: ignore[method-assign]
    task = DiffusionTask(stage, samples, None, DiffusionConfig(batch_size=count))
    task.loss(task.batch(0, range(count)))
    del stage.denoiser.prepare
    small = downsample(pictures.float() / 127.5 - 1, (round(size[0] / stage.scale[0]), round(size[1] / stage.scale[1])))
    return small, given[0].low_res, given[0].aug_logsnr


def fit(image: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per image: the factor on the clean one, and the mean and deviation of what is added."""
    x, y = clean.flatten(1), image.flatten(1)
    alpha = (x * y).sum(dim=1) / (x * x).sum(dim=1)
    rest = y - alpha[:, None] * x
    return alpha, rest.mean(dim=1), rest.std(dim=1)


@pytest.mark.parametrize("schedule", [Cosine(), Cosine(-8.0, 8.0, shift=1.0), LinearBeta()])
def test_training_and_sampling_augment_alike(schedule: Any) -> None:
    network = replace(SR, text_width=None)
    stage = built(sr_config(32, 2, network=network, augmentation=Augmentation(schedule, max_level=0.9)))
    small, trained, told = trained_on(stage, 6, (64, 64))
    assert told.unique().numel() == 6
    assert (told >= schedule(0.9) - 1e-3).all()
    for i in range(6):
        level = schedule.time(told[i].item())
        sampling = replace(SAMPLING, aug_level=level)
        condition = stage.condition(None, small[i : i + 1], (64, 64), sampling, Draws([i], 0))
        assert condition.aug_logsnr.item() == pytest.approx(told[i].item(), abs=1e-3)
        enlarged = upsample(small[i : i + 1], (64, 64))
        alpha, sigma = told[i].sigmoid().sqrt(), (-told[i]).sigmoid().sqrt()
        for found in (condition.low_res, trained[i : i + 1]):
            factor, mean, deviation = (value.item() for value in fit(found, enlarged))
            assert factor == pytest.approx(alpha.item(), abs=0.1 * sigma.item() + 1e-3)
            assert mean == pytest.approx(0, abs=0.05 * sigma.item() + 1e-3)
            assert deviation == pytest.approx(sigma.item(), rel=0.05, abs=1e-3)


def test_levels_in_training_fill_the_range_that_sampling_may_use() -> None:
    stage = built(sr_config(2, 2, network=replace(SR, text_width=None), augmentation=Augmentation(max_level=0.4)))
    _, _, told = trained_on(stage, 256, (4, 4))
    levels = Cosine().time(told)
    assert 0 <= levels.min() < 0.02
    assert 0.38 < levels.max() <= 0.4 + 1e-4
    assert levels.mean().item() == pytest.approx(0.2, abs=0.02)
    assert len(told.unique()) == 256


def test_blur_is_for_training_only() -> None:
    kwargs = {"schedule": Cosine(-40.0, 40.0), "max_level": 1e-9}  # as good as no noise
    stages = [
        built(
            sr_config(
                8,
                2,
                network=replace(SR, text_width=None),
                augmentation=augmentation,
                sampling=replace(SAMPLING, aug_level=0.0),
            )
        )
        for augmentation in (Augmentation(**kwargs), Augmentation(**kwargs, blur_sigma=(2.0, 2.0), blur_share=0.5))
    ]
    small, sharp, _ = trained_on(stages[0], 64, (16, 16))
    _, blurred, _ = trained_on(stages[1], 64, (16, 16))
    clean = upsample(small, (16, 16))
    assert (sharp - clean).abs().max() < 1e-4
    changed = (blurred - clean).abs().amax(dim=(1, 2, 3)) > 0.1
    assert 0.3 < changed.float().mean() < 0.7
    drawn = stages[1].condition(None, small[:1], (16, 16), stages[1].config.sampling, Draws([0], 0)).low_res
    assert (drawn - clean[:1]).abs().max() < 1e-4


def test_a_stage_without_augmentation_sees_the_image_as_it_is() -> None:
    stage = built(plain_sr_config())
    small, trained, told = trained_on(stage, 2, (16, 16))
    assert told is None
    assert torch.equal(trained, upsample(small, (16, 16)))
    condition = stage.condition(None, small, (16, 16), SAMPLING, Draws([0, 1], 0))
    assert condition.aug_logsnr is None
    assert torch.equal(condition.low_res, trained)


def test_the_augmentation_level_is_told_to_the_network() -> None:
    stage = built(sr_config(low=4))
    low_res = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    told = []
    stage.denoiser.network.augmentation_embedding.register_forward_pre_hook(lambda module, args: told.append(args[0]))
    for level in (0.0, 0.5, 1.0):
        draw(stage, [0], low_res=low_res, sampling=replace(SAMPLING, aug_level=level))
    # 1000 (2 / pi) atan(sigma / alpha) is the time of the unshifted cosine schedule.
    torch.testing.assert_close(torch.cat([t[:1] for t in told]), torch.tensor([0.0, 500.0, 1000.0]), rtol=0, atol=0.1)


# Cascades


def end_to_end(cascade: Cascade, sizes: list, **kwargs: Any) -> dict[int, Tensor]:
    kwargs = {"text": text(2), "null": TextEmbedding.null(2, 16)} | kwargs
    return {number: step.z for number, step in cascade.sample([4, 5], sizes, **kwargs)}


def test_each_stage_enlarges_what_the_one_before_drew() -> None:
    stages = [built(base_config(4)), built(sr_config(4, 2)), built(sr_config(8, 3))]
    cascade = Cascade(stages)
    given: dict[int, Tensor] = {}
    for number in (1, 2):
        stage, condition = stages[number], stages[number].condition

        def spy(text: Any, low_res: Tensor, *rest: Any, _number: int = number, _condition: Any = condition) -> Any:
            given[_number] = low_res
            return _condition(text, low_res, *rest)

        stage.condition = spy  # type: ignore[method-assign]
    drawn = end_to_end(cascade, cascade.sizes())
    assert [image.shape for image in drawn.values()] == [(2, 3, side, side) for side in (4, 8, 24)]
    assert torch.equal(given[1], drawn[0])
    assert torch.equal(given[2], drawn[1])
    assert all(image.abs().max() <= 1 + 1e-6 for image in drawn.values())


def test_steps_say_which_stage_and_stages_can_be_redone_alone() -> None:
    cascade = Cascade([built(base_config(4)), built(sr_config(4, 2))])
    samplings = [replace(SAMPLING, steps=2), replace(SAMPLING, steps=4)]
    kwargs = {"text": text(2), "null": TextEmbedding.null(2, 16)}
    steps = list(cascade.sample([4, 5], cascade.sizes(), samplings=samplings, **kwargs))
    assert [(number, step.index) for number, step in steps] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]
    first, second = steps[1][1].z, steps[-1][1].z
    again = list(cascade.sample([4, 5], [(8, 8)], samplings=samplings[1:], image=first, first=1, **kwargs))
    assert {number for number, _ in again} == {1}
    assert torch.equal(again[-1][1].z, second)
    assert (second - upsample(first, (8, 8))).abs().max() > 0.1


def test_an_image_is_the_same_in_any_batch_through_a_cascade() -> None:
    cascade = Cascade([built(base_config(4)), built(sr_config(4, 2))])
    together = end_to_end(cascade, cascade.sizes())[1]
    for i in range(2):
        part = slice(i, i + 1)
        *_, (_, step) = cascade.sample([4 + i], cascade.sizes(), text=text(2)[part], null=TextEmbedding.null(1, 16))
        torch.testing.assert_close(together[part], step.z, rtol=0, atol=1e-4)


def test_hooks_are_made_per_stage_and_start_is_for_the_first() -> None:
    cascade = Cascade([built(base_config(4)), built(sr_config(4, 2))])
    made = []

    def after_step(number: int, draws: Draws, size: tuple[int, int]) -> None:
        made.append((number, draws.seeds, draws.stage, size))

    kwargs = {"text": text(2), "null": TextEmbedding.null(2, 16)}
    image = torch.zeros(2, 3, 4, 4)
    steps = list(cascade.sample([4, 5], cascade.sizes(), after_step=after_step, start=(0.5, image), **kwargs))
    assert made == [(0, [4, 5], 0, (4, 4)), (1, [4, 5], 1, (8, 8))]
    assert [step.logsnr for _, step in steps] == [Cosine()(t) for t in (0.5, 0.25, 1, 2 / 3, 1 / 3)]


def test_super_resolution_alone_is_a_cascade() -> None:
    stage = built(plain_sr_config())
    cascade = Cascade([stage])
    assert cascade.sizes() == [(16, 16)]
    assert cascade.sizes((32, 24)) == [(32, 24)]
    image = torch.linspace(-1, 1, 2 * 3 * 12 * 10).view(2, 3, 12, 10)
    *_, (number, step) = cascade.sample([0, 1], [(24, 20)], image=image)
    assert number == 0
    assert step.z.shape == (2, 3, 24, 20)
    other = list(cascade.sample([0, 1], [(24, 20)], image=-image))[-1][1].z
    assert (step.z - other).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("ratios", "size", "wanted"),
    [
        ((2,), None, [(8, 8), (16, 16)]),
        ((3,), None, [(8, 8), (24, 24)]),
        ((4,), (64, 96), [(16, 24), (64, 96)]),
        ((3,), (18, 30), [(6, 10), (18, 30)]),
        ((2, 3), None, [(8, 8), (16, 16), (48, 48)]),
        ((4, 3), (96, 24), [(8, 2), (32, 8), (96, 24)]),
        ((3, 4), (24, 120), [(2, 10), (6, 30), (24, 120)]),
    ],
)
def test_sizes_follow_the_ratios(ratios: tuple[int, ...], size: Any, wanted: list) -> None:
    stages, side = [build_stage(base_config())], 8
    for ratio in ratios:
        stages.append(build_stage(sr_config(side, ratio)))
        side *= ratio
    cascade = Cascade(stages)
    assert cascade.sizes(size) == wanted
    assert cascade.sizes(size, first=1) == wanted[1:]
    assert cascade.sizes(wanted[0], last=0) == wanted[:1]
    assert cascade.sizes(last=len(wanted) - 2) == Cascade(stages[:-1]).sizes()


def test_every_trained_size_is_drawn_whatever_the_ratio() -> None:
    """Ratios that floating point cannot hold, such as 20 / 14, are no reason to refuse."""
    with torch.device("meta"):
        for low, side in ((14, 20), (48, 64), (224, 232), (416, 480), (592, 792), (7, 49 * 2)):
            base = build_stage(
                base_config(network=replace(BASE, multipliers=(1,), blocks=(1,), attention_levels=()), side=low)
            )
            cascade = Cascade([base, build_stage(sr_config(low, 1, resolution=(side, side)))])
            assert cascade.sizes() == [(low, low), (side, side)]
            assert cascade.sizes((2 * side, 6 * side)) == [(2 * low, 6 * low), (2 * side, 6 * side)]


@pytest.mark.parametrize(("side", "near"), [(1, 4), (5, 4), (7, 8), (6, 8), (101, 100), (-4, 4), (0, 4)])
def test_a_size_that_cannot_be_drawn_names_one_that_can(side: int, near: int) -> None:
    stage = build_stage(base_config(network=replace(BASE, patch=2)))
    for size, name in (((side, 8), "height"), ((8, side), "width")):
        with pytest.raises(
            ValueError, match=f"stage 'base' draws sides divisible by 4: {name} {side} is not; try {near}$"
        ):
            stage.check_size(*size)
        with pytest.raises(ValueError, match=f"try {near}$"):
            draw(stage, [0], size)
    stage.check_size(near, 8)


@pytest.mark.parametrize(
    ("size", "near"), [((31, 20), (30, 20)), ((20, 34), (20, 35)), ((2, 62), (5, 60)), ((60, 19), (60, 20))]
)
def test_a_size_between_multiples_names_one_that_works(size: tuple[int, int], near: tuple[int, int]) -> None:
    flat = replace(BASE, multipliers=(1,), blocks=(1,), attention_levels=())
    enlarging = replace(SR3, multipliers=(1,), blocks=(1,))
    by_five_thirds = sr_config(3, 1, resolution=(5, 5), network=enlarging, augmentation=None)
    cascade = Cascade([build_stage(base_config(3, network=flat)), build_stage(by_five_thirds)])
    message = f"'sr-3' enlarges by 1.66667 x 1.66667, which {size[0]} x {size[1]} is not .*; try {near[0]} x {near[1]}$"
    with pytest.raises(ValueError, match=message):
        cascade.sizes(size)
    assert cascade.sizes(near)[1] == near


def test_stages_that_do_not_fit_are_refused() -> None:
    base, sr = build_stage(base_config(8)), build_stage(sr_config(8, 2))
    with pytest.raises(ValueError, match="a cascade needs at least one stage"):
        Cascade([])
    with pytest.raises(ValueError, match=r"stage 'sr-16' enlarges images of \(8, 8\), but stage 'base' .*\(4, 4\)"):
        Cascade([build_stage(base_config(4)), sr])
    with pytest.raises(
        ValueError, match=r"'base' enlarges images of None, but stage 'sr-16' before it draws \(16, 16\)"
    ):
        Cascade([base, sr, base])
    assert len(Cascade([base, sr, build_stage(sr_config(16, 4))])) == 3


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


def test_an_augmentation_level_beyond_training_is_refused() -> None:
    augmentation = Augmentation(max_level=0.5)
    stage = build_stage(sr_config(low=4, augmentation=augmentation))
    with pytest.raises(ValueError, match=r"stage 'sr-8' was trained with aug_level up to 0.5, got 0.6"):
        draw(stage, [0], low_res=torch.zeros(1, 3, 4, 4), sampling=replace(SAMPLING, aug_level=0.6))
    with pytest.raises(ValueError, match=r"sampling.aug_level 0.3 is above the trained 0.2"):
        sr_config(augmentation=Augmentation(max_level=0.2))
    for level in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"max_level must be in \(0, 1\]"):
            Augmentation(max_level=level)


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
        (sr_config, {"augmentation": None}, "augmentation must be configured exactly where the network is told"),
        (sr_config, {"network": replace(SR, augmented=False)}, "augmentation must be configured exactly"),
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
