"""Win rates against scikit-learn's logistic regression, and a simulated judge with a known taste for length."""

import numpy as np
import pytest
from scipy.special import expit

from larpo.errors import DataError
from larpo.win_rate import RIDGE, length_controlled, preferences, win_rates


@pytest.mark.parametrize("seed", [0, 1])
def test_the_fit_is_that_of_scikit_learn(seed):
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(seed)
    difference = draw.normal(20, 100, 120)
    won = draw.choice([0.0, 0.5, 1.0], 120, p=[0.3, 0.2, 0.5])
    rate, weight = length_controlled(won, difference)
    features = np.stack([np.ones(120), np.tanh(difference / difference.std())], axis=1)
    model = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-10)
    twice = np.concatenate([features, features])  # each prompt as a win and as a loss, by its share
    model.fit(twice, [1] * 120 + [0] * 120, sample_weight=np.concatenate([won, 1 - won]))
    assert rate == pytest.approx(expit(model.coef_[0, 0]), abs=1e-5)
    assert weight == pytest.approx(model.coef_[0, 1], abs=1e-4)


def test_a_known_taste_for_length_is_taken_out():
    """The model's responses are no better, only longer, and the judge likes that."""
    draw = np.random.default_rng(0)
    prompts, theta, phi = 20_000, 0.0, 2.0
    difference = draw.normal(150, 100, prompts)
    won = (draw.random(prompts) < expit(theta + phi * np.tanh(difference / difference.std()))).astype(float)
    rate, weight = length_controlled(won, difference)
    assert won.mean() > 0.75
    assert rate == pytest.approx(0.5, abs=0.02)
    assert weight == pytest.approx(phi, abs=0.1)


def test_a_better_model_stays_better():
    draw = np.random.default_rng(1)
    difference = draw.normal(-50, 80, 20_000)
    won = (draw.random(20_000) < expit(0.8 + 1.5 * np.tanh(difference / difference.std()))).astype(float)
    rate, _ = length_controlled(won, difference)
    assert won.mean() < 0.65
    assert rate == pytest.approx(expit(0.8), abs=0.02)


def test_swapping_the_models_turns_the_rate_around():
    draw = np.random.default_rng(2)
    rewards, others = draw.normal(0.3, 1, 60), draw.normal(0, 1, 60)
    lengths, other_lengths = draw.integers(10, 200, 60), draw.integers(10, 150, 60)
    there = win_rates(rewards, others, lengths, other_lengths, seed=0)
    back = win_rates(others, rewards, other_lengths, lengths, seed=0)
    assert there.raw[0] + back.raw[0] == pytest.approx(1)
    assert there.length_controlled[0] + back.length_controlled[0] == pytest.approx(1, abs=1e-4)
    assert there.length_weight == pytest.approx(back.length_weight, abs=1e-3)


def test_equal_lengths_leave_the_raw_rate():
    rates = win_rates([1.0, 1.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.5], [9] * 4, [9] * 4, seed=0)
    assert rates.raw[0] == (1 + 1 + 0 + 0.5) / 4
    assert rates.length_controlled[0] == pytest.approx(2.5 / 4, abs=2e-3)
    assert rates.length_weight == 0.0


def test_a_side_that_wins_everything_gets_a_finite_fit():
    rate, weight = length_controlled(np.ones(50), np.arange(50.0))
    assert 0.98 < rate < 1.0
    assert abs(weight) < 20


def test_the_interval_covers_the_truth_and_the_rate():
    draw = np.random.default_rng(3)
    rates = win_rates(draw.normal(0, 1, 200), draw.normal(0, 1, 200), draw.integers(5, 50, 200), [20] * 200, seed=0)
    for mean, low, high in (rates.raw, rates.length_controlled):
        assert low < mean < high
        assert low < 0.5 < high


def test_other_shapes_are_refused():
    with pytest.raises(DataError, match="two equal, non-empty"):
        preferences([1.0], [1.0, 2.0])
