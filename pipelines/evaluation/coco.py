"""`cascade evaluate`: Imagen's protocol on COCO (section 4.1), over any folder of images with captions.

Captions are drawn at random; for each guidance weight, one image of each is drawn with the same seeds, and compared
with all images of the folder. The distance falls and rises again with the weight, while the CLIP score rises.

    captions.jsonl     the captions
    guidance-1.35/     a run folder for each weight, as `cascade batch` makes it
    features/          of the references and of each run, by content: computed once
    results.json       all figures
    curve.svg          Frechet distance against CLIP score
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pipelines.options import Drawing, Loading, named_as_options

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.evaluation.metrics import Extractor
    from pipelines.evaluation.scores import Judge
    from pipelines.prompts import PromptRecord

CAPTIONS, FEATURES, RESULTS, CURVE = "captions.jsonl", "features", "results.json", "curve.svg"
MOST = 30_000  # captions, as Imagen draws them
SEEN_AT_ONCE = 32  # images


@named_as_options()
def evaluate(
    data: tyro.conf.Positional[Path],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    loading: Loading,
    drawing: Drawing,
    guidance: tuple[float, ...],
    images: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None,
    features: str = "toybox",
    clip: str | None = None,
    few: bool = False,
    seed: int = 0,
    sr_guidance: float | None = None,
    batch_size: int = 8,
) -> None:
    """Compare what a model draws from captions with the images they belong to, for a sweep of guidance weights.

    Frechet distance, kernel distance, precision and recall against all images of the folder, and the CLIP score if
    --clip says which. Images of both sides are compared as middle squares of the drawn images' size. Run again, it goes
    on where it was. To share the drawing among processes: torchrun --nproc-per-node 4 -m pipelines.cli evaluate ...

    Args:
        data: A folder of images with captions: metadata.jsonl, COCO's captions_*.json, or a .txt beside each image.
        output: The folder to write.
        guidance: The first stage's guidance scales; 1 is off.
        images: How many captions to draw; all, but at most 30000, if left out.
        features: toybox, inception:FILE (the FID's), dinov2:FOLDER_OR_HUB_ID or clip:FOLDER_OR_HUB_ID.
        clip: The folder or hub id of the CLIP that scores images with their captions.
        few: Report a Frechet distance of too few images, too, which is biased and says little.
        seed: Of the draw of captions, and of the first image; the next ones follow.
        sr_guidance: Guidance scale of the stages after the first; their own if left out.
        batch_size: How many images to draw at a time; halved where memory runs out.
    """
    folders = {weight: output / f"guidance-{weight:g}" for weight in guidance}
    if not guidance or len({*folders.values()}) < len(guidance):
        raise ValueError(f"--guidance is {guidance}; expected one scale or more, each once")

    from pipelines.batch.generation import generate_batch
    from pipelines.evaluation.captioned import read_captioned
    from pipelines.evaluation.metrics.extractors import open_features
    from pipelines.evaluation.metrics.reference import check_counts
    from pipelines.evaluation.score import clip_judge
    from pipelines.process import Process
    from weights.store import atomic_write

    options = drawing.options()
    found = read_captioned(data)
    smallest = _smallest_side(found.images)
    captions = draw_captions(found.captions, images, seed)
    process = Process.from_environment()
    place = process.device(loading.device)
    extractor = open_features(features, place)
    check_counts(len(found.images), len(captions), extractor.dimensions, few=few)
    judge = clip_judge(clip, "clip", SEEN_AT_ONCE, place) if clip else None

    output.mkdir(parents=True, exist_ok=True)
    atomic_write(output / CAPTIONS, "".join(record.to_json() + "\n" for record in captions))
    pipe = loading.pipeline(process)
    for weight, folder in folders.items():
        if process.rank == 0:
            print(f"guidance {weight:g}: {folder}")
        options["guidance_scale"] = [weight, *[sr_guidance] * (len(pipe) - 1)]
        generate_batch(
            pipe,
            captions,
            folder,
            seed=seed,
            negative_prompt=drawing.negative_prompt,
            batch_size=batch_size,
            process=process,
            **options,
        )
    name = pipe.name
    del pipe
    process.wait_for_the_others()
    if process.rank == 0:
        settings = {"data": str(data), "model": name, "captions": len(captions), "seed": seed, "few": few}
        measure(found.images, folders, output, extractor, judge, settings, smallest)


def draw_captions(captions: Sequence[PromptRecord], count: int | None, seed: int) -> list[PromptRecord]:
    """`count` of them at random, none twice. Raises ValueError where there are not as many."""
    import numpy as np

    count = min(len(captions), MOST) if count is None else count
    if not 1 <= count <= len(captions):
        raise ValueError(f"-n is {count}, and there are {len(captions)} captions; expected 1 to {len(captions)}")
    return [captions[i] for i in np.random.default_rng(seed).choice(len(captions), count, replace=False)]


def measure(
    references: Sequence[Path],
    folders: Mapping[float, Path],
    output: Path,
    extractor: Extractor,
    judge: Judge | None,
    settings: Mapping[str, Any],
    smallest: int,
) -> None:
    """Compare finished runs, by their guidance weight, with the references; print, and write results and curve.

    judge: of the CLIP score. smallest: the shortest side among the references, in pixels.
    """
    from cascade import __version__
    from pipelines.batch.run import read_run
    from pipelines.evaluation.metrics.reference import NEIGHBOURS, SUBSETS, Reference, subset_size
    from pipelines.evaluation.scores import score_run
    from weights.store import atomic_write

    runs = {weight: read_run(folder) for weight, folder in folders.items()}
    drawn = next(iter(runs.values())).settings
    side = min(drawn["height"], drawn["width"])
    if smallest < side:
        warnings.warn(
            f"the references are of {smallest} px and more, the drawn images of {side}: smaller ones are enlarged, and "
            "that they are less sharp counts as a difference",
            stacklevel=2,
        )
    reference = Reference(cached_features(extractor, references, side, output, "references"), few=settings["few"])
    if judge is not None:  # each CLIP has scores of its own in the run folders
        judge = replace(judge, name=f"clip-{judge.version.removeprefix('sha256:')[:8]}")
    rows = []
    for weight, run in runs.items():
        paths = [path for _, _, images in run for path in images]
        drawn_features = cached_features(extractor, paths, side, output, f"guidance {weight:g}")
        clip_score = None
        if judge is not None:
            values = score_run(run, judge).values.values()
            clip_score = sum(value.score for value in values) / len(values)
        distances = asdict(reference.compare(drawn_features))
        rows.append({"guidance": weight, "run": run.folder.name, **distances, "clip_score": clip_score})
    about = {
        **settings,
        "version": __version__,
        "references": len(references),
        "side": side,
        "features": {
            "name": extractor.name,
            "version": extractor.version,
            "dimensions": extractor.dimensions,
            "neighbours": NEIGHBOURS,
            "subsets": SUBSETS,
            "subset_size": subset_size(len(references), settings["captions"]),
        },
        "clip": judge and judge.version,
    }
    atomic_write(output / RESULTS, json.dumps(about | {"results": rows}, indent=2) + "\n")
    print(table(rows, few=settings["few"]))
    if judge is None:
        print("no CLIP score, and no curve, without --clip")
    else:
        atomic_write(output / CURVE, _curve(rows, extractor.name))
    print(output / RESULTS)


def cached_features(extractor: Extractor, paths: Sequence[Path], side: int, output: Path, what: str) -> Tensor:
    """N D, of the middle squares of images at `side` px; kept in the output folder by what they are computed from."""
    from safetensors.torch import load_file, save

    from pipelines.batch.run import sha256
    from pipelines.evaluation.metrics.images import extract
    from weights.store import atomic_write

    contents = [extractor.version, str(side), *(sha256(path) or "" for path in paths)]
    key = hashlib.sha256("\n".join(contents).encode()).hexdigest()
    path = output / FEATURES / f"{key[:32]}.safetensors"
    if path.is_file():
        return load_file(path)["features"]
    features = extract(extractor, paths, side=side, batch_size=SEEN_AT_ONCE, progress=f"features of {what}")
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, save({"features": features}))
    return features


def table(rows: Sequence[Mapping[str, Any]], *, few: bool = False) -> str:
    """The results for people to read. few: the Frechet distance is of too few images, perhaps."""
    clip = rows[0]["clip_score"] is not None
    heads = ["guidance", "Frechet*" if few else "Frechet", "kernel (sd)", "precision", "recall"] + ["CLIP"] * clip
    lines = [heads]
    for row in rows:
        cells = [f"{row['guidance']:g}", f"{row['frechet']:.4g}", f"{row['kernel']:.3g} ({row['kernel_sd']:.2g})"]
        cells += [f"{row['precision']:.3f}", f"{row['recall']:.3f}"]
        lines.append(cells + ([f"{row['clip_score']:.2f}"] if clip else []))
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    shown = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(shown + (["* biased where there are no more images than features (--few)"] if few else []))


def _curve(rows: Sequence[Mapping[str, Any]], features: str) -> str:
    from pipelines.evaluation.curve import curve

    points = [(row["clip_score"], row["frechet"], f"{row['guidance']:g}") for row in rows]
    title = "Frechet distance against CLIP score, by guidance weight"
    return curve(points, title, "CLIP score", f"Frechet distance ({features.partition(':')[0]})")


def _smallest_side(images: Sequence[Path]) -> int:
    """In pixels. Raises ValueError naming a file that is no image."""
    from pipelines.evaluation.metrics.images import shorter_side

    return min(shorter_side(path) for path in images)
