"""cascade/data/order.py: every epoch shows every item once, and nothing but (seed, index) decides where."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.data.order import item_of, permutation


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 10**9))
def test_every_epoch_is_a_permutation(length, seed, epoch):
    order = permutation(length, seed, epoch)
    assert sorted(map(order, range(length))) == list(range(length))


@given(st.integers(2**40, 2**50), st.integers(0, 5))
def test_a_length_that_no_list_could_have(length, seed):
    found = [item_of(i, length, seed) for i in range(50)]
    assert len(set(found)) == 50
    assert all(0 <= item < length for item in found)
    assert max(found) > length / 2 > min(found)


def test_epochs_and_seeds_differ():
    orders = [tuple(item_of(epoch * 20 + i, 20, seed) for i in range(20)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25
    assert all(sorted(order) == list(range(20)) for order in orders)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_all_orders_are_equally_likely(length):
    counts = Counter(tuple(map(permutation(length, seed), range(length))) for seed in range(2400))
    assert len(counts) == {2: 2, 3: 6, 4: 24}[length]
    expected = 2400 / len(counts)
    assert all(abs(count - expected) < 4 * expected**0.5 for count in counts.values())


def test_the_order_is_not_the_stored_one():
    """No item is likelier to come early, neighbours part: 200 items, 400 seeds."""
    first = [permutation(200, seed)(0) for seed in range(400)]
    assert abs(sum(first) / 400 - 99.5) < 4 * 57.7 / 20
    order = list(map(permutation(200, 0), range(200)))
    assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < 10


def test_an_order_that_stays():
    """What a run showed before an update of this code, it must show after."""
    assert [item_of(i, 10, 0) for i in range(20)] == [5, 3, 6, 1, 2, 0, 7, 9, 4, 8, 5, 0, 6, 7, 1, 3, 4, 9, 2, 8]


def test_no_items():
    with pytest.raises(ValueError, match="0 items"):
        permutation(0, 0)
