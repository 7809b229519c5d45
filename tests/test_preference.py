"""The Bradley-Terry-Davidson model: closed forms, recovery, coverage, and what cannot be estimated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from pipelines.evaluation.intervals import crossed_variance, student_t
from pipelines.evaluation.preference import OUTCOMES, Ranking, rank
from pipelines.evaluation.rating.answers import Answer


def answer(first: str, second: str, outcome: int, prompt: int = 0, rater: str = "r") -> Answer:
    return Answer(rater, first, second, prompt, "", "quality", OUTCOMES[outcome], False, None, 1.0)


def simulate(
    rng: np.random.Generator, strengths: Sequence[float], ties: float, prompts: int, raters: int, sd: float = 0.0
) -> list[Answer]:
    """All pairs to all raters; sd: of each model's effects of prompt and of rater, which sum to 0 over the models."""
    m = len(strengths)
    by_prompt, by_rater = sd * rng.standard_normal((prompts, m)), sd * rng.standard_normal((raters, m))
    answers = []
    for prompt in range(prompts):
        for rater in range(raters):
            own = np.array(strengths) + by_prompt[prompt] + by_rater[rater]
            for i, j in combinations(range(m), 2):
                chance = np.array([math.exp((own[i] - own[j]) / 2), ties, math.exp((own[j] - own[i]) / 2)])
                answers.append(answer("abcd"[i], "abcd"[j], rng.choice(3, p=chance / chance.sum()), prompt, str(rater)))
    return answers


def test_two_models_have_the_observed_shares() -> None:
    """Davidson (1970): theta_a - theta_b = log(wins / losses), nu = ties / sqrt(wins losses)."""
    given = [0] * 12 + [1] * 6 + [2] * 3
    found = rank([answer("a", "b", outcome, i % 7, str(i % 3)) for i, outcome in enumerate(given)])
    assert list(found.strengths) == ["a", "b"]
    assert found.strengths["a"].value - found.strengths["b"].value == pytest.approx(math.log(12 / 3))
    assert found.ties == pytest.approx(6 / math.sqrt(12 * 3))
    win, loss = (math.exp(sign * math.log(4) / 2) for sign in (1, -1))
    assert win / (win + found.ties + loss) == pytest.approx(12 / 21)
    assert found.score(math.log(4)) == pytest.approx((12 + 3) / 21)


def test_without_ties_it_is_bradley_and_terrys_model() -> None:
    """Their likelihood equations: each model's expected wins are its wins."""
    counts = {("a", "b"): (7, 3), ("b", "c"): (6, 4), ("a", "c"): (5, 5)}
    answers = [
        answer(*pair, 2 * (k >= won), k, str(k % 4)) for pair, (won, lost) in counts.items() for k in range(won + lost)
    ]
    found = rank(answers)
    assert found.ties == 0
    for name in "abc":
        wins = sum(counts[pair][pair.index(name)] for pair in counts if name in pair)
        others = [pair[1 - pair.index(name)] for pair in counts if name in pair]
        own = found.strengths[name].value
        expected = sum(10 / (1 + math.exp(found.strengths[other].value - own)) for other in others)
        assert expected == pytest.approx(wins)
    assert sum(value.value for value in found.strengths.values()) == pytest.approx(0)


def test_which_is_named_first_does_not_matter() -> None:
    answers = simulate(np.random.default_rng(0), (0.5, 0.0, -0.5), 0.7, 6, 4, 0.5)
    turned = [answer(a.second, a.first, 2 - OUTCOMES.index(a.preference), a.prompt, a.rater) for a in answers]
    one, other = rank(answers), rank(turned[::-1])
    for name, found in one.strengths.items():
        assert (found.value, found.low, found.high) == pytest.approx(
            tuple(getattr(other.strengths[name], end) for end in ("value", "low", "high"))
        )


def test_the_interval_of_two_models_is_that_of_their_wins() -> None:
    """Without ties the influence of an answer on the log-odds is its residual over p (1 - p)."""
    rng = np.random.default_rng(1)
    table = (rng.random((15, 6)) < np.linspace(0.3, 0.9, 15)[:, None]).astype(float)
    answers = [answer("a", "b", 0 if won else 2, i, str(j)) for (i, j), won in np.ndenumerate(table)]
    p = table.mean()
    variance, degrees = crossed_variance(table)
    half = student_t(0.975, degrees) * math.sqrt(variance) / (p * (1 - p)) / 2  # of theta_a = log-odds / 2
    found = rank(answers).strengths["a"]
    assert found.value == pytest.approx(math.log(p / (1 - p)) / 2)
    assert (found.low, found.high) == (pytest.approx(found.value - half), pytest.approx(found.value + half))


def test_known_strengths_are_recovered() -> None:
    truth = (0.9, 0.2, -0.3, -0.8)
    found = rank(simulate(np.random.default_rng(2), truth, 0.6, 100, 20))
    assert list(found.strengths) == ["a", "b", "c", "d"]
    for name, value in zip("abcd", truth, strict=True):
        assert found.strengths[name].value == pytest.approx(value, abs=0.08)
        assert found.strengths[name].high - found.strengths[name].low < 0.2
    assert found.ties == pytest.approx(0.6, abs=0.04)


@pytest.mark.slow
def test_the_intervals_cover_the_truth() -> None:
    """30 prompts, 10 raters, effects of both. By symmetry the strength of the middle one of three models is 0."""
    rng, covered = np.random.default_rng(3), 0
    for _ in range(300):
        middle = rank(simulate(rng, (0.7, 0.0, -0.7), 0.7, 30, 10, 0.7)).strengths["b"]
        covered += middle.low <= 0 <= middle.high
    assert 0.92 <= covered / 300 <= 0.98


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([("a", "b", 0)] * 3, "no answer prefers any of b to any of a, or neither"),
        ([("a", "b", 1)] * 3, "no answer prefers a model to another"),
        (
            [("a", "b", 0), ("a", "b", 2), ("c", "d", 0), ("c", "d", 2)],
            "no answer prefers any of c, d to any of a, b, or neither",
        ),
        (
            [("a", "b", 0), ("b", "c", 0), ("a", "b", 2), ("a", "c", 0)],
            "no answer prefers any of c to any of a, b, or neither",
        ),
        ([], "needs two models"),
        ([("a", "b", 0), ("b", "c", 0), ("c", "a", 0)], "the variance of their mean needs two or more"),
    ],
)
def test_what_cannot_be_estimated_is_refused(answers: list[tuple[str, str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank([answer(*one, prompt=0 if message.startswith("the variance") else i) for i, one in enumerate(answers)])


def test_a_tie_is_enough_to_connect() -> None:
    found = rank(
        [answer("a", "b", 0, i) for i in range(3)]
        + [answer("a", "b", 1, 3), answer("b", "c", 1, 4)] * 2
        + [answer("b", "c", 0, 5), answer("b", "a", 1, 6), answer("c", "b", 0, 7)]
    )
    assert isinstance(found, Ranking)
    assert all(math.isfinite(value.low) and math.isfinite(value.high) for value in found.strengths.values())
