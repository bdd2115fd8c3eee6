"""The estimators against enumeration of all subsets, and votes by hand."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

from larpo.errors import DataError
from larpo.recall import best_of, majority, recall


def over_subsets(n: int, cutoff: int, value) -> float:
    """The mean of `value(indices)` over all subsets of `cutoff` of n samples."""
    subsets = list(combinations(range(n), cutoff))
    return float(sum(Fraction(value(subset)) for subset in subsets) / len(subsets))


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_recall_is_the_mean_over_all_subsets(n):
    correct_PN = list(product([False, True], repeat=n))
    for cutoff in range(1, n + 1):
        expected = [over_subsets(n, cutoff, lambda taken, row=row: any(row[i] for i in taken)) for row in correct_PN]
        assert recall(correct_PN, cutoff) == pytest.approx(expected, abs=1e-12)


def test_recall_of_many_samples_neither_overflows_nor_falls():
    correct = np.zeros((1, 100_000), dtype=bool)
    correct[0, :3] = True
    values = [recall(correct, cutoff)[0] for cutoff in (1, 10, 1000, 50_000, 99_997, 99_998, 100_000)]
    assert values[0] == pytest.approx(3 / 100_000)
    assert values[3] == pytest.approx(1 - 0.5**3, abs=1e-4)
    assert values[-2:] == [1.0, 1.0]
    assert values == sorted(values)


@pytest.mark.parametrize("rewards", [(0.3, -1.0, 2.0, 0.5, 0.1), (1.0, 1.0, 0.0, 1.0, 0.0), (2.0, 2.0, 2.0, 2.0, 2.0)])
def test_the_best_reward_of_n_is_the_mean_of_maxima(rewards):
    for cutoff in range(1, 6):
        expected = over_subsets(5, cutoff, lambda taken: max(rewards[i] for i in taken))
        assert best_of([rewards], [rewards], cutoff) == pytest.approx([expected], abs=1e-12)


def test_a_pick_by_another_reward_shares_ties_evenly():
    picker, right = (1.0, 3.0, 3.0, 2.0, 1.0), (1, 0, 1, 1, 0)

    def pick(taken) -> Fraction:
        best = [i for i in taken if picker[i] == max(picker[j] for j in taken)]
        return Fraction(sum(right[i] for i in best), len(best))

    for cutoff in range(1, 6):
        expected = over_subsets(5, cutoff, pick)
        assert best_of([picker], [right], cutoff) == pytest.approx([expected], abs=1e-12)


def test_the_best_of_one_sample_is_the_mean_and_of_all_the_best():
    rewards = [[0.0, 0.2, 0.7], [1.0, 1.0, 0.1]]
    assert best_of(rewards, rewards, 1) == pytest.approx([0.9 / 3, 2.1 / 3])
    assert best_of(rewards, rewards, 3) == pytest.approx([0.7, 1.0])
    correct = np.asarray(rewards) >= 0.7
    for cutoff in (1, 2, 3):  # a reward model that knows the truth picks right whenever it can
        assert best_of(rewards, correct, cutoff) == pytest.approx(recall(correct, cutoff))


@pytest.mark.parametrize(
    ("answers", "right", "cutoff", "expected"),
    [
        (["4", "4", "5"], [1, 1, 0], 3, 1.0),
        (["5", "4", "5"], [0, 1, 0], 3, 0.0),
        (["4", "5"], [1, 0], 2, 1 / 2),  # a tie is shared
        (["4", "5", "6", None], [1, 0, 0, 0], 4, 1 / 3),
        (["4", None, None, None], [1, 0, 0, 0], 4, 1.0),  # who says nothing does not vote
        ([None, None], [0, 0], 2, 0.0),
        (["4", "4", "5", "5", "4", "5"], [1, 1, 0, 0, 1, 0], 2, (1 + 0 + 1 / 2) / 3),  # groups of two, in order
        (["4", "4", "5", "5"], [1, 1, 0, 0], 3, 1.0),  # the fourth is in no group of three
        (["4", "4", "5"], [1, 1, 0], 1, 2 / 3),
    ],
)
def test_votes_by_hand(answers, right, cutoff, expected):
    assert majority([answers], [right], cutoff) == pytest.approx([expected])


@pytest.mark.parametrize("cutoff", [0, 4])
def test_more_than_was_sampled_cannot_be_estimated(cutoff):
    for estimate in (recall, lambda c, n: best_of(c, c, n), lambda c, n: majority([["1"] * 3], c, n)):
        with pytest.raises(DataError, match=f"N = {cutoff} of 3 samples"):
            estimate([[True, False, False]], cutoff)
