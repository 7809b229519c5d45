"""Which of several models raters prefer: the model of Bradley & Terry (1952) with ties after Davidson (1970).

Of models i and j with strengths theta (log-odds) raters

    prefer i   in proportion to   exp((theta_i - theta_j) / 2)
    neither                       nu
    prefer j                      exp((theta_j - theta_i) / 2)

For two models the fitted shares are the observed ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.intervals import LEAST_VARIANCE, Estimate, crossed_variance, student_t
from pipelines.evaluation.rating.answers import Answer

OUTCOMES = ("first", "neither", "second")


@dataclass(frozen=True)
class Ranking:
    """Strengths, which sum to 0, with 95% intervals; the strongest first. ties: nu."""

    strengths: dict[str, Estimate]
    ties: float

    def score(self, strength: float) -> float:
        """The share of preferences, a tie as half a one, of a model of this strength against one of strength 0."""
        win, loss = math.exp(strength / 2), math.exp(-strength / 2)
        return (win + self.ties / 2) / (win + self.ties + loss)


def rank(answers: Sequence[Answer], confidence: float = 0.95) -> Ranking:
    """The maximum-likelihood strengths, with intervals clustered by prompt and by rater.

    The intervals are of Student's t, with the sandwich variance: each answer's influence on a strength, summed by
    prompt and rater, goes into `crossed_variance`. It is kept above LEAST_VARIANCE of what independent answers have.

    Raises ValueError where the likelihood has no maximum: where all answers are "neither", or where some models were
    never preferred to the others, nor tied with them (Ford 1957).
    """
    models = sorted({name for answer in answers for name in (answer.first, answer.second)})
    if len(models) < 2:
        raise ValueError(f"answers about {models}; a ranking needs two models or more")
    number = {name: i for i, name in enumerate(models)}
    first, second, outcome = (
        np.array([number[answer.first] for answer in answers]),
        np.array([number[answer.second] for answer in answers]),
        np.array([OUTCOMES.index(answer.preference) for answer in answers]),
    )
    _check(models, first, second, outcome)

    # A softmax over the three outcomes. Parameters: m - 1 coordinates of strengths that sum to 0, and log nu.
    m, tied = len(models), bool((outcome == 1).any())
    basis = np.eye(m)[:, :-1] - 1 / m
    half = (basis[first] - basis[second]) / 2
    features = np.zeros((len(answers), 3, m - 1 + tied))  # answer, outcome, parameter
    features[:, 0, : m - 1], features[:, 2, : m - 1] = half, -half
    features[:, 1, m - 1 :] = 1
    possible = np.array([True, tied, True])
    scores, information, parameters = _maximize(features, outcome, possible)

    to_strength = np.hstack([basis, np.zeros((m, int(tied)))])
    theta, inverse = to_strength @ parameters, np.linalg.inv(information)
    influence = scores @ inverse @ to_strength.T
    independent = np.diag(to_strength @ inverse @ to_strength.T)
    strengths = {}
    for i in np.argsort(-theta, kind="stable"):
        cells = _cells(answers, influence[:, i])
        n = np.count_nonzero(~np.isnan(cells))
        variance, degrees = crossed_variance(cells, LEAST_VARIANCE * float(independent[i]) / n**2)
        reach = student_t(0.5 + confidence / 2, degrees) * n * math.sqrt(variance)
        strengths[models[i]] = Estimate(float(theta[i]), float(theta[i] - reach), float(theta[i] + reach))
    return Ranking(strengths, math.exp(parameters[-1]) if tied else 0.0)


def _maximize(
    features: np.ndarray, outcome: np.ndarray, possible: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Newton's method, halving steps that do not climb. Scores by answer, information, parameters at the maximum."""
    parameters = np.zeros(features.shape[2])
    rows = np.arange(len(outcome))

    def evaluate(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = np.where(possible, features @ parameters, -np.inf)
        logits = logits - logits.max(axis=1, keepdims=True)
        log_chance = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return log_chance[rows, outcome].sum(), np.exp(log_chance)

    likelihood, chance = evaluate(parameters)
    for _ in range(100):
        mean = np.einsum("no,nop->np", chance, features)
        scores = features[rows, outcome] - mean
        information = np.einsum("no,nop,noq->pq", chance, features, features) - mean.T @ mean
        step = np.linalg.solve(information, scores.sum(axis=0))
        if abs(step).max() < 1e-9:
            break
        size = 1.0
        while (found := evaluate(parameters + size * step))[0] < likelihood and size > 1e-6:
            size /= 2
        parameters = parameters + size * step
        likelihood, chance = found
    return scores, information, parameters


def _cells(answers: Sequence[Answer], values: np.ndarray) -> np.ndarray:
    """Sums by prompt and rater, NaN where there is no answer."""
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(answer.prompt for answer in answers))}
    raters = {rater: i for i, rater in enumerate(dict.fromkeys(answer.rater for answer in answers))}
    cells = np.full((len(prompts), len(raters)), np.nan)
    for answer, value in zip(answers, values, strict=True):
        at = prompts[answer.prompt], raters[answer.rater]
        cells[at] = value if np.isnan(cells[at]) else cells[at] + value
    return cells


def _check(models: Sequence[str], first: np.ndarray, second: np.ndarray, outcome: np.ndarray) -> None:
    """Raises ValueError unless each model is reached from each by steps to one that was preferred to it or tied."""
    if (outcome == 1).all():
        raise ValueError("no answer prefers a model to another, so there is nothing to rank")
    m = len(models)
    reached = np.eye(m, dtype=bool)
    reached[second[outcome < 2], first[outcome < 2]] = True
    reached[first[outcome > 0], second[outcome > 0]] = True
    for _ in range(m.bit_length()):
        reached = reached @ reached
    if reached.all():
        return
    # Those at the top: whoever leads up to them from below is led to by them, too.
    top = min((frozenset(np.flatnonzero(reached[i]).tolist()) for i in range(m)), key=len)
    names, others = ", ".join(models[i] for i in sorted(top)), ", ".join(models[i] for i in range(m) if i not in top)
    raise ValueError(
        f"no answer prefers any of {others} to any of {names}, or neither, so how far they are apart cannot be "
        "estimated; collect more answers"
    )
