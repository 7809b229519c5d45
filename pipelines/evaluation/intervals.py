"""Shares with intervals that know that images of one prompt are alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Share:
    """A share in [0, 1] and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def clustered_share(clusters: Sequence[Sequence[bool]], confidence: float = 0.95) -> Share:
    """The share of True over all, with an interval clustered by prompt: clusters[i] holds the verdicts of prompt i.

    Wilson's interval at the effective sample size of Korn & Graubard (1998): the number of verdicts divided by the
    design effect, which the spread between the clusters gives. The quantile is Student's t with one degree of freedom
    less than there are clusters. Raises ValueError without at least two clusters, or with an empty one.
    """
    if len(clusters) < 2 or any(len(cluster) == 0 for cluster in clusters):
        raise ValueError(
            f"{len(clusters)} clusters of sizes {[len(c) for c in clusters]}: expected 2 or more, none empty"
        )
    k, n = len(clusters), sum(len(cluster) for cluster in clusters)
    p = sum(sum(cluster) for cluster in clusters) / n
    spread = sum((sum(cluster) - p * len(cluster)) ** 2 for cluster in clusters)
    variance = k / (k - 1) * spread / n**2
    # Never more than n; and where all verdicts agree nothing is known of the clusters' likeness: each counts once.
    if p in (0, 1):
        effective = float(k)
    else:
        effective = min(float(n), p * (1 - p) / variance) if variance > 0 else float(n)
    z = student_t(0.5 + confidence / 2, k - 1)
    centre = (p + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z / (1 + z * z / effective) * math.sqrt(p * (1 - p) / effective + z * z / (4 * effective**2))
    return Share(p, max(0.0, centre - half), min(1.0, centre + half))


def student_t(probability: float, degrees: int) -> float:
    """The quantile of Student's t: Hill's expansion in the normal quantile (1970).

    At 0.975 it is good to 4e-3 with 3 degrees, to 1e-3 from 4 on.
    """
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
