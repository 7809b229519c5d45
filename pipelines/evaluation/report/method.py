"""How the figures were made, in plain words, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipelines.again import loading_words, sampling_words

Figures = Mapping[str, Any]

JUDGES = (
    "Automatic scores",
    "The share of images that a judge calls right, or its mean score: an estimate for prompts like these, of "
    "which these are taken for a sample. The images of a prompt are alike, so the interval is clustered by "
    "prompt. A share: Wilson's interval at the effective number of images, which is their number divided by the "
    "design effect (Korn and Graubard 1998; taken to be at least 0.4), with the quantile of Student's t for one degree "
    "of freedom less than there are prompts. A mean: Student's t interval over prompts. In simulations of 7 to 200 "
    "prompts with 8 images each, the 95% intervals of shares hold the truth in 93 to 97% of cases, but for shares near "
    "0 or 1 of 10 prompts or fewer, where it is 90 to 99% (python benchmarks/coverage.py).",
)
RATERS = (
    "Shares of raters' answers",
    "The expected share among answers of raters like these to prompts like these: both are taken for samples. An "
    "answer is seen as a mean, an effect of the prompt, an effect of the rater and a rest. Their variances are "
    "estimated from the sums of squares by prompt and by rater (MIVQUE0; for complete answers the analysis of "
    "variance of a two-way layout), and the variance of the share is (P var(prompt) + R var(rater) + n var(rest)) "
    "/ n², where P sums the squared numbers of answers by prompt and R those by rater. The interval is Wilson's "
    "at the effective number of answers p (1 − p) / variance, with Student's t at Satterthwaite's degrees of "
    "freedom. The variance is taken to be at least 0.6 of that of independent answers. Where all answers agree, the "
    "answers to a prompt count as one, and how alike a rater's answers are is taken from all categories. The net "
    "preference, first minus second, has the interval of the share with no preference as half of one. In simulations "
    "of 7 to 200 prompts and 25 raters the 95% intervals of shares hold the truth in 93 to 97% of cases, but for "
    "shares near 0 or 1 of 10 prompts or fewer that differ widely, where it is about 91% (python "
    "benchmarks/coverage.py). Counting every answer as independent would hold it in 39 to 96%. With 3 raters it is 93 "
    "to 99%, with 2 it is 88 to 99%: so few do not tell how much raters differ. A model is clearly ahead where the "
    "interval of the net preference leaves out 0.",
)
RANKING = (
    "Ranking",
    "Bradley and Terry's model with Davidson's ties (1970): the odds of preferring i, neither, and j are exp((θi "
    "− θj)/2) : ν : exp((θj − θi)/2). Maximum likelihood; intervals from the influence of each answer, summed by "
    "prompt and rater, with the same two-way variance.",
)
AGREEMENT = (
    "Agreement",
    "Krippendorff's alpha for ordinal values (first, no preference, second), over all prompts and pairs of models.",
)
SHEETS = (
    "Contact sheets",
    "The first prompts of each category by number, and the first images of each, reduced to 160 pixels.",
)


def text(figures: Figures, commands: Sequence[str]) -> str:
    parts: list[tuple[str, str]] = [JUDGES] if figures["judges"] else []
    if figures["raters"]:
        parts += [RATERS, _controls(figures["raters"]["least_controls"])]
        if any(asked["ranking"] for asked in figures["raters"]["questions"].values()):
            parts.append(RANKING)
        parts.append(AGREEMENT)
    definitions = "".join(f"<dt>{escape(name)}</dt><dd>{escape(what)}</dd>" for name, what in [*parts, SHEETS])
    lines = "\n".join([*(run_command(name, run) for name, run in figures["runs"].items()), *commands])
    return f"<dl>{definitions}</dl><h3>To make it again</h3><pre>{escape(lines)}</pre>"


def _controls(least: float) -> tuple[str, str]:
    rule = (
        f"Who passes less than {least:.0%} of them is left out (--controls); who was shown none counts."
        if least
        else "Nobody was left out for failing them (--controls 0)."
    )
    return "Control items", f"Screens on which one of the two sets is of another prompt. {rule}"


def run_command(name: str, run: Figures) -> str:
    """The `cascade batch` that makes a run again."""
    settings = run["settings"]
    words: list[Any] = ["cascade", "batch", f"{run['folder']}/prompts.jsonl", "-o", f"{name}-again"]
    words += loading_words(run["model"], run["loaded_with"])
    words += ["-n", settings["images_per_prompt"], "--seed", settings["seed"]]
    if settings["negative_prompt"]:
        words += ["--negative-prompt", settings["negative_prompt"]]
    words += ["--height", settings["height"], "--width", settings["width"], "--stop-after", settings["stop_after"]]
    words += sampling_words(list(settings["stages"].values()), settings.get("upscaler"))
    return shlex.join(map(str, [*words, "--dtype", settings["dtype"]]))
