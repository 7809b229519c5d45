"""Intervals of shares: textbook quantiles, and that they cover the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation.intervals import Share, clustered_share, student_t


@pytest.mark.parametrize(
    ("probability", "degrees", "wanted", "tolerance"),
    [
        (0.975, 1, 12.7062, 1e-4),
        (0.975, 2, 4.30265, 1e-5),
        (0.975, 3, 3.18245, 4e-3),
        (0.975, 4, 2.77645, 1e-3),
        (0.975, 9, 2.26216, 1e-4),
        (0.975, 30, 2.04227, 1e-4),
        (0.975, 60, 2.00030, 1e-4),
        (0.975, 10**6, 1.95997, 1e-4),
        (0.95, 9, 1.83311, 1e-4),
        (0.995, 30, 2.75000, 1e-4),
        (0.5, 1, 0.0, 1e-9),
        (0.5, 7, 0.0, 1e-9),
    ],
)
def test_quantiles_of_student_are_those_of_the_tables(
    probability: float, degrees: int, wanted: float, tolerance: float
) -> None:
    assert student_t(probability, degrees) == pytest.approx(wanted, abs=tolerance)


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 0.0), (0.0, 1.0), (0.0, 2.0), (1.5, 0.0), (1.5, 1.0), (1.5, 2.0)])
def test_the_interval_covers_the_truth(mean: float, spread: float) -> None:
    """60 prompts with 4 images each; a prompt's share is logistic of a normal number."""
    rng = np.random.default_rng(0)
    truth = (1 / (1 + np.exp(-(mean + spread * rng.standard_normal(1_000_000))))).mean()
    covered, widths = 0, []
    for _ in range(1000):
        share = 1 / (1 + np.exp(-(mean + spread * rng.standard_normal((60, 1)))))
        found = clustered_share((rng.random((60, 4)) < share).tolist())
        covered += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert 925 <= covered <= 975
    if spread == 0:  # and not by being wide: then it is as wide as that of independent verdicts
        assert np.mean(widths) == pytest.approx(2 * 1.96 * (truth * (1 - truth) / 240) ** 0.5, rel=0.1)


def test_likeness_within_clusters_widens_the_interval() -> None:
    """The same share of the same number; but where images of a prompt agree, a prompt tells little more than one."""
    mixed = clustered_share([[True, True, False, False]] * 30)
    agreeing = clustered_share([[True] * 4, [False] * 4] * 15)
    assert mixed.value == agreeing.value == 0.5
    assert agreeing.high - agreeing.low > 1.8 * (mixed.high - mixed.low)
    # As wide as thirty independent verdicts, by Wilson's formula with Student's t.
    n, z = 30 * 29 / 30, student_t(0.975, 29)
    assert agreeing.high - 0.5 == pytest.approx(0.5 * z / (n + z * z) ** 0.5)


def test_clusters_never_count_for_more_than_their_verdicts() -> None:
    """Clusters that differ less than chance would have it do not narrow the interval below Wilson's own."""
    z = student_t(0.975, 20)
    for last in ([True, False], [True, True]):
        found = clustered_share([[True, False]] * 20 + [last])
        p, n = found.value, 42
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        assert found.high - found.low == pytest.approx(2 * half)


def test_where_all_agree_each_cluster_counts_once() -> None:
    z = student_t(0.975, 49)
    for images in (1, 4):
        right, wrong = clustered_share([[True] * images] * 50), clustered_share([[False] * images] * 50)
        assert (right.value, right.high) == (1.0, pytest.approx(1.0))
        assert right.low == pytest.approx(50 / (50 + z * z))
        assert (wrong.value, wrong.low) == (0.0, pytest.approx(0.0, abs=1e-12))
        assert wrong.high == pytest.approx(1 - right.low)


def test_clusters_may_differ_in_size() -> None:
    found = clustered_share([[True], [False, False, False], [True, True]])
    assert found.value == 0.5
    assert 0 <= found.low < 0.5 < found.high <= 1


def test_more_confidence_is_a_wider_interval() -> None:
    clusters = [[True, False, True, True]] * 10 + [[False] * 4] * 3
    narrow, usual, wide = (clustered_share(clusters, confidence) for confidence in (0.5, 0.95, 0.99))
    assert wide.low < usual.low < narrow.low < usual.value < narrow.high < usual.high < wide.high


def test_a_share_is_told_in_percent() -> None:
    assert str(Share(0.5, 0.4449, 0.5551)) == "50.0% [44.5, 55.5]"


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ([], r"0 clusters of sizes \[\]: expected 2 or more, none empty"),
        ([[True, False]], r"1 clusters of sizes \[2\]: expected 2 or more"),
        ([[True], []], r"2 clusters of sizes \[1, 0\]: expected 2 or more, none empty"),
    ],
)
def test_too_little_to_tell_is_refused(clusters: list[list[bool]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clustered_share(clusters)


@pytest.mark.parametrize(("probability", "degrees"), [(0.975, 0), (0.4, 5), (1.0, 5)])
def test_no_quantile_is_refused(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match=rf"quantile {probability} of {degrees} degrees: expected one in \[0.5, 1\)"):
        student_t(probability, degrees)


def test_an_impossible_confidence_is_refused() -> None:
    with pytest.raises(ValueError, match="quantile"):
        clustered_share([[True], [False]], confidence=1.0)
