import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import larpo.dealing
from larpo.dealing import deal
from larpo.errors import DataError

costs = st.lists(st.integers(1, 5000), max_size=40)


def test_docstring_examples():
    assert doctest.testmod(larpo.dealing).failed == 0


@given(costs, st.integers(1, 9))
def test_a_deal_gives_each_item_once_and_counts_that_differ_by_one(costs, ranks):
    hands = deal(costs, ranks)
    assert len(hands) == ranks
    assert sorted(index for hand in hands for index in hand) == list(range(len(costs)))
    assert max(map(len, hands)) - min(map(len, hands)) <= 1
    assert hands == deal(list(costs), ranks)


@given(costs.filter(len), st.integers(1, 9))
def test_loads_differ_by_at_most_the_dearest_item(costs, ranks):
    loads = [sum(costs[index] for index in hand) for hand in deal(costs, ranks)]
    assert max(loads) - min(loads) <= max(costs)


def test_a_deal_balances_where_order_would_not():
    # In turns, the loads would be 900 + 800 + 700 and 3 + 2 + 1; here 900 + 3 + 2 and 800 + 700 + 1.
    assert deal([900, 3, 800, 2, 700, 1], ranks=2) == [[0, 1, 3], [2, 4, 5]]


def test_fewer_items_than_ranks_leave_empty_hands():
    assert deal([3, 9], ranks=4) == [[1], [0], [], []]


def test_a_deal_to_no_rank_is_refused():
    with pytest.raises(DataError, match="3 items to 0 ranks"):
        deal([1, 2, 3], ranks=0)
