"""How often 95% intervals hold the truth: simulated prompts, raters and votes, and the intervals of the reports.

    python benchmarks/coverage.py [--tables raters judges] [--repetitions 10000] [--seed 0]

A vote is 1 with probability logistic(m + prompt effect + rater effect), the effects normal on the logit scale. The
truth is the expectation of a vote over prompts, raters and votes; m is chosen to make it the share in the table.
"""

import math
import time
from collections.abc import Callable, Iterable
from functools import cache
from itertools import product
from typing import Any, Literal

import numpy as np
import tyro
from environment import environment

from pipelines.evaluation.intervals import Share, clustered_share, crossed_share, student_t

PROMPTS = (7, 10, 38, 200)  # DrawBench's smallest category, the next, its largest, and all of it
RATERS = 25  # of Imagen, per category
FEW_RATERS = (2, 3, 5, 10)
IMAGES = (8, 4)  # of Imagen, per prompt; of GenEval
SHARES = (0.5, 0.7, 0.9)
Z = 1.959964
NEITHER = 0.5  # logits: how far from 0 a comparison has to fall for a preference

Interval = Callable[[np.ndarray], Share]


def logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def expectation(m: float, sd: float) -> float:
    """Of logistic(m + sd * normal), by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    return float(weights @ logistic(m + sd * nodes) / weights.sum())


@cache
def location(share: float, sd: float) -> float:
    """The m for which logistic(m + sd * normal) has this expectation, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if expectation(middle, sd) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def simulate(
    rng: np.random.Generator, prompts: int, raters: int, prompt_sd: float, rater_sd: float, share: float
) -> np.ndarray:
    """Votes, prompts x raters."""
    effects = prompt_sd * rng.standard_normal((prompts, 1)) + rater_sd * rng.standard_normal((1, raters))
    chance = logistic(location(share, math.hypot(prompt_sd, rater_sd)) + effects)
    return (rng.random((prompts, raters)) < chance).astype(np.float64)


def simulate_with_ties(
    rng: np.random.Generator, prompts: int, raters: int, prompt_sd: float, rater_sd: float, m: float
) -> np.ndarray:
    """Votes 1, 1/2 and 0, prompts x raters: first, neither, second, by where a logistic variable falls."""
    effects = prompt_sd * rng.standard_normal((prompts, 1)) + rater_sd * rng.standard_normal((1, raters))
    found = m + effects + rng.logistic(size=(prompts, raters))
    return ((found > NEITHER).astype(np.float64) + (found > -NEITHER)) / 2


def naive(votes: np.ndarray) -> Share:
    """Wilson's interval as if every vote were independent of the others."""
    known = votes[~np.isnan(votes)]
    p = float(known.mean())
    n = len(known) * (p * (1 - p) / float(known.var()) if known.var() > 0 else 1)  # more than votes, where some are 1/2
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return Share(p, centre - half, centre + half)


def by_prompt(votes: np.ndarray) -> Share:
    return clustered_share([row[~np.isnan(row)].tolist() for row in votes])


def coverage(samples: Iterable[np.ndarray], truth: float, interval: Interval) -> tuple[float, float]:
    """How often the interval of a sample holds the truth, and the mean width."""
    found = [interval(votes) for votes in samples]
    return (
        float(np.mean([share.low <= truth <= share.high for share in found])),
        float(np.mean([share.high - share.low for share in found])),
    )


