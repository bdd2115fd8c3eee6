"""Calibration of pair probabilities, against scikit-learn."""

import math
import random

import numpy as np
import pytest

from larpo.calibration import (
    HeldoutPairs,
    Reliability,
    accuracy_interval,
    brier_score,
    expected_calibration_error,
    joined,
    pair_accuracy,
    pairs_of,
    reliability,
)
from larpo.errors import DataError


@pytest.fixture
def pairs():
    draw = random.Random(0)
    differences = tuple(draw.gauss(0.5, 2.0) for _ in range(300))
    return HeldoutPairs(differences, tuple(f"p{number // 3}" for number in range(300)))


def readings(pairs):
    """Each pair from both sides, as scikit-learn takes them."""
    p = 1 / (1 + np.exp(-np.array(pairs.differences)))
    return np.concatenate([np.ones_like(p), np.zeros_like(p)]), np.concatenate([p, 1 - p])


@pytest.mark.parametrize("bins", [5, 10])
def test_the_curve_is_scikit_learns(pairs, bins):
    from sklearn.calibration import calibration_curve

    observed, predicted = calibration_curve(*readings(pairs), n_bins=bins)
    curve = reliability(pairs, bins)
    assert curve.predicted == pytest.approx(predicted.tolist())
    assert curve.observed == pytest.approx(observed.tolist())
    assert sum(curve.counts) == 600


def test_a_bin_of_few_readings_has_a_wide_bar():
    """By hand, z = 1.96: 1 of 2 gives z sqrt(1/8 + z^2/16) / (1 + z^2/2); a bin where all is confirmed is not sure."""
    z = 1.959964
    curve = Reliability(predicted=(0.5, 0.9, 0.9), observed=(0.5, 1.0, 1.0), counts=(2, 2, 200))
    half, few, many = curve.half_widths
    assert half == pytest.approx(z * math.sqrt(1 / 8 + z**2 / 16) / (1 + z**2 / 2), rel=1e-5)
    assert few == pytest.approx(z**2 / 4 / (1 + z**2 / 2), rel=1e-5)
    assert 0 < many < 0.01 < few


def test_the_brier_score_is_scikit_learns(pairs):
    from sklearn.metrics import brier_score_loss

    assert brier_score(pairs) == pytest.approx(brier_score_loss(*readings(pairs)))


def test_the_calibration_error_by_hand():
    """p = 0.75 twice right and twice wrong; its mirror 0.25 likewise: half of each is confirmed, a gap of 1/4."""
    log3 = math.log(3)
    pairs = HeldoutPairs((log3, log3, -log3, -log3), ("a", "b", "c", "d"))
    assert expected_calibration_error(pairs) == pytest.approx(1 / 4)
    right = HeldoutPairs((log3, log3, log3, -log3), ("a", "b", "c", "d"))
    assert expected_calibration_error(right) == pytest.approx(0.0, abs=1e-12)
    assert brier_score(right) == pytest.approx((3 * 0.25**2 + 0.75**2) / 4)


def test_a_tie_is_half_right():
    assert pair_accuracy(HeldoutPairs((1.0, 0.0, -1.0, 2.0), ("a",) * 4)) == 2.5 / 4


def test_the_interval_draws_prompts_with_all_their_pairs(pairs):
    mean, low, high = accuracy_interval(pairs, resamples=2000, seed=0)
    assert mean == pair_accuracy(pairs)
    by_prompt = (np.sign(np.array(pairs.differences).reshape(100, 3)) + 1).mean(1) / 2
    spread = by_prompt.std(ddof=1) / math.sqrt(100)  # equal counts: the bootstrap's spread is that of the mean
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    copies = HeldoutPairs((1.0, 1.0, -1.0, -1.0), ("a", "a", "b", "b"))
    assert accuracy_interval(copies, resamples=500, seed=0)[1:] == (0.0, 1.0)


def test_pairs_of_a_list_are_those_with_an_order():
    found = pairs_of("p", [3.0, 1.0, 2.0], [1.0, 0.0, 0.0])
    assert found.differences == (2.0, 1.0)
    assert pairs_of("p", [3.0, 1.0], [1.0, 1.0]) is None
    assert joined([found, found]).prompt_ids == ("p",) * 4


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(DataError, match="not finite"):
        HeldoutPairs((math.nan,), ("p",))
