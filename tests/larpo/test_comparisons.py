"""Designs of comparisons, and scores fitted to them, against numpy's least squares and known scores."""

import numpy as np
import pytest

from larpo.comparisons import design, fit, passes

SIZES = [(k, bound) for k in range(2, 20) for bound in (2, 3, 4, 5, 8)]


def degrees(count, pairs):
    return [sum(n in pair for pair in pairs) for n in range(count)]


@pytest.mark.parametrize("k", range(8))
def test_a_full_design_costs_k_times_k_less_one_passes(k):
    assert passes(k, None) == k * (k - 1)
    assert len(set(design(k, None))) == len(design(k, None))


@pytest.mark.parametrize(("k", "bound"), SIZES)
def test_a_bounded_design_is_balanced_connected_and_keeps_its_bound(k, bound):
    pairs = design(k, bound)
    assert all(0 <= i < j < k for i, j in pairs)
    expected = min(k - 1, bound - (bound % 2 and k % 2))  # an odd number of ends cannot meet in pairs
    assert degrees(k, pairs) == [expected] * k
    assert passes(k, bound) == k * expected
    reached = {0}
    for _ in range(k):
        reached |= {n for pair in pairs if reached & set(pair) for n in pair}
    assert reached == set(range(k))


@pytest.mark.parametrize("bound", [None, 2, 3, 4])
@pytest.mark.parametrize("k", [2, 5, 9])
def test_consistent_margins_give_their_scores_back(k, bound):
    scores = np.random.default_rng(0).normal(size=k)
    pairs = design(k, bound)
    found = fit(k, pairs, [scores[i] - scores[j] for i, j in pairs])
    assert found == pytest.approx(scores - scores.mean(), abs=1e-12)


@pytest.mark.parametrize("bound", [None, 3])
def test_inconsistent_margins_are_fitted_in_the_least_squares(bound):
    k, pairs = 7, design(7, bound)
    margins = np.random.default_rng(1).normal(size=len(pairs))
    incidence = np.zeros((len(pairs) + 1, k))
    for row, (i, j) in enumerate(pairs):
        incidence[row, [i, j]] = 1, -1
    incidence[-1] = 1  # mean 0
    expected = np.linalg.lstsq(incidence, np.append(margins, 0), rcond=None)[0]
    assert fit(k, pairs, margins) == pytest.approx(expected, abs=1e-12)


def test_of_all_pairs_a_score_is_the_mean_margin():
    margins = {(0, 1): 1.0, (0, 2): -2.0, (1, 2): 4.0}
    assert fit(3, list(margins), list(margins.values())) == pytest.approx([(1 - 2) / 3, (-1 + 4) / 3, (2 - 4) / 3])


def test_few_responses_have_few_comparisons():
    assert fit(0, [], []) == []
    assert fit(1, [], []) == [0.0]
    assert fit(2, [(0, 1)], [3.0]) == pytest.approx([1.5, -1.5])
