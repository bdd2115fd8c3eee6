"""How often one model's responses earn more than another's, raw and with lengths controlled for.

The length control is that of length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475, section 3): a
logistic model of the preference with a term for the difference in length; the controlled rate is what the model
predicts with that term at zero. Simplified here, for two models: the term for each instruction's difficulty, which
the paper fits on all models of its leaderboard, is left out; the preference is which reward is higher, not a judge's
probability; and one weak ridge on both weights stands in for the paper's regularization by cross-validation.
Shapes: P prompts, one response of each model a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from larpo.errors import DataError
from larpo.sweep import Interval

Floats = NDArray[np.float64]
RIDGE = 0.01  # finite weights where one side wins everything; shrinks those of 100 prompts by less than a thousandth
REFITS = 1000  # bootstrap resamples: each is a fit


@dataclass(frozen=True)
class WinRates:
    """Rates from 0 to 1, each with its 95% bootstrap interval over prompts."""

    raw: Interval
    length_controlled: Interval
    length_weight: float  # of the length term: above 0, the longer response tends to win


def win_rates(
    rewards_P: ArrayLike, others_P: ArrayLike, lengths_P: ArrayLike, other_lengths_P: ArrayLike, *, seed: int
) -> WinRates:
    """One model against another: rewards and lengths (in characters) of their responses to the same P prompts."""
    won_P = preferences(rewards_P, others_P)
    difference_P = np.asarray(lengths_P, dtype=np.float64) - np.asarray(other_lengths_P, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, won_P.size, (REFITS, won_P.size))
    controlled, weight = length_controlled(won_P, difference_P)
    resampled = [(won_P[drawn].mean(), length_controlled(won_P[drawn], difference_P[drawn])[0]) for drawn in draws]
    (raw_low, low), (raw_high, high) = np.quantile(resampled, [0.025, 0.975], axis=0).tolist()
    return WinRates((float(won_P.mean()), raw_low, raw_high), (controlled, low, high), weight)


def preferences(rewards_P: ArrayLike, others_P: ArrayLike) -> Floats:
    """1 where the first reward is higher, 0 where it is lower, 1/2 where they are equal, [P].

    >>> preferences([1.0, 0.5, 0.0], [0.0, 0.5, 2.0]).tolist()
    [1.0, 0.5, 0.0]
    """
    rewards, others = np.asarray(rewards_P, dtype=np.float64), np.asarray(others_P, dtype=np.float64)
    if rewards.shape != others.shape or rewards.ndim != 1 or not rewards.size:
        raise DataError(f"a win rate needs two equal, non-empty [P] arrays, got {rewards.shape} and {others.shape}")
    return (1 + np.sign(rewards - others)) / 2


def length_controlled(won_P: ArrayLike, difference_P: ArrayLike) -> tuple[float, float]:
    """The length-controlled win rate, and the weight phi of the length term.

    `p(win) = sigmoid(theta + phi * tanh(d / std(d)))` with d the difference in length; the rate is `sigmoid(theta)`.
    Fitted by maximum likelihood with a ridge, `RIDGE / 2 * (theta^2 + phi^2)`; a win of 1/2 counts as half of each.

    Args:
        won_P: 1, 1/2 or 0 a prompt, [P].
        difference_P: length of the model's response minus the other's, [P]; all equal leaves the term out.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    won, difference = np.asarray(won_P, dtype=np.float64), np.asarray(difference_P, dtype=np.float64)
    spread = difference.std()
    term = np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)
    features_P2 = np.stack([np.ones_like(term), term], axis=1)

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits = features_P2 @ weights
        value = np.logaddexp(0.0, logits).sum() - won @ logits + RIDGE / 2 * weights @ weights
        return float(value), features_P2.T @ (expit(logits) - won) + RIDGE * weights

    theta, phi = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    return float(expit(theta)), float(phi)