def row(labels: Iterable[object], samples: list[np.ndarray], truth: float, *intervals: Interval) -> str:
    """A line of a table; the last interval is the one that should hold, and is marked where it does not."""
    *others, (covered, width) = [coverage(samples, truth, interval) for interval in intervals]
    mark = "" if 0.93 <= covered <= 0.97 else " *"
    cells = [
        *labels,
        *(f"{100 * share:.1f}" for share, _ in others),
        f"{100 * covered:.1f}{mark}",
        f"{100 * width:.1f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def head(*names: str) -> str:
    return f"\n| {' | '.join(names)} |\n|{'---:|' * len(names)}"


def block(votes: np.ndarray, groups: int) -> np.ndarray:
    """As if each of `groups` groups of prompts had been shown to raters of its own: votes laid out block by block."""
    parts = np.array_split(np.arange(len(votes)), groups)
    raters = votes.shape[1] // groups
    laid = np.full_like(votes, np.nan)
    for g, rows in enumerate(parts):
        laid[rows, g * raters : (g + 1) * raters] = votes[rows, g * raters : (g + 1) * raters]
    return laid


def known_exactly(
    rng: np.random.Generator, prompts: int, prompt_sd: float, share: float, repetitions: int
) -> tuple[float, float]:
    """Coverage of Student's t interval over the prompts' own shares, and over their logits, were they known exactly.

    No votes can tell more of a sample of prompts. The second asks for the mean logit: the right scale for these
    effects, and another question.
    """
    m = location(share, prompt_sd)
    logits = m + prompt_sd * rng.standard_normal((repetitions, prompts))

    def covered(values: np.ndarray, truth: float) -> float:
        half = student_t(0.975, prompts - 1) * values.std(axis=1, ddof=1) / math.sqrt(prompts)
        return float((abs(values.mean(axis=1) - truth) <= half).mean())

    return covered(logistic(logits), share), covered(logits, m)


def of_raters(rng: np.random.Generator, repetitions: int) -> None:
    print(f"Votes of {RATERS} raters, each on every prompt")
    print(
        head("prompts", "sd of prompts", "sd of raters", "share", "naive", "by prompt", "by prompt and rater", "width")
    )
    for prompts, prompt_sd, rater_sd, share in product(PROMPTS, (0, 1, 2), (0, 0.5), SHARES):
        samples = [simulate(rng, prompts, RATERS, prompt_sd, rater_sd, share) for _ in range(repetitions)]
        labels = prompts, prompt_sd, rater_sd, share
        print(row(labels, samples, share, naive, by_prompt, crossed_share), flush=True)


def of_prompts_known(rng: np.random.Generator, repetitions: int) -> None:
    print("The share by prompt were it known exactly, from infinitely many raters without effects of their own")
    print(head("prompts", "sd of prompts", "share", "t over shares", "t over logits, for the mean logit"))
    for prompts in PROMPTS:
        exact = known_exactly(rng, prompts, 2, 0.9, repetitions)
        print(f"| {prompts} | 2 | 0.9 | {100 * exact[0]:.1f} | {100 * exact[1]:.1f} |")


def of_other_plans(rng: np.random.Generator, repetitions: int) -> None:
    print("Other plans: sd of prompts 1, of raters 0.5, share 0.7")
    print(head("prompts", "raters", "plan", "naive", "by prompt", "by prompt and rater", "width"))
    plans: list[tuple[int, int, str, Callable[[np.ndarray], np.ndarray]]] = [
        (38, 25, "half of the votes, by chance", lambda votes: np.where(rng.random(votes.shape) < 0.5, votes, np.nan)),
        (200, 25, "a rater stops after 1 to 200", lambda votes: np.where(_done(rng, votes.shape), votes, np.nan)),
        (200, 110, "11 groups of prompts with 10 raters each", lambda votes: block(votes, 11)),
    ]
    for prompts, raters, plan, leave in plans:
        samples = [leave(simulate(rng, prompts, raters, 1, 0.5, 0.7)) for _ in range(repetitions)]
        print(row((prompts, raters, plan), samples, 0.7, naive, by_prompt, crossed_share), flush=True)


def of_few_raters(rng: np.random.Generator, repetitions: int) -> None:
    print("Few raters, each on every prompt: sd of prompts 1, of raters 0.5")
    print(head("raters", "prompts", "share", "naive", "by prompt and rater", "width"))
    for raters, prompts, share in product(FEW_RATERS, PROMPTS, (0.5, 0.9)):
        samples = [simulate(rng, prompts, raters, 1, 0.5, share) for _ in range(repetitions)]
        print(row((raters, prompts, share), samples, share, naive, crossed_share), flush=True)


def of_votes_for_neither(rng: np.random.Generator, repetitions: int) -> None:
    print(f"A vote for neither as half of one, of {RATERS} raters")
    print(head("prompts", "sd of prompts", "sd of raters", "truth", "naive", "by prompt and rater", "width"))
    for prompts, prompt_sd, m in product(PROMPTS, (0, 1, 2), (0, 1)):
        sd = math.hypot(prompt_sd, 0.5)
        truth = (expectation(m - NEITHER, sd) + expectation(m + NEITHER, sd)) / 2
        samples = [simulate_with_ties(rng, prompts, RATERS, prompt_sd, 0.5, m) for _ in range(repetitions)]
        print(row((prompts, prompt_sd, 0.5, f"{truth:.2f}"), samples, truth, naive, crossed_share), flush=True)


def of_judges(rng: np.random.Generator, repetitions: int) -> None:
    print("Verdicts of a judge, by prompt")
    print(head("images a prompt", "prompts", "sd of prompts", "share", "naive", "by prompt", "width"))
    for images, prompts, prompt_sd, share in product(IMAGES, PROMPTS, (0, 1, 2), SHARES):
        samples = [simulate(rng, prompts, images, prompt_sd, 0, share) for _ in range(repetitions)]
        print(row((images, prompts, prompt_sd, share), samples, share, naive, by_prompt), flush=True)


TABLES = {
    "raters": of_raters,
    "known": of_prompts_known,
    "plans": of_other_plans,
    "few": of_few_raters,
    "neither": of_votes_for_neither,
    "judges": of_judges,
}


def main(
    tables: tuple[Literal["raters", "known", "plans", "few", "neither", "judges"], ...] = (),
    repetitions: int = 10_000,
    seed: int = 0,
) -> None:
    """Print the tables.

    Args:
        tables: Which; all if left out.
        repetitions: Simulated evaluations per line.
        seed: Of the simulation of each table.
    """
    print(f"{environment()}\n{repetitions} repetitions a line, seed {seed}; coverage and width in percent")
    for name in tables or TABLES:
        began = time.perf_counter()
        print()
        TABLES[name](np.random.default_rng(seed), repetitions)
        print(f"\n{time.perf_counter() - began:.0f} seconds")


def _done(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Which prompts each rater has come to, each in an order of their own."""
    prompts, raters = shape
    order = rng.random(shape).argsort(axis=0).argsort(axis=0)
    return order < rng.integers(1, prompts + 1, raters)


if __name__ == "__main__":
    tyro.cli(main)
