"""Do raters agree? Krippendorff's alpha."""

from __future__ import annotations

from typing import Literal

import numpy as np


def krippendorff_alpha(ratings: np.ndarray, level: Literal["nominal", "ordinal"] = "ordinal") -> float | None:
    """1 where raters agree, 0 where they do as by chance, below 0 where they contradict each other.

    ratings: units x raters, numbers in their order, NaN where there is none. After Krippendorff, "Computing
    Krippendorff's Alpha-Reliability" (2011), sections C and D. None where it is not defined: where no unit has two
    ratings, or all ratings are the same.
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(axis=1).astype(float)  # units x values
    counts = counts[counts.sum(axis=1) > 1]
    pairable = counts.sum(axis=1, keepdims=True)
    # How often values c and k meet in a unit, each unit counting for as many as its ratings.
    coincidences = (counts / (pairable - 1)).T @ counts - np.diag((counts / (pairable - 1)).sum(axis=0))
    n_c = coincidences.sum(axis=1)
    n = n_c.sum()
    if level == "nominal":
        distance = 1.0 - np.eye(len(values))
    else:  # how many ratings lie from one value to the other, the two themselves by half
        below = np.cumsum(n_c) - n_c / 2
        distance = (below[:, None] - below) ** 2
    expected = n_c @ distance @ n_c
    return float(1 - (n - 1) * (coincidences * distance).sum() / expected) if expected > 0 else None
