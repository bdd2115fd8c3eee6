"""Which policy is the best, and when it is enough: literals."""

import pytest

from larpo.best_policy import BASE, Point, best_point, stop_reason, without_gain


def values(*numbers):
    """The base policy, a snapshot, an iteration's end, a snapshot, the next end: as many as there are numbers."""
    points = (BASE, Point(0, 5), Point(1), Point(1, 15), Point(2))
    return dict(reversed(list(zip(points, numbers, strict=False))))  # the order in the mapping means nothing


def test_points_are_in_the_order_of_training():
    points = [BASE, Point(0, 5), Point(0, 10), Point(1), Point(1, 15), Point(2)]
    assert sorted(reversed(points)) == points
    assert [point.label for point in points[:4]] == ["base policy", "step 5", "step 10", "after iteration 1"]


@pytest.mark.parametrize(
    ("numbers", "best"),
    [
        ((0.9,), None),
        ((0.9, 0.1), Point(0, 5)),  # the base policy is none that was trained
        ((0.1, 0.2, 0.3, 0.2), Point(1)),
        ((0.1, 0.3, 0.2, 0.3, 0.3), Point(0, 5)),  # the earliest of equals
        ((0.1, 0.2, 0.3, 0.4, 0.5), Point(2)),
    ],
)
def test_the_best_is_the_earliest_of_the_largest(numbers, best):
    assert best_point(values(*numbers)) == best


@pytest.mark.parametrize(
    ("numbers", "count"),
    [
        ((), 0),
        ((0.5,), 0),
        ((0.5, 0.5), 1),  # the same is no gain
        ((0.5, 0.6, 0.6, 0.7), 0),
        ((0.5, 0.6, 0.55, 0.59, 0.6), 3),
        ((0.5, 0.4, 0.3, 0.45, 0.49), 4),  # never above the base policy
    ],
)
def test_evaluations_without_a_gain_are_counted_from_the_best(numbers, count):
    assert without_gain(values(*numbers)) == count


def test_the_run_ends_when_patience_is_over_and_says_what_it_waited_for():
    numbers = values(0.5, 0.6, 0.55, 0.6)
    assert stop_reason(numbers, "greedy", None) is None
    assert stop_reason(numbers, "greedy", 3) is None
    assert stop_reason(numbers, "greedy", 2) == (
        "2 evaluations in a row did not exceed heldout/greedy 0.6000 of step 5 (evaluation.patience = 2)"
    )
    assert stop_reason({}, "greedy", 1) is None
