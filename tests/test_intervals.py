"""Intervals of shares: textbook quantiles, and that they cover the truth as often as they say."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.evaluation.intervals import (
    LEAST_BY_PROMPT,
    Estimate,
    Share,
    clustered_mean,
    clustered_share,
    crossed_share,
    crossed_variance,
    student_t,
)


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


def test_clusters_that_agree_by_chance_do_not_narrow_the_interval_for_ever() -> None:
    """Nor those that differ less than chance would have it: their design effect is LEAST_BY_PROMPT."""
    z = student_t(0.975, 20)
    for last in ([True, False], [True, True]):
        found = clustered_share([[True, False]] * 20 + [last])
        p, n = found.value, 42 / LEAST_BY_PROMPT
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


@pytest.mark.parametrize(("prompts", "images"), [(7, 8), (10, 8), (10, 25), (38, 4)])
@pytest.mark.parametrize("sd", [0, 1, 2])
def test_the_interval_of_a_small_category_covers_the_truth(prompts: int, images: int, sd: float) -> None:
    """Also where prompts do not differ, and not by being too wide; benchmarks/coverage.py has other shares."""
    rng = np.random.default_rng(0)
    share = 1 / (1 + np.exp(-sd * rng.standard_normal((2000, prompts, 1))))
    found = [clustered_share(sample.tolist()) for sample in rng.random((2000, prompts, images)) < share]
    assert 0.935 <= np.mean([one.low <= 0.5 <= one.high for one in found]) <= 0.975


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


def test_a_mean_of_scores_is_students_over_equal_clusters() -> None:
    means = np.array([1.0, 2.0, 4.0, 5.0])
    found = clustered_mean([[mean - 1, mean + 1] for mean in means])
    half = student_t(0.975, 3) * means.std(ddof=1) / 2
    assert (found.value, found.low, found.high) == (3.0, pytest.approx(3 - half), pytest.approx(3 + half))
    assert str(Estimate(3.0, 0.12345, 5.8766)) == "3 [0.123, 5.88]"
    with pytest.raises(ValueError, match="1 clusters of sizes"):
        clustered_mean([[1.0]])


# Votes of raters: clustered by prompt and rater.


def votes(rng: np.random.Generator, prompts: int, raters: int, sd: float = 1.0, rater_sd: float = 0.5) -> np.ndarray:
    effects = sd * rng.standard_normal((prompts, 1)) + rater_sd * rng.standard_normal((1, raters))
    return (rng.random((prompts, raters)) < 1 / (1 + np.exp(-effects))).astype(float)


def test_the_variance_of_a_complete_table_is_that_of_the_analysis_of_variance() -> None:
    table = np.random.default_rng(0).standard_normal((6, 9)) + np.arange(6)[:, None] + np.arange(9)
    p, r = table.shape
    rows, columns = table.mean(1) - table.mean(), table.mean(0) - table.mean()
    by_prompt = r * (rows**2).sum() / (p - 1)
    by_rater = p * (columns**2).sum() / (r - 1)
    rest = ((table - table.mean() - rows[:, None] - columns) ** 2).sum() / ((p - 1) * (r - 1))
    variance, degrees = crossed_variance(table)
    whole = by_prompt + by_rater - rest
    assert variance == pytest.approx(whole / table.size)
    parts = by_prompt**2 / (p - 1) + by_rater**2 / (r - 1) + rest**2 / ((p - 1) * (r - 1))
    assert degrees == pytest.approx(whole**2 / parts)


@pytest.mark.parametrize("plan", ["half missing", "some raters begin only", "groups with raters of their own"])
def test_the_variance_is_unbiased_where_votes_are_missing(plan: str) -> None:
    """Of normal values with known variances, over one pattern of missing ones."""
    rng = np.random.default_rng(1)
    present = rng.random((12, 10)) < 0.5
    if plan == "some raters begin only":
        present = np.arange(12)[:, None] < np.array([12, 12, 12, 12, 6, 5, 3, 2, 1, 1])
    elif plan == "groups with raters of their own":
        present = np.kron(np.eye(2), np.ones((6, 5))).astype(bool)
    n, by_prompt, by_rater = present.sum(), (present.sum(1) ** 2).sum(), (present.sum(0) ** 2).sum()
    truth = (2.0 * by_prompt + 0.5 * by_rater + 3.0 * n) / n**2
    found = []
    for _ in range(3000):
        values = 2**0.5 * rng.standard_normal((12, 1)) + 0.5**0.5 * rng.standard_normal((1, 10))
        values = values + 3**0.5 * rng.standard_normal((12, 10))
        found.append(crossed_variance(np.where(present, values, np.nan), least=-np.inf)[0])
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / 3000**0.5)
    assert np.std(found) / 3000**0.5 < 0.02 * truth  # tight enough to tell


def test_one_rater_is_clustered_by_prompt_alone() -> None:
    """And so are votes of as many raters as there are votes."""
    table = votes(np.random.default_rng(2), 8, 4)
    p, n = table.mean(), table.size
    by_prompt = 8 / 7 * ((table.sum(1) - 4 * p) ** 2).sum() / n**2
    apart = np.full((8, 32), np.nan)
    for i in range(8):
        apart[i, 4 * i : 4 * i + 4] = table[i]
    assert crossed_variance(apart)[0] == pytest.approx(by_prompt)
    single = table[:, :1]
    assert crossed_variance(single) == (pytest.approx(single.var(ddof=1) / 8), pytest.approx(7))


@given(
    st.integers(1, 12).flatmap(
        lambda rows: st.integers(1, 8).flatmap(
            lambda columns: arrays(float, (rows, columns), elements=st.sampled_from([0.0, 0.5, 1.0, np.nan]))
        )
    )
)
def test_a_share_lies_within_its_interval_and_sides_can_be_swapped(table: np.ndarray) -> None:
    assume((~np.isnan(table)).sum() > 1)
    found, swapped = crossed_share(table), crossed_share(1 - table)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((1 - found.value, 1 - found.high, 1 - found.low))
    # Nothing depends on the order, nor on prompts and raters without votes.
    padded = np.pad(table[::-1, ::-1], ((0, 2), (1, 0)), constant_values=np.nan)
    assert asdict(crossed_share(padded)) == pytest.approx(asdict(found))


def test_raters_who_differ_widen_the_interval() -> None:
    """The same votes, once as if every rater had seen the prompts anew, once with raters who have their leanings."""
    rng = np.random.default_rng(3)
    leaning = (rng.random((40, 10)) < np.linspace(0.1, 0.9, 10)).astype(float)
    mixed = rng.permuted(leaning, axis=1)
    assert mixed.mean() == leaning.mean()
    one, other = crossed_share(leaning), crossed_share(mixed)
    assert one.high - one.low > 2 * (other.high - other.low)


def test_where_all_votes_agree_each_prompt_or_rater_counts_once() -> None:
    found, z = crossed_share(np.ones((9, 5))), student_t(0.975, 4)
    assert (found.value, found.low, found.high) == (1.0, pytest.approx(5 / (5 + z * z)), pytest.approx(1.0))


def test_where_all_votes_agree_other_prompts_tell_how_alike_the_votes_of_a_rater_are() -> None:
    rng, agreeing = np.random.default_rng(0), np.zeros((10, 3))
    z = student_t(0.975, 9)
    alike = np.vstack([agreeing, np.tile([1.0, 0.0, 0.0], (40, 1))])  # one rater always says yes
    unlike = np.vstack([agreeing, rng.permuted(np.tile([1.0, 0.0, 0.0], (40, 1)), axis=1)])
    assert crossed_share(agreeing, unlike).high == pytest.approx(z * z / (10 + z * z), abs=0.02)
    assert crossed_share(agreeing, alike).high > crossed_share(agreeing, unlike).high + 0.1
    assert crossed_share(1 - agreeing, 1 - unlike).low == pytest.approx(1 - crossed_share(agreeing, unlike).high)
    assert crossed_share(agreeing, agreeing) == crossed_share(agreeing)  # they tell nothing
    assert crossed_share(unlike, alike) == crossed_share(unlike)  # what is known of the votes themselves counts


@pytest.mark.parametrize(
    "table", [np.ones(5), np.full((3, 3), np.nan), np.array([[1.0, np.nan]]), np.array([[0, 2.0]])]
)
def test_what_are_no_votes_is_refused(table: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected at least two, from 0 to 1, by prompt and rater"):
        crossed_share(table)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [7, 10, 38, 200])
@pytest.mark.parametrize("sd", [0, 1, 2])
@pytest.mark.parametrize("rater_sd", [0, 0.5])
def test_the_crossed_interval_covers_the_truth(prompts: int, sd: float, rater_sd: float) -> None:
    """At 0.5; benchmarks/coverage.py has other shares. The naive interval is left far behind."""
    rng = np.random.default_rng(0)
    samples = [votes(rng, prompts, 25, sd, rater_sd) for _ in range(1500)]
    shares = [crossed_share(sample) for sample in samples]
    covered = np.mean([share.low <= 0.5 <= share.high for share in shares])
    assert 0.93 <= covered <= 0.975  # 0.93 to 0.97, and what 1500 samples leave open
    naive = np.mean([abs(sample.mean() - 0.5) <= 1.96 * sample.std() / sample.size**0.5 for sample in samples])
    if sd > 0:
        assert naive < 0.7
