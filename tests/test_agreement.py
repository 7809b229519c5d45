"""Krippendorff's alpha."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation.agreement import krippendorff_alpha

NONE = np.nan

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C and D: four observers, twelve units.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
).T


def test_the_published_example() -> None:
    assert krippendorff_alpha(PUBLISHED, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(PUBLISHED, "ordinal") == pytest.approx(0.815, abs=5e-4)


def test_agreement_chance_and_contradiction() -> None:
    assert krippendorff_alpha(np.array([[1, 1, 1], [-1, -1, -1], [0, 0, 0]])) == 1
    rng = np.random.default_rng(0)
    assert krippendorff_alpha(rng.integers(-1, 2, (4000, 5)).astype(float)) == pytest.approx(0, abs=0.02)
    assert krippendorff_alpha(np.array([[1.0, -1.0]] * 20)) < -0.9


def test_a_step_apart_is_less_than_two() -> None:
    """Raters who differ by no preference agree better than those who prefer the other, in order; nominally the same."""
    near, far = np.array([[1, 1], [1, 0], [-1, -1]] * 4), np.array([[1, 1], [1, -1], [-1, -1]] * 4)
    assert krippendorff_alpha(near.astype(float)) > krippendorff_alpha(far.astype(float))


@pytest.mark.parametrize("ratings", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, NONE], [NONE, -1.0]], [[NONE, NONE]]])
def test_where_it_is_not_defined(ratings: list[list[float]]) -> None:
    assert krippendorff_alpha(np.array(ratings)) is None
