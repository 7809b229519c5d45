"""Do the embedded default's images match their prompts, and what does its super-resolution add?

    python benchmarks/quality.py [--model DIR] [--out docs/images]

Colour: for 64 single-object prompts (8 nouns x 8 colours) x 2 seeds, the share of images whose dominant colour is the
one asked for; beside it the same measure on true renders of such scenes, and on the same images against shuffled
prompts.

Super-resolution, on held-out renders: consistency (the mean squared error between the downsampled output and the input,
images in [0, 1]; SR3, table 2), error against the true render, and sharpness (mean gradient magnitude as a share of the
true render's), for the stage, for bicubic enlargement, and for the stage with a grey image in place of its input.

Contact sheets of all of these are written to ``out``, uncurated.
"""

import math
from pathlib import Path

import numpy as np
import torch
import tyro
from environment import environment
from torch import Tensor

from cascade import Pipeline
from cascade.data.toybox import COLOURS, plain_caption, render, sample_scene
from cascade.training.toybox import HELD_OUT_SEED
from conditioning.lowres import downsample, upsample
from pipelines.images import from_tensor, grid

NOUNS = ("cube", "ball", "cone", "cylinder", "car", "house", "tree", "mushroom")
SEEDS = 2
MIN_CHROMA = 0.07  # OKLab; grounds stay below, toys above
MIN_SHARE = 0.01  # of the pixels


def oklab(srgb: Tensor) -> Tensor:
    """... 3 sRGB in [0, 1] -> ... 3 OKLab (Ottosson 2020)."""
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_cone = torch.tensor(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = torch.tensor(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return (linear @ to_cone.T).clamp(min=0) ** (1 / 3) @ to_lab.T


def dominant_colour(image: Tensor) -> str | None:
    """The named colour nearest in hue to most of an image's coloured pixels; None if too few have any colour.

    image: 3 H W in [0, 1].
    """
    _, a, b = oklab(image.permute(1, 2, 0)).unbind(-1)
    chroma, hue = torch.hypot(a, b), torch.atan2(b, a)
    _, named_a, named_b = oklab(torch.tensor(list(COLOURS.values()))).unbind(-1)
    named = torch.atan2(named_b, named_a)
    coloured = chroma > MIN_CHROMA
    if coloured.float().mean() < MIN_SHARE:
        return None
    distance = ((hue[coloured][:, None] - named + math.pi) % (2 * math.pi) - math.pi).abs()
    weight = torch.bincount(distance.argmin(dim=1), weights=chroma[coloured], minlength=len(COLOURS))
    return list(COLOURS)[int(weight.argmax())]


def accuracy(images: Tensor, wanted: list[str]) -> float:
    return float(np.mean([dominant_colour(image) == colour for image, colour in zip(images, wanted, strict=True)]))


def single_objects(size: int) -> tuple[Tensor, list[str]]:
    """True renders of single-object scenes of the held-out collection, in [0, 1], and their colours."""
    scenes = [sample_scene(HELD_OUT_SEED, i, {"one": 1.0}) for i in range(SEEDS * len(NOUNS) * len(COLOURS))]
    return (render(scenes, size) + 1) / 2, [scene.things[0].colour for scene in scenes]


def sharpness(images: Tensor) -> float:
    """Mean gradient magnitude."""
    dy, dx = images.diff(dim=-2)[..., :, 1:], images.diff(dim=-1)[..., 1:, :]
    return torch.hypot(dy, dx).mean().item()


def colour_table(pipe: Pipeline, out: Path) -> None:
    prompts = [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {noun}" for noun in NOUNS for colour in COLOURS]
    wanted = [colour for _ in NOUNS for colour in COLOURS for _ in range(SEEDS)]
    drawn = pipe(prompts, num_images_per_prompt=SEEDS, seed=0, max_batch_size=16, output_type="pt").images.cpu()
    shuffled = [wanted[i] for i in np.random.default_rng(0).permutation(len(wanted))]
    renders, true = single_objects(drawn.shape[-1])
    print("\n| images | dominant colour is the one asked for |\n|---|---:|")
    print(f"| true renders ({len(true)}) | {accuracy(renders, true):.1%} |")
    print(f"| generated ({len(wanted)}: {len(prompts)} prompts x {SEEDS} seeds) | {accuracy(drawn, wanted):.1%} |")
    print(f"| the same, against shuffled prompts | {accuracy(drawn, shuffled):.1%} |", flush=True)
    grid(from_tensor(drawn[::SEEDS] * 2 - 1, "pil"), len(COLOURS)).save(out / "single-objects.jpg", quality=92)


def super_resolution_table(pipe: Pipeline, out: Path, count: int = 32) -> None:
    stage = pipe.cascade.stages[-1].config
    low_size = stage.low_resolution
    assert low_size is not None
    scenes = [sample_scene(HELD_OUT_SEED, i) for i in range(count)]
    truth = render(scenes, stage.resolution[0])
    low = downsample(truth, low_size)
    prompts = [plain_caption(scene) for scene in scenes]

    def enlarge(image: Tensor, aug_level: float) -> Tensor:
        last = len(pipe.cascade) - 1
        settings = {"start_stage": last, "aug_level": aug_level, "max_batch_size": 8, "output_type": "pt", "seed": 0}
        return pipe(prompts, image=(image.clamp(-1, 1) + 1) / 2, **settings).images.cpu() * 2 - 1

    default = stage.sampling.aug_level
    rows = {
        "bicubic": upsample(low, stage.resolution),
        "super-resolution, aug_level 0": enlarge(low, 0.0),
        f"super-resolution, aug_level {default:g} (default)": enlarge(low, default),
        "super-resolution of a grey image": enlarge(torch.zeros_like(low), 0.0),
        "true render": truth,
    }
    print("\n| 64 -> 256 px | consistency (MSE x 1e-5) | error (MSE x 1e-3) | sharpness |\n|---|---:|---:|---:|")
    for name, images in rows.items():
        consistency = ((downsample(images, low_size) - low) / 2).square().mean().item()
        error = ((images - truth) / 2).square().mean().item()
        print(f"| {name} | {consistency * 1e5:.2f} | {error * 1e3:.2f} | {sharpness(images) / sharpness(truth):.2f} |")
    shown = [rows[name][i] for i in range(4) for name in ("bicubic", "super-resolution, aug_level 0", "true render")]
    grid(from_tensor(torch.stack(shown), "pil"), 3).save(out / "super-resolution.png", optimize=True)


def main(model: str | None = None, out: Path = Path("docs/images"), dtype: str = "float32") -> None:
    """Print the tables and write the pictures.

    Args:
        model: A folder; the embedded default if left out.
        out: Where the contact sheets go.
        dtype: What the networks compute in.
    """
    out.mkdir(parents=True, exist_ok=True)
    pipe = Pipeline.from_pretrained(model, dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    print(environment())
    colour_table(pipe, out)
    super_resolution_table(pipe, out)


if __name__ == "__main__":
    tyro.cli(main)
