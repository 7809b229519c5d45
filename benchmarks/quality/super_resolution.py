"""What super-resolution adds: materials recognized, consistency with its input, error and sharpness."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.quality.drawing import BATCH, Setting, expected, verdicts
from benchmarks.quality.stored import IMAGES, store
from cascade import Pipeline
from cascade.data.toybox import plain_caption, render, sample_scene
from cascade.training.toybox import UNSEEN_SEED
from conditioning.lowres import downsample, upsample
from pipelines.evaluation.detector import Detector
from pipelines.images import from_tensor, grid

RENDERS = 64


def measure(setting: Setting) -> None:
    """Against bicubic enlargement of the same 64 px images: held-out renders, and the base's own images."""
    pipe, detector = setting.pipeline(), Detector.from_pretrained()
    prompts = setting.suite("materials")
    last = len(pipe.cascade) - 1
    recognized: dict[str, list[list[bool]]] = {}
    for start in range(0, len(prompts), BATCH // setting.images):
        some = prompts[start : start + BATCH // setting.images]
        out = pipe(
            [prompt.prompt for prompt in some],
            num_images_per_prompt=setting.images,
            seed=start * setting.images,
            output_type="pt",
            return_intermediates=True,
        )
        assert out.intermediates is not None, "asked for"
        small, large = (out.intermediates[k].float().mul(2).sub(1) for k in (last - 1, last))
        bicubic = upsample(small, (large.shape[-2], large.shape[-1]))
        for name, images in (("generated, bicubic", bicubic), ("generated, super-resolution", large)):
            for prompt, own in zip(some, images.unflatten(0, (-1, setting.images)), strict=True):
                recognized.setdefault(name, []).append(
                    [
                        "material" not in v.wrong and "number" not in v.wrong
                        for v in verdicts(detector, own, expected(prompt))
                    ]
                )
    scenes, index = [], 0
    while len(scenes) < RENDERS:
        scene = sample_scene(UNSEEN_SEED, index, {"one": 1.0})
        scenes += [scene] * (scene.description.looks[0].material != "plain")
        index += 1
    truth = render(scenes, pipe.cascade.stages[last].config.resolution[0])
    versions = enlargements(pipe, truth, [plain_caption(scene.description) for scene in scenes])
    for name, images in versions.items():
        if name != "grey input":
            recognized[f"renders, {name}"] = [
                ["material" not in verdicts(detector, image[None], scene.description)[0].wrong]
                for image, scene in zip(images, scenes, strict=True)
            ]
    low = downsample(truth, (64, 64))
    store(
        "super-resolution",
        {
            "materials": recognized,
            "fidelity": {
                name: {
                    "consistency": ((downsample(images, (64, 64)) - low) / 2).square().mean().item(),
                    "error": ((images - truth) / 2).square().mean().item(),
                    "sharpness": sharpness(images) / sharpness(truth),
                }
                for name, images in versions.items()
            },
        },
    )
    shown = [versions[name][i] for i in range(6) for name in ("bicubic", "super-resolution", "true render")]
    grid(from_tensor(torch.stack(shown), "pil"), 6).save(IMAGES / "super-resolution.png", optimize=True)


def enlargements(pipe: Pipeline, truth: Tensor, captions: list[str]) -> dict[str, Tensor]:
    """The same pictures, N 3 H W in [-1, 1], enlarged in several ways from a quarter of their size."""
    last = len(pipe.cascade) - 1
    low = downsample(truth, (truth.shape[-2] // 4, truth.shape[-1] // 4))

    def stage(aug_level: float | None = None) -> Callable[[Tensor], Tensor]:
        def enlarge(image: Tensor) -> Tensor:
            options = {"start_stage": last, "aug_level": aug_level, "max_batch_size": 8, "output_type": "pt", "seed": 0}
            return pipe(captions, image=(image.clamp(-1, 1) + 1) / 2, **options).images.cpu().float() * 2 - 1

        return enlarge

    return {
        "bicubic": upsample(low, (truth.shape[-2], truth.shape[-1])),
        "super-resolution, aug_level 0": stage(0.0)(low),
        "super-resolution": stage()(low),
        "grey input": stage(0.0)(torch.zeros_like(low)),
        "true render": truth,
    }


def sharpness(images: Tensor) -> float:
    """Mean gradient magnitude."""
    dy, dx = images.diff(dim=-2)[..., :, 1:], images.diff(dim=-1)[..., 1:, :]
    return torch.hypot(dy, dx).mean().item()
