"""How far a reward model's pair probabilities can be believed: accuracy, calibration and Brier score on held-out pairs.

A pair (winner, loser) of one prompt has the probability `p = sigmoid(r_w - r_l)` under Bradley and Terry. Read from the
loser's side the same pair says 1 - p, and that it did not happen: both readings count, so that no number depends on
which of the two was written first. P pairs, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from larpo.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HeldoutPairs:
    """Differences of reward, winner minus loser, and the prompt that each pair belongs to; all [P]."""

    differences: tuple[float, ...]
    prompt_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.differences) != len(self.prompt_ids) or not self.differences:
            raise DataError(f"{len(self.differences)} differences of {len(self.prompt_ids)} pairs; give one each")
        if not np.isfinite(self.differences).all():
            raise DataError("a held-out reward is not finite; lower training.optimizer.learning_rate")


@dataclass(frozen=True)
class Reliability:
    """Bins that hold readings: mean probability, share that happened, and how many; all [B]."""

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def half_widths(self) -> tuple[float, ...]:
        """Half of each bin's 95% Wilson interval (Wilson 1927), as if its readings were independent: wide with few."""
        from scipy.stats import binomtest

        confirmed = [round(share * count) for share, count in zip(self.observed, self.counts, strict=True)]
        tests = [binomtest(hits, count) for hits, count in zip(confirmed, self.counts, strict=True)]
        intervals = [test.proportion_ci(method="wilson") for test in tests]
        return tuple(float(interval.high - interval.low) / 2 for interval in intervals)


def pairs_of(prompt_id: str, rewards_M: Sequence[float], labels_M: Sequence[float]) -> HeldoutPairs | None:
    """The ordered pairs of one list; None where all labels are equal.

    >>> pairs_of("p", [0.5, 2.0, 1.0], [1.0, 1.0, 0.0]).differences
    (-0.5, 1.0)
    """
    found = [
        better - worse
        for better, high in zip(rewards_M, labels_M, strict=True)
        for worse, low in zip(rewards_M, labels_M, strict=True)
        if high > low
    ]
    return HeldoutPairs(tuple(found), (prompt_id,) * len(found)) if found else None


def joined(parts: Sequence[HeldoutPairs]) -> HeldoutPairs:
    """The pairs of several lists as one."""
    differences = tuple(value for part in parts for value in part.differences)
    return HeldoutPairs(differences, tuple(name for part in parts for name in part.prompt_ids))


def pair_accuracy(pairs: HeldoutPairs) -> float:
    """Share of pairs whose winner has the higher reward; equal rewards count one half."""
    return float(_hits(pairs).mean())


def accuracy_interval(
    pairs: HeldoutPairs, *, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float, float]:
    """`pair_accuracy` and its percentile-bootstrap interval over prompts.

    Prompts are drawn with replacement, each with all its pairs, since the pairs of a prompt are not independent.
    """
    hits_P = _hits(pairs)
    _, prompt_P = np.unique(np.asarray(pairs.prompt_ids), return_inverse=True)
    hits, counts = np.bincount(prompt_P, hits_P), np.bincount(prompt_P)
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    for number in range(resamples):
        drawn = rng.integers(0, len(counts), len(counts))
        found[number] = hits[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(hits_P.mean()), float(low), float(high)


def brier_score(pairs: HeldoutPairs) -> float:
    """Mean of (p - what happened)^2 (Brier 1950); 0.25 for a model that knows nothing."""
    return float(((1 - _probabilities(pairs.differences)) ** 2).mean())


def reliability(pairs: HeldoutPairs, bins: int = 10) -> Reliability:
    """Mean probability against observed share in `bins` bins of equal width; empty ones are left out."""
    p, happened = _readings(pairs)
    bin_of = _bin_of(p, bins)
    counts = np.bincount(bin_of, minlength=bins)
    held = counts > 0
    predicted = np.bincount(bin_of, p, bins)[held] / counts[held]
    observed = np.bincount(bin_of, happened, bins)[held] / counts[held]
    return Reliability(tuple(predicted.tolist()), tuple(observed.tolist()), tuple(counts[held].tolist()))


def expected_calibration_error(pairs: HeldoutPairs, bins: int = 10) -> float:
    """Mean over readings of |predicted - observed| of their bin (Naeini 2015; Guo 2017, arXiv 1706.04599, Eq. 3)."""
    curve = reliability(pairs, bins)
    gaps = np.abs(np.subtract(curve.predicted, curve.observed))
    return float(np.average(gaps, weights=curve.counts))


def pair_summary(pairs: HeldoutPairs, *, resamples: int, seed: int) -> dict[str, float]:
    """All numbers of one model on its held-out pairs, by short name."""
    accuracy, low, high = accuracy_interval(pairs, resamples=resamples, seed=seed)
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "calibration_error": expected_calibration_error(pairs),
        "brier": brier_score(pairs),
        "pairs": float(len(pairs.differences)),
        "prompts": float(len(set(pairs.prompt_ids))),
    }


def _hits(pairs: HeldoutPairs) -> Floats:
    return (np.sign(pairs.differences) + 1) / 2


def _probabilities(differences_P: ArrayLike) -> Floats:
    """sigmoid, without overflow at either end."""
    return 0.5 * (1 + np.tanh(np.asarray(differences_P, dtype=np.float64) / 2))


def _readings(pairs: HeldoutPairs) -> tuple[Floats, Floats]:
    """Each pair read from both sides: probabilities, and whether it happened, [2P]."""
    p = _probabilities(pairs.differences)
    return np.concatenate([p, 1 - p]), np.concatenate([np.ones_like(p), np.zeros_like(p)])


def _bin_of(p: Floats, bins: int) -> NDArray[np.intp]:
    """The bin of each probability: (edge, next edge], as scikit-learn's calibration_curve cuts."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p)
