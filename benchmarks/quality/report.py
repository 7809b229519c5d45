"""docs/quality.md from the stored results."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import suite
from benchmarks.quality.chart import chart
from benchmarks.quality.drawing import read_images
from benchmarks.quality.stored import IMAGES, detector, load
from cascade.training.metrics import PEAK_FLOPS
from pipelines.batch import read_run
from pipelines.evaluation.intervals import Share, clustered_share
from pipelines.evaluation.suite import TOYBOX, read_suite
from pipelines.images import from_tensor, grid

PAGE = Path("docs/quality.md")
FAILURES = 18
GPU_FLOPS, GPU_SHARE = PEAK_FLOPS["H200"], 0.2


def write() -> None:
    """Write docs/quality.md and its charts from docs/quality/*.json; what was not measured is left out."""
    sections, present = [INTRODUCTION], detector()
    for name, section in SECTIONS.items():
        stored = load(name)
        if stored is not None:
            provenance = " · ".join(stored["environment"].splitlines())
            same = name in UNJUDGED or stored.get("detector") == present
            earlier = "" if same else ", measured with an earlier detector"
            sections += [section(stored), f"`{stored['command']}`{earlier}; {provenance}"]
    PAGE.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print(f"wrote {PAGE}")


UNJUDGED = ("binding", "training")  # no detector had a part in these

INTRODUCTION = """# How good is the embedded default?

Written by `python -m benchmarks.quality report` from the results in [docs/quality](quality/), each of which names the
command that measured it. Shares stand with 95% intervals, clustered by prompt. An image is right if the toybox detector
finds every named attribute right and nothing extra (pipelines/evaluation/judge.py)."""


def share(rows: Iterable[dict[str, Any]], good: Callable[[dict[str, Any]], Sequence[bool]]) -> Share | None:
    clusters = [good(row) for row in rows]
    return clustered_share(clusters) if len(clusters) > 1 else None


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def suite_section(stored: dict[str, Any]) -> str:
    rows = stored["rows"]
    expected = {prompt.prompt: prompt.expected for prompt in read_suite(TOYBOX)}

    def right(row: dict[str, Any]) -> list[bool]:
        return [not wrong for wrong in row["wrong"]]

    def bound(row: dict[str, Any]) -> list[bool]:
        return [not {"number", "noun", "colour"} & set(wrong) for wrong in row["wrong"]]

    def of(category: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["category"] == category]

    per_category = [
        (name, len(of(name)), share(of(name), right), share(of(name), lambda row: row["control"]))
        for name in dict.fromkeys(row["category"] for row in rows)
    ]
    to_three = [row for row in of("counting") if (what := expected[row["prompt"]]) and what.count <= 3]
    held_out = {name: [] for name in ("one", "left", "front", "on")}
    for row in of("conflicting"):
        if what := expected[row["prompt"]]:
            held_out[what.kind].append(row)
    singles = [
        row for row in held_out["one"] if (what := expected[row["prompt"]]) and what.looks[0].material == "plain"
    ]
    related = [row for kind in ("left", "front", "on") for row in held_out[kind]]
    goals = [
        ("one object, noun and colour", share(of("colours"), bound)),
        ("two objects, both bound right", share(of("positional"), bound)),
        ("counts 1 to 3", share(to_three, right)),
        ("relations", share(of("positional"), right)),
        ("one object, held-out colour", share(singles, bound)),
        ("two objects, held-out relation", share(related, right)),
    ]
    _failures(rows)
    return "\n\n".join(
        [
            f"## The toybox suite\n\n{len(rows)} prompts, {stored['images_per_prompt']} image(s) each, 256 px. The"
            " control judges the same images against another prompt of their category.",
            table(("category", "prompts", "right", "control"), per_category),
            table(("", "share"), [row for row in goals if row[1] is not None]),
            "Failures, not chosen: the first wrong image of evenly spaced prompts. A noun is wrong as well where a"
            " thing is too misshapen to be any.\n\n![failures](images/failures.jpg)",
            _captions(rows),
        ]
    )


def _failed(rows: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """(prompt, image) of FAILURES evenly spaced failures."""
    failed = [(n, next(k for k, w in enumerate(row["wrong"]) if w)) for n, row in enumerate(rows) if any(row["wrong"])]
    return [failed[i] for i in np.linspace(0, len(failed) - 1, min(FAILURES, len(failed))).round().astype(int)]


def _failures(rows: Sequence[dict[str, Any]]) -> None:
    """The picture of failures, where the drawn images are at hand."""
    if suite.DRAWN.exists() and (failed := _failed(rows)):
        run = read_run(suite.DRAWN)
        files = [run.path(prompt, image) for prompt, image in failed]
        page = grid(from_tensor(read_images(files), "pil"), 6)
        page.resize((page.width * 5 // 8, page.height * 5 // 8)).save(IMAGES / "failures.jpg", quality=90)


def _captions(rows: Sequence[dict[str, Any]]) -> str:
    return "Row by row: " + "; ".join(
        f"{rows[n]['prompt']} ({', '.join(rows[n]['wrong'][k])})" for n, k in _failed(rows)
    )


def super_resolution_section(stored: dict[str, Any]) -> str:
    recognized = [(name, clustered_share(clusters)) for name, clusters in stored["materials"].items()]
    fidelity = [
        (name, f"{1e5 * row['consistency']:.2f}", f"{1e3 * row['error']:.2f}", f"{row['sharpness']:.2f}")
        for name, row in stored["fidelity"].items()
    ]
    return "\n\n".join(
        [
            "## Super-resolution\n\nMaterials show only above 64 px; the caption says which. Recognized:",
            table(("256 px images", "material recognized"), recognized),
            "On held-out renders: consistency is the error of the reduced output against the input (SR3, table 2),"
            " images in [0, 1]; sharpness is the mean gradient as a share of the true render's.",
            table(("64 -> 256 px", "consistency (MSE x 1e-5)", "error (MSE x 1e-3)", "sharpness"), fidelity),
            "Per scene: bicubic, super-resolution, true render.\n\n![super-resolution](images/super-resolution.png)",
        ]
    )


def training_section(stored: dict[str, Any]) -> str:
    rows = [
        (
            row["stage"],
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['flops'] / 1e9:.1f}",
            f"{row['samples']:,}",
            f"{row['minutes']:.0f}",
            f"{row['samples'] * row['flops'] / row['minutes'] / 60 / 1e9:.0f}",
            f"{3600 * GPU_SHARE * GPU_FLOPS / row['flops'] / 1e6:.0f} M",
            f"{3600 * GPU_SHARE * GPU_FLOPS / row['flops'] / row['samples']:.0f}",
        )
        for row in stored["rows"]
    ]
    head = ("stage", "parameters", "GFLOPs a sample", "samples seen", "minutes", "GFLOP/s", "GPU-hour", "times as many")
    return "\n\n".join(
        [
            "## What it was trained with\n\nOn CPU cores that did other work, too. Beside it what an hour of an H200"
            f" would be, at {GPU_SHARE:.0%} of its {GPU_FLOPS / 1e12:.0f} TFLOP/s in dense bf16: counted, not measured,"
            " and the share is a guess for networks this small. So many samples would want more scenes than a run"
            " renders now (SCENES in cascade/training/toybox.py).",
            table(head, rows),
        ]
    )


def guidance_section(stored: dict[str, Any]) -> str:
    lines = _lines(stored["rows"], "weight", "right")
    chart(lines, "guidance weight of the base", IMAGES / "guidance.svg")
    return "## Guidance\n\nThe base at 64 px, same seeds at every weight.\n\n![guidance sweep](images/guidance.svg)"


def curve_section(stored: dict[str, Any]) -> str:
    lines = _lines(stored["rows"], "samples", "right")
    positional = [row for row in stored["rows"] if row["category"] == "positional"]
    lines["two bound"] = _lines(positional, "samples", "bound")["positional"]
    chart(lines, "training samples seen", IMAGES / "learning-curve.svg")
    return (
        "## Learning curve\n\nThe base at 64 px, in every version of it that was committed, judged alike. The first"
        " three read the prompts through an earlier text encoder, which did not say what belongs together.\n\n"
        "![learning curve](images/learning-curve.svg)"
    )


def _lines(rows: Sequence[dict[str, Any]], x: str, good: str) -> dict[str, list[tuple[float, Share]]]:
    lines: dict[str, list[tuple[float, Share]]] = {}
    for category in dict.fromkeys(row["category"] for row in rows):
        own = [row for row in rows if row["category"] == category]
        for at in sorted({row[x] for row in own}):
            found = clustered_share([row[good] for row in own if row[x] == at])
            lines.setdefault(category, []).append((at, found))
    return lines


def copies_section(stored: dict[str, Any]) -> str:
    rows = [
        (f"{name} to {collection} scenes", *(f"{np.quantile(values, q):.3f}" for q in (0.01, 0.1, 0.5, 0.9)))
        for name, collections in stored["distances"].items()
        for collection, values in collections.items()
    ]
    return "\n\n".join(
        [
            f"## Are samples copies?\n\nThe distance to the nearest of {stored['scenes']} scenes, in the detector's"
            " features (unit vectors). A model that copied would be nearer to training scenes than to held-out ones.",
            table(("quantile of the distance", "1%", "10%", "50%", "90%"), rows),
            "The samples nearest to a training scene, and below them that scene.\n\n![nearest](images/copies.jpg)",
        ]
    )


def detector_section(stored: dict[str, Any]) -> str:
    rows = [
        (
            category,
            count,
            *(f"{share[category]:.1%}" if category in share else "-" for share in stored["right"].values()),
        )
        for category, count in stored["scenes"].items()
    ]
    return "\n\n".join(
        [
            "## Does the detector see?\n\nTrue renders of the suite's scenes, judged by their own prompt, clean and"
            " spoilt, and under another prompt of their category.",
            table(("", "scenes", *stored["right"]), rows),
        ]
    )


def judge_section(stored: dict[str, Any]) -> str:
    rows = stored["rows"]

    def of(by_eye: bool, by_detector: bool) -> Share:
        return clustered_share([[row["by_eye"] == by_eye and row["by_detector"] == by_detector] for row in rows])

    agreed = clustered_share([[row["by_eye"] == row["by_detector"]] for row in rows])
    eyes = clustered_share([[row["eyes"][0] == row["eyes"][1]] for row in rows])
    return (
        f"## Can the judge be trusted?\n\n{len(rows)} generated images were labelled by eye before any detector saw"
        " them (docs/quality/labelled); nothing was trained on them. The detector before this one was tried, too, and"
        " the rule that chooses `clear` was decided on with their figures in view. Two labelled them, each alone:"
        f" they agree on {eyes}, and right is what both call so. With that the judge agrees on"
        f" {agreed}; of all,"
        f" {of(False, True)} are called right and are not, {of(True, False)} are called wrong and are right. The goal"
        " is 92%, and at most 4% called right that are not.\n\nWhat limits it: a toy may be half there, and where it"
        " ends to be one the eye itself wavers. Besides true and misshapen renders, the detector learned from other"
        " generated images judged by eye (docs/quality/lessons), drawn after 172,000 to 930,000 samples with other"
        " seeds. By a fifth of these, and as many true renders, is chosen how clear a toy must be, where to call right"
        " what is not costs twice; the older of that fifth had been learned from before. Of a model that"
        " fails in other ways it may be a worse judge, and it must not be so strict that true toys fail."
    )


def binding_section(stored: dict[str, Any]) -> str:
    rows = [(name, *(f"{told[what]:.1%}" for what in ("colour", "place"))) for name, told in stored["told"].items()]
    return "\n\n".join(
        [
            "## Does the text encoder say what belongs together?\n\nNo network can bind what the encoder leaves loose:"
            " attention sees the words as a set. Of a noun in a caption of two or three things, a linear map of its"
            f" encoding tells which colour is its, and which place in the relation ({stored['nouns']} nouns in captions"
            f" that the map was not fitted on; a guess among the caption's things is right {stored['chance']:.0%} of"
            " the time):",
            table(("told from", "its colour", "its place"), rows),
        ]
    )


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "suite": suite_section,
    "binding": binding_section,
    "super-resolution": super_resolution_section,
    "curve": curve_section,
    "training": training_section,
    "guidance": guidance_section,
    "copies": copies_section,
    "detector": detector_section,
    "judge": judge_section,
}
