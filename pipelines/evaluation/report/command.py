"""`cascade drawbench report`: run folders, their scores and raters' answers to one page and its figures."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import tyro


def report(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    ratings: tuple[Path, ...] = (),
    names: tuple[str, ...] = (),
    controls: float = 0.8,
    sheet: int = 4,
) -> None:
    """Report what judges and raters say of one or several runs of the same prompts.

    Writes a page that needs nothing beside itself, and its figures as JSON: shares with 95% intervals per category and
    overall, clustered by prompt and rater; Imagen's bar chart; a ranking of more than two models; raters' agreement;
    what is wrong with images; uncurated contact sheets.

    Args:
        runs: Complete folders that `cascade batch` wrote; their scores, by `cascade drawbench score`, come along.
        output: A folder, for report.html and report.json in it; or the page, such as PLACE/name.html.
        ratings: Files of answers that `cascade drawbench rate` wrote.
        names: What to call the runs, as the raters' study did; the folders' names if left out.
        controls: The share of control items that a rater must have passed to count; 0 counts all.
        sheet: How many prompts of each category the contact sheets show.
    """
    if not runs:
        raise ValueError("no run is given; give folders that `cascade batch` wrote")
    if not 0 <= controls <= 1:
        raise ValueError(f"--controls is {controls}; expected a share from 0 to 1")
    if sheet < 0:
        raise ValueError(f"--sheet is {sheet}; expected 0 or more")
    called = check_names(names or tuple(run.resolve().name for run in runs), runs)
    page_file, figures_file = output_files(output)

    from pipelines.batch.run import read_run
    from pipelines.evaluation.rating.answers import read_answers
    from pipelines.evaluation.report.figures import gather
    from pipelines.evaluation.report.page import page
    from pipelines.evaluation.report.sheets import sheet as contact_sheet
    from pipelines.evaluation.scores import read_scores
    from weights.store import atomic_write

    found = {name: read_run(folder) for name, folder in zip(called, runs, strict=True)}
    scores = {name: read_scores(run.folder) for name, run in found.items()}
    answers = [answer for path in ratings for answer in read_answers(path)]
    figures = gather(found, scores, answers, controls)

    verdicts = {
        name: own.values
        for name, every in scores.items()
        for own in reversed(every)  # of several judges that say right or wrong, the first one's
        if own.measure == "right" and own.values
    }
    sheets = {
        category: contact_sheet(found, numbers, verdicts, sheet)
        for category, numbers in figures["categories"].items()
        if sheet
    }
    words = ["cascade", "drawbench", "report", *map(str, runs), "-o", str(output)]
    words += ["--ratings", *map(str, ratings)] * bool(ratings) + ["--names", *names] * bool(names)
    words += ["--controls", f"{controls:g}", "--sheet", str(sheet)]
    html = page(figures, sheets, [shlex.join(words)])
    page_file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(figures_file, json.dumps(figures, indent=1) + "\n")
    atomic_write(page_file, html)
    print(f"{page_file} ({len(html) / 1e6:.1f} MB) and {figures_file}")


def check_names(names: tuple[str, ...], runs: tuple[Path, ...]) -> tuple[str, ...]:
    """Raises ValueError unless there is one name for each run."""
    if len(names) != len(runs):
        raise ValueError(f"--names gives {len(names)} for {len(runs)} runs: {', '.join(names)}; give one for each run")
    if len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise ValueError(
            f"{len(runs)} runs are called {', '.join(map(repr, names))}; give each a name of its own with --names"
        )
    return names


def output_files(output: Path) -> tuple[Path, Path]:
    """The page and the figures."""
    if output.suffix.lower() in (".html", ".htm"):
        return output, output.with_suffix(".json")
    if output.is_file():
        raise ValueError(f"{output} is a file; give a folder, or a page that ends in .html")
    return output / "report.html", output / "report.json"
