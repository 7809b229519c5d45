"""What raters say, as plain JSON values: shares per pair of models, ranking, agreement, controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.evaluation.agreement import krippendorff_alpha
from pipelines.evaluation.intervals import crossed_share
from pipelines.evaluation.preference import rank
from pipelines.evaluation.rating.answers import QUESTIONS, controls_passed

if TYPE_CHECKING:
    from pipelines.evaluation.rating.answers import Answer

LEVEL = {"first": 1.0, "neither": 0.0, "second": -1.0}

Grid = np.ndarray  # prompts x raters: a value of LEVEL, NaN where a rater has not answered
Pair = tuple[str, str]


def rater_figures(
    answers: Sequence[Answer], models: Sequence[str], categories: Mapping[str, Sequence[int]], least_controls: float
) -> dict[str, Any]:
    """Of the answers of all files; who has the same name in two of them is taken for the same rater.

    least_controls: the share of control items that a rater must have passed to count; who was shown none counts.
    Raises ValueError for an answer about another model or prompt.
    """
    _check(answers, models, categories)
    raters = {}
    for rater, (passed, of) in controls_passed(answers).items():
        given = sum(answer.rater == rater and not answer.control for answer in answers)
        excluded = bool(of) and passed / of < least_controls
        raters[rater] = {"answers": given, "controls": of, "passed": passed, "excluded": excluded}
    counted = [answer for answer in answers if not answer.control and not raters[answer.rater]["excluded"]]
    questions = {}
    for question in QUESTIONS:
        own = [answer for answer in counted if answer.question == question]
        if own:
            questions[question] = _question(own, models, categories)
    return {"least_controls": least_controls, "raters": raters, "answers": len(counted), "questions": questions}


def _check(answers: Sequence[Answer], models: Sequence[str], categories: Mapping[str, Sequence[int]]) -> None:
    category = {number: name for name, numbers in categories.items() for number in numbers}
    for answer in answers:
        for name in (answer.first, answer.second):
            if name not in models:
                raise ValueError(
                    f"the raters' answers are about {name!r}, and the runs are called {', '.join(map(repr, models))}; "
                    "give its run too, or name the runs as the raters' study did with --names"
                )
        if category.get(answer.prompt) != (answer.category or "no category"):
            raise ValueError(
                f"the raters' answers put prompt {answer.prompt} into the category {answer.category!r}, the runs into "
                f"{category.get(answer.prompt)!r}; they are about other prompts"
            )


def _question(
    answers: Sequence[Answer], models: Sequence[str], categories: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    grids: dict[Pair, Grid] = {}
    for pair in combinations(models, 2):
        own = [answer for answer in answers if {answer.first, answer.second} == set(pair)]
        if own:
            grids[pair] = _grid(own, pair, categories)
    return {
        "pairs": [{"first": pair[0], "second": pair[1], **_pair(grid, categories)} for pair, grid in grids.items()],
        "ranking": _ranking(answers) if len({name for pair in grids for name in pair}) > 2 else None,
        "alpha": krippendorff_alpha(_side_by_side(list(grids.values())), "ordinal"),
        "agreeing": _agreeing(list(grids.values())),
    }


def _ranking(answers: Sequence[Answer]) -> dict[str, Any]:
    try:
        found = rank(answers)
    except ValueError as error:
        return {"problem": str(error)}
    strengths = {name: asdict(own) | {"score": found.score(own.value)} for name, own in found.strengths.items()}
    return {"ties": found.ties, "strengths": strengths}


def _grid(answers: Sequence[Answer], pair: Pair, categories: Mapping[str, Sequence[int]]) -> Grid:
    """1 for the first of the pair, -1 for the second. An answer to a prompt that a rater saw twice: the last."""
    raters = {rater: i for i, rater in enumerate(dict.fromkeys(answer.rater for answer in answers))}
    grid = np.full((sum(map(len, categories.values())), len(raters)), np.nan)
    for answer in answers:
        sign = 1.0 if answer.first == pair[0] else -1.0
        grid[answer.prompt, raters[answer.rater]] = sign * LEVEL[answer.preference]
    return grid


def _pair(grid: Grid, categories: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    return {
        "raters": grid.shape[1],
        "overall": _shares(grid, grid),
        "categories": {
            name: _shares(grid[list(numbers)], grid)
            for name, numbers in categories.items()
            if not np.isnan(grid[list(numbers)]).all()
        },
    }


def _shares(grid: Grid, among: Grid) -> dict[str, Any]:
    """The shares of the three answers, and the net preference: the first's minus the second's. among: all prompts."""
    answered = ~np.isnan(grid)
    grid = grid[answered.any(axis=1)][:, answered.any(axis=0)]
    return {
        "prompts": grid.shape[0],
        "raters": grid.shape[1],
        "votes": int(answered.sum()),
        **{name: _of(_is(grid, level), _is(among, level)) for name, level in LEVEL.items()},
        "net": {end: None if at is None else 2 * at - 1 for end, at in _of((grid + 1) / 2, (among + 1) / 2).items()},
    }


def _is(grid: Grid, level: float) -> Grid:
    return np.where(np.isnan(grid), np.nan, grid == level)


def _of(votes: Grid, among: Grid) -> dict[str, Any]:
    """With an interval, unless a single prompt tells nothing of others like it."""
    if votes.shape[0] == 1:
        return {"value": float(np.nanmean(votes)), "low": None, "high": None}
    return asdict(crossed_share(votes, among))


def _side_by_side(grids: Sequence[Grid]) -> Grid:
    """One row per prompt and pair of models, a column for each rater of the pair with most of them."""
    widest = max(grid.shape[1] for grid in grids)
    return np.vstack([np.pad(grid, ((0, 0), (0, widest - grid.shape[1])), constant_values=np.nan) for grid in grids])


def _agreeing(grids: Sequence[Grid]) -> float | None:
    """How often two raters give the same answer to the same question about the same prompt and pair."""
    same = possible = 0.0
    for grid in grids:
        counts = np.stack([(grid == level).sum(axis=1) for level in LEVEL.values()])
        total = counts.sum(axis=0)
        same += (counts * (counts - 1)).sum()
        possible += (total * (total - 1)).sum()
    return float(same / possible) if possible else None
