"""What automatic judges say, as sections of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.evaluation.report.charts import bars, legend, model_colours
from pipelines.evaluation.report.html import Section, Unit, cell, hardly_informing, sentence, table

Figures = Mapping[str, Any]


def sections(figures: Figures) -> list[Section]:
    return [Section(f"Judge: {judge['judge']}", _judge(judge, figures)) for judge in figures["judges"]]


def findings(figures: Figures) -> list[tuple[str, str, str]]:
    """What it is about, what was found, and more of it."""
    found = []
    for judge in figures["judges"]:
        unit, difference = _units(judge)
        runs = judge["runs"]
        best = max(runs, key=lambda name: runs[name]["overall"]["value"])
        more = [
            f"{name} against {judge['reference']}: {sentence(own['against'], difference)}"
            for name, own in runs.items()
            if own["against"]
        ]
        said = f"{best} {sentence(runs[best]['overall'], unit)}"
        about = f"{judge['judge']}: {'most images right' if unit == 'share' else 'highest mean score'}"
        found.append((about if len(runs) > 1 else judge["judge"], said, "; ".join(more)))
    return found


def notes(figures: Figures) -> list[str]:
    """Which scores are not of all images."""
    found = []
    for judge in figures["judges"]:
        for name, own in judge["runs"].items():
            images = len(figures["prompts"]) * figures["runs"][name]["settings"]["images_per_prompt"]
            if own["images"] < images:
                found.append(f"{judge['judge']} has judged {own['images']} of the {images} images of {name}.")
    return found


def _units(judge: Figures) -> tuple[Unit, Unit]:
    return ("share", "points") if judge["measure"] == "right" else ("score", "difference")


def _judge(judge: Figures, figures: Figures) -> str:
    unit, difference = _units(judge)
    runs = judge["runs"]
    colours = {name: colour for name, colour in model_colours(figures["runs"]).items() if name in runs}
    categories = [name for name in figures["categories"] if any(name in own["categories"] for own in runs.values())]
    categories = categories if len(categories) > 1 else []
    rows = {"all": {name: (colours[name], own["overall"]) for name, own in runs.items()}}
    for category in categories:
        rows[category] = {
            name: (colours[name], own["categories"][category])
            for name, own in runs.items()
            if category in own["categories"]
        }
    low, high = (0.0, 1.0) if unit == "share" else _range(rows)
    chart = bars(rows, judge["judge"], low=low, high=high, percent=unit == "share")
    counts = {"all": len(figures["prompts"]), **{name: len(figures["categories"][name]) for name in categories}}
    told = [
        (label, counts[label], *(cell(series[name][1] if name in series else None, unit) for name in runs))
        for label, series in rows.items()
    ]
    parts = [
        f'<p class="quiet">{"The share of images that it calls right." if unit == "share" else "Its mean score."}</p>',
        legend(colours),
        f'<div class="scroll">{chart}</div>',
        table(("category", "prompts", *runs), told, overall=True),
    ]
    if unit == "share":
        shares = {f"{label} ({name})": found for label, series in rows.items() for name, (_, found) in series.items()}
        parts.append(hardly_informing("Intervals", shares, scale=1.0, remedy="prompts"))
    against = [(name, cell(own["against"], difference)) for name, own in runs.items() if own["against"]]
    if against:
        heads = ("run", f"{'points' if unit == 'share' else 'score'} more than {judge['reference']}")
        parts += [
            "<h3>Prompt by prompt</h3><p>The mean of the differences on the same prompts: narrower than the difference "
            "of the two means, where the same prompts are hard for both.</p>",
            table(heads, against),
        ]
    return "".join(parts) + _reasons(runs)


def _reasons(runs: Figures) -> str:
    """What is wrong with images, most frequent first."""
    reasons = list(dict.fromkeys(reason for own in runs.values() for reason in own["wrong"]))
    if not reasons:
        return ""
    most = sorted(
        reasons, key=lambda reason: -sum(own["wrong"].get(reason, {"images": 0})["images"] for own in runs.values())
    )
    rows = [(reason, *(cell(own["wrong"].get(reason), "share") for own in runs.values())) for reason in most]
    return (
        f"<h3>What is wrong</h3><p>Shares of all images; one may be wrong in several ways.</p>"
        f"{table(('', *runs), rows)}"
    )


def _range(rows: Mapping[str, Mapping[str, tuple[str, Figures]]]) -> tuple[float, float]:
    """From 0, or below it, to a little more than the highest."""
    ends = [found[end] for series in rows.values() for _, found in series.values() for end in ("value", "low", "high")]
    known = [end for end in ends if end is not None]
    low, high = min(0.0, *known), max(0.0, *known)
    return low, high + 0.02 * (high - low or 1.0)
