"""What super-resolution adds: materials recognized, consistency with its input, error and sharpness."""

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
        captions = [prompt.prompt for prompt in some for _ in range(setting.images)]
        small = pipe(captions, seed=start * setting.images, output_type="pt", stop_after=last - 1).images
        for name, images in enlarged(pipe, small.float().mul(2).sub(1), captions).items():
            for prompt, own in zip(some, images.unflatten(0, (-1, setting.images)), strict=True):
                recognized.setdefault(f"generated, {name}", []).append(
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
    low = downsample(truth, (64, 64))
    captions = [plain_caption(scene.description) for scene in scenes]
    versions = {**enlarged(pipe, low, captions), "true render": truth}
    for name, images in versions.items():
        recognized[f"renders, {name}"] = [
            ["material" not in verdicts(detector, image[None], scene.description)[0].wrong]
            for image, scene in zip(images, scenes, strict=True)
        ]
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


def enlarged(pipe: Pipeline, low: Tensor, captions: list[str]) -> dict[str, Tensor]:
    """The same pictures, N 3 h w in [-1, 1], in several ways as N 3 H W; in one, free to mend its faults."""
    last = len(pipe.cascade) - 1

    def enlarge(aug_level: float | None = None) -> Tensor:
        options = {"start_stage": last, "aug_level": aug_level, "max_batch_size": 8, "output_type": "pt", "seed": 0}
        return pipe(captions, image=(low.clamp(-1, 1) + 1) / 2, **options).images.cpu().float() * 2 - 1

    return {
        "bicubic": upsample(low, pipe.cascade.stages[last].config.resolution),
        "super-resolution, aug_level 0.2": enlarge(0.2),
        "super-resolution": enlarge(),
    }


def sharpness(images: Tensor) -> float:
    """Mean gradient magnitude."""
    dy, dx = images.diff(dim=-2)[..., :, 1:], images.diff(dim=-1)[..., 1:, :]
    return torch.hypot(dy, dx).mean().item()
