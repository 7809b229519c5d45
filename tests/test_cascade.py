"""Super-resolution and Cascade: augmentation of what a stage enlarges, stages one after another, and their sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from single_stages import BASE, SAMPLING, SR, SR3, base_config, built, draw, last, plain_sr_config, sr_config, text
from torch import Tensor

from cascade.build import build_stage
from cascade.chain import Cascade
from cascade.data.samples import Sample
from cascade.randomness import Draws
from cascade.schedules import Cosine, LinearBeta
from cascade.stage import Augmentation, Stage
from cascade.training.diffusion import DiffusionConfig, DiffusionTask
from conditioning.lowres import downsample, upsample
from conditioning.text import TextEmbedding

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
