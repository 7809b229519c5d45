"""Shares and means with intervals that know that images of a prompt are alike, and votes of a rater.

What is estimated is the expectation over prompts, and raters, like those that were drawn, not over just these: more
images of a prompt do not make up for few prompts. `python benchmarks/coverage.py` measures how often the intervals
hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

# The variance of a share is taken to be at least this part of what it is for independent votes: a few prompts may seem
# to vary less, by chance. With 1, intervals from 7 prompts that do not differ hold the truth too often.
LEAST_VARIANCE = 0.6  # by prompt and rater
LEAST_BY_PROMPT = 0.4  # where Student's t, of one degree less than there are prompts, allows for chance already


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Share(Estimate):
    """A share, in [0, 1]."""

    def __str__(self) -> str:
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def clustered_share(clusters: Sequence[Sequence[bool]], confidence: float = 0.95) -> Share:
    """The share of True over all, with an interval clustered by prompt: clusters[i] holds the verdicts of prompt i.

    Wilson's interval at the effective sample size of Korn & Graubard (1998): the number of verdicts divided by the
    design effect, which the spread between the clusters gives, and which is taken to be LEAST_BY_PROMPT or more. The
    quantile is Student's t with one degree of freedom less than there are clusters. Where all verdicts agree nothing is
    known of the clusters' likeness, and each counts once. Raises ValueError without at least two clusters, or with an
    empty one.
    """
    k, n = _sizes(clusters)
    p = sum(sum(cluster) for cluster in clusters) / n
    spread = sum((sum(cluster) - p * len(cluster)) ** 2 for cluster in clusters)
    variance = k / (k - 1) * spread / n**2
    independent = p * (1 - p) / n
    effective = n * independent / max(variance, LEAST_BY_PROMPT * independent) if independent else k
    return _wilson(p, effective, student_t(0.5 + confidence / 2, k - 1))


def clustered_mean(clusters: Sequence[Sequence[float]], confidence: float = 0.95) -> Estimate:
    """The mean of real numbers over all, with an interval clustered by prompt: clusters[i] holds those of prompt i.

    Student's t interval, with one degree of freedom less than there are clusters, and the variance of a ratio (Cochran
    1977, section 11.8). Raises ValueError without at least two clusters, or with an empty one.
    """
    k, n = _sizes(clusters)
    mean = sum(map(math.fsum, clusters)) / n
    spread = sum((math.fsum(cluster) - mean * len(cluster)) ** 2 for cluster in clusters)
    half = student_t(0.5 + confidence / 2, k - 1) * math.sqrt(k / (k - 1) * spread) / n
    return Estimate(mean, mean - half, mean + half)


def _sizes(clusters: Sequence[Sequence[float]]) -> tuple[int, int]:
    """How many clusters there are, and how many values in all of them."""
    sizes = [len(cluster) for cluster in clusters]
    if len(sizes) < 2 or 0 in sizes:
        raise ValueError(f"{len(sizes)} clusters of sizes {sizes}: expected 2 or more, none empty")
    return len(sizes), sum(sizes)


def crossed_share(votes: np.ndarray, among: np.ndarray | None = None, confidence: float = 0.95) -> Share:
    """The mean of votes from 0 to 1, with an interval clustered by prompt and by rater.

    votes: prompts x raters, NaN where there is none; of 0 and 1 for a share, with 1/2 where "neither" is half of one.
    Wilson's interval at the effective number of votes, which is p (1 - p) / variance, with the variance and degrees of
    freedom of `crossed_variance`. Where all agree nothing is known of their likeness, and each prompt or each rater,
    whichever are fewer, counts once; unless `among`, votes of the same raters on more prompts, says how much the votes
    of a rater are alike.

    Of one rater it is the share of this rater over prompts; of one prompt, that of this prompt over raters. Raises
    ValueError without at least two votes, or where one is below 0 or above 1.
    """
    present = ~np.isnan(votes)
    known = votes[present]
    if votes.ndim != 2 or known.size < 2 or known.min() < 0 or known.max() > 1:
        raise ValueError(
            f"{known.size} votes in an array of shape {votes.shape}: expected at least two, from 0 to 1, by prompt and "
            "rater, and NaN where there is none"
        )
    p = float(known.mean())
    if known.min() == known.max():
        effective, degrees = _where_all_agree(_effective_sizes(present), among)
    else:
        variance, degrees = crossed_variance(votes, LEAST_VARIANCE * float(known.var()) / known.size, bounded=True)
        effective = p * (1 - p) / variance
    return _wilson(p, effective, student_t(0.5 + confidence / 2, degrees))


def _where_all_agree(sizes: tuple[float, float], among: np.ndarray | None) -> tuple[float, float]:
    """The effective number of votes, and the degrees of freedom. sizes: the effective numbers of prompts and raters."""
    prompts, raters = sizes
    spread = 0.0 if among is None else float(np.nanvar(among))
    if not spread or min(sizes) <= 1:
        effective = min(size for size in sizes if size > 1)
        return effective, max(1.0, effective - 1)
    assert among is not None
    likeness = min(1.0, max(0.0, _components(among)[1] / spread))
    by_prompt, by_rater = 1 / prompts, likeness / raters  # of the variance of a vote; the votes on a prompt are one
    total = by_prompt + by_rater
    return 1 / total, max(1.0, total**2 / (by_prompt**2 / (prompts - 1) + by_rater**2 / (raters - 1)))


def crossed_variance(values: np.ndarray, least: float = 0.0, *, bounded: bool = False) -> tuple[float, float]:
    """The variance of the mean of prompts x raters (NaN where there is none), and its degrees of freedom.

    A value is a mean plus an effect of its prompt, an effect of its rater, and a rest. Of n values,

        variance of the mean = (P var(prompt) + R var(rater) + n var(rest)) / n^2

    where P sums the squared numbers of values by prompt, R those by rater. The three variances solve the equations that
    set the sums of squares by prompt, by rater and of single values to their expectations (MIVQUE0: Hartley, Rao &
    LaMotte 1978): the analysis of variance of the two-way layout, for values that may be missing. One of them may come
    out negative; the whole is at least `least`.

    The degrees of freedom are Satterthwaite's (1946). bounded: by 0 and 1; then a prompt's mean is taken to have the
    excess kurtosis of a Beta distribution, if positive: near 0 and 1, a few prompts tell little of how they vary. They
    are at least 3, or one less than there are prompts or raters. Raises ValueError without at least two values.
    """
    present = ~np.isnan(values)
    if present.sum() < 2:
        raise ValueError(f"{present.sum()} values; the variance of their mean needs two or more")
    n, rows, columns = present.sum(), present.sum(axis=1), present.sum(axis=0)
    mean, components = values[present].mean(), _components(values)
    prompt, rater, rest = components * ((rows**2).sum(), (columns**2).sum(), n) / n**2
    variance = prompt + rater + rest
    freedom = [size - 1 for size in _effective_sizes(present)]
    bound = max(1.0, min(3.0, *(f for f in freedom if f > 0)))
    if variance <= least:
        return least, max(bound, math.prod(f for f in freedom if f > 0))
    uncertain = rest**2 / math.prod(freedom) if all(freedom) else 0.0
    for f, effect, component in zip(freedom, (prompt, rater), components[:2], strict=True):
        if f > 0:
            kurtosis = _beta_kurtosis(mean, component) if bounded else 0.0
            uncertain += (effect + rest) ** 2 / f + max(0.0, effect) ** 2 * max(0.0, kurtosis) / (2 * (f + 1))
    return variance, max(bound, variance**2 / uncertain)


def _components(values: np.ndarray) -> np.ndarray:
    """The variances of prompt, rater and rest, by MIVQUE0; one may be negative."""
    present = ~np.isnan(values)
    n, rows, columns = present.sum(), present.sum(axis=1).astype(float), present.sum(axis=0).astype(float)
    residuals = np.where(present, values - values[present].mean(), 0.0)
    squares = [(residuals.sum(axis=1) ** 2).sum(), (residuals.sum(axis=0) ** 2).sum(), (residuals**2).sum()]

    # expected[i, j] = trace(C D_i C D_j): D_i is 1 for two values of the same prompt, of the same rater, that are the
    # same; C takes off the mean.
    by_prompt, by_rater = (rows**2).sum(), (columns**2).sum()
    pp = by_prompt - 2 * (rows**3).sum() / n + by_prompt**2 / n**2
    rr = by_rater - 2 * (columns**3).sum() / n + by_rater**2 / n**2
    pr = n - 2 * (rows @ present @ columns) / n + by_prompt * by_rater / n**2
    p1, r1 = n - by_prompt / n, n - by_rater / n
    expected = np.array([[pp, pr, p1], [pr, rr, r1], [p1, r1, n - 1]])
    return np.linalg.lstsq(expected, squares, rcond=1e-9)[0]  # least squares: a lone rater has no variance


def _effective_sizes(present: np.ndarray) -> tuple[float, float]:
    """How many prompts, and raters, with equal numbers of votes would weigh as much as these."""
    rows, columns = present.sum(axis=1), present.sum(axis=0)
    return float(rows.sum() ** 2 / (rows**2).sum()), float(columns.sum() ** 2 / (columns**2).sum())


def _beta_kurtosis(mean: float, variance: float) -> float:
    """The excess kurtosis of the Beta distribution with this mean and variance; 0 where there is none."""
    size = mean * (1 - mean) / variance - 1 if variance > 0 else 0.0
    if size <= 0:
        return 0.0
    product = mean * (1 - mean) * size**2
    difference = (2 * mean - 1) ** 2 * size**2
    return 6 * (difference * (size + 1) - product * (size + 2)) / (product * (size + 2) * (size + 3))


def _wilson(p: float, n: float, z: float) -> Share:
    """Wilson's interval (1927) for a share of n independent votes, at the quantile z."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Share(p, max(0.0, centre - half), min(1.0, centre + half))


def student_t(probability: float, degrees: float) -> float:
    """The quantile of Student's t: Hill's expansion in the normal quantile (1970).

    At 0.975 it is good to 4e-3 with 3 degrees, to 1e-3 from 4 on. Fractions of a degree count from 3 on.
    """
    if 1 <= degrees < 3:
        degrees = math.floor(degrees)
    if degrees < 1 or not 0.5 <= probability < 1:
        raise ValueError(f"quantile {probability} of {degrees} degrees: expected one in [0.5, 1) of 1 or more")
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        a = 2 * probability - 1
        return a * math.sqrt(2 / (1 - a * a))
    z, d = NormalDist().inv_cdf(probability), degrees
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / d + g2 / d**2 + g3 / d**3 + g4 / d**4
