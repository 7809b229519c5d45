"""Everything a report says, as plain JSON values: runs, judges and raters, per category and overall.

An estimate is {"value", "low", "high"}; low and high are None where a single prompt tells nothing of others like it.
Shares are in [0, 1]. What concerns all categories together stands under "overall".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cascade import __version__
from pipelines.arguments import unknown_words
from pipelines.batch.run import RUN
from pipelines.evaluation.intervals import Estimate, clustered_mean, clustered_share
from pipelines.evaluation.report.votes import rater_figures
from pipelines.metadata import EMBEDDED_NAME
from weights.hub import resolve
from weights.store import WeightsError, read_manifest

if TYPE_CHECKING:
    from pipelines.batch.run import Run
    from pipelines.evaluation.rating.answers import Answer
    from pipelines.evaluation.scores import Scores

FORMAT = 1
MOST_WORDS = 30  # of those a model was never taught: the most frequent

Categories = Mapping[str, Sequence[int]]  # the numbers of each category's prompts


def gather(
    runs: Mapping[str, Run], scores: Mapping[str, Sequence[Scores]], answers: Sequence[Answer], least_controls: float
) -> dict[str, Any]:
    """runs, scores: by the names that the report calls the models. least_controls: as for `rater_figures`.

    Raises ValueError where the runs, or the answers, are not of the same prompts and models, or judges of one name not
    the same.
    """
    prompts = check_prompts(runs).prompts
    categories: dict[str, list[int]] = {}
    for number, record in enumerate(prompts):
        categories.setdefault(record.category or "no category", []).append(number)
    return {
        "format": FORMAT,
        "version": __version__,
        "prompts": [record.prompt for record in prompts],
        "categories": categories,
        "runs": {name: run_figures(run, categories) for name, run in runs.items()},
        "judges": judge_figures(scores, categories),
        "raters": rater_figures(answers, list(runs), categories, least_controls) if answers else None,
    }


def check_prompts(runs: Mapping[str, Run]) -> Run:
    """The first run. Raises ValueError naming the first prompt in which another differs from it."""
    (name, first), *others = runs.items()
    for other, run in others:
        if len(run.prompts) != len(first.prompts):
            raise ValueError(
                f"{name} has {len(first.prompts)} prompts and {other} {len(run.prompts)}; give runs of the same file"
            )
        for number, (a, b) in enumerate(zip(first.prompts, run.prompts, strict=True)):
            if (a.prompt, a.category) != (b.prompt, b.category):
                raise ValueError(
                    f"prompt {number} is {a.prompt!r} ({a.category!r}) in {name} and {b.prompt!r} ({b.category!r}) in "
                    f"{other}; give runs of the same file"
                )
    return first


def run_figures(run: Run, categories: Categories) -> dict[str, Any]:
    """What was run, and how many of the prompts have words that the model was never taught."""
    about = json.loads((run.folder / RUN).read_text(encoding="utf-8"))
    model = about.get("model", "")
    vocabulary = taught_words(model)
    return {
        "folder": str(run.folder),
        "model": model,
        "loaded_with": about.get("loaded_with", {}),
        "settings": dict(run.settings),
        "vocabulary": None if vocabulary is None else outside([r.prompt for r in run.prompts], vocabulary, categories),
    }


def taught_words(model: str) -> list[str] | None:
    """The words a cascade was trained on, where its cascade.json lists them; None too where it is no longer at hand."""
    try:
        folder = resolve(None if model == EMBEDDED_NAME else model, local_files_only=True)
        return (read_manifest(folder)["text_encoder"] or {}).get("vocabulary")
    except (WeightsError, OSError):
        return None


def outside(prompts: Sequence[str], vocabulary: Sequence[str], categories: Categories) -> dict[str, Any]:
    """How many prompts have words outside the vocabulary, how many words that are, and the most frequent of them."""

    def count(texts: Sequence[str]) -> dict[str, int]:
        return {
            "prompts": len(texts),
            "strange_prompts": sum(bool(unknown_words([text], vocabulary)) for text in texts),
            "words": len(unknown_words(texts, ())),
            "strange_words": len(unknown_words(texts, vocabulary)),
        }

    words = Counter(word for prompt in prompts for word in unknown_words([prompt], vocabulary))
    return {
        "taught": len(vocabulary),
        "overall": count(prompts),
        "categories": {name: count([prompts[i] for i in own]) for name, own in categories.items()},
        "most_frequent": [word for word, _ in words.most_common(MOST_WORDS)],
    }


def judge_figures(scores: Mapping[str, Sequence[Scores]], categories: Categories) -> list[dict[str, Any]]:
    """Of every judge that has judged a run: its estimate for each, and against the first run it has judged."""
    judges = dict.fromkeys((found.judge, found.measure) for every in scores.values() for found in every if found.values)
    return [_judge(judge, measure, scores, categories) for judge, measure in judges]


def _judge(judge: str, measure: str, scores: Mapping[str, Sequence[Scores]], categories: Categories) -> dict[str, Any]:
    given = {
        name: found
        for name, every in scores.items()
        for found in every
        if (found.judge, found.measure) == (judge, measure) and found.values
    }
    reference, version = next((name, found.version) for name, found in given.items())
    clusters: dict[str, dict[int, list[float]]] = {name: {} for name in given}
    for name, found in given.items():
        if found.version != version:
            raise ValueError(
                f"{name} was scored by another {judge} ({found.version}) than {reference} ({version}); delete the file "
                f"scores/{judge}.jsonl of the one that is out of date, and score that run again"
            )
        for (prompt, _), value in sorted(found.values.items()):
            clusters[name].setdefault(prompt, []).append(value.score)
    interval = clustered_share if measure == "right" else clustered_mean
    runs = {
        name: {
            **per_category(own, categories, interval),
            "images": len(given[name].values),
            "wrong": _reasons(given[name].values),
            "against": None if name == reference else _difference(own, clusters[reference], measure),
        }
        for name, own in clusters.items()
    }
    return {"judge": judge, "version": version, "measure": measure, "reference": reference, "runs": runs}


def per_category(
    clusters: Mapping[int, Sequence[float]], categories: Categories, interval: Callable[[Any], Estimate]
) -> dict[str, Any]:
    """The estimate overall and of each category that has scores; clusters: the scores of each prompt."""
    scored = {name: [clusters[number] for number in own if number in clusters] for name, own in categories.items()}
    return {
        "overall": _estimate(list(clusters.values()), interval),
        "categories": {name: _estimate(own, interval) for name, own in scored.items() if own},
    }


def _estimate(clusters: Sequence[Sequence[float]], interval: Callable[[Any], Estimate]) -> dict[str, Any]:
    if len(clusters) > 1:
        return asdict(interval(clusters))
    return {"value": sum(clusters[0]) / len(clusters[0]), "low": None, "high": None}


def _reasons(values: Mapping[tuple[int, int], Any]) -> dict[str, dict[str, Any]]:
    """What judges call wrong, most frequent first: in how many images, with the interval of the share."""
    count = Counter(reason for found in values.values() for reason in set(found.wrong))
    clusters: dict[str, dict[int, list[bool]]] = {reason: {} for reason, _ in count.most_common()}
    for reason, own in clusters.items():
        for (prompt, _), found in values.items():
            own.setdefault(prompt, []).append(reason in found.wrong)
    return {
        reason: {"images": count[reason], **_estimate(list(own.values()), clustered_share)}
        for reason, own in clusters.items()
    }


def _difference(
    own: Mapping[int, Sequence[float]], other: Mapping[int, Sequence[float]], measure: str
) -> dict[str, float] | None:
    """The mean over prompts of how much more the one scores than the other, prompt by prompt."""
    pairs = [[sum(own[i]) / len(own[i]) - sum(other[i]) / len(other[i])] for i in own if i in other]
    if len(pairs) < 2:
        return None
    found = clustered_mean(pairs)
    low, high = (max(-1.0, found.low), min(1.0, found.high)) if measure == "right" else (found.low, found.high)
    return {"value": found.value, "low": low, "high": high}
