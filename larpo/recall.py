"""Recall@N, Best-of-N and majority voting, from n sampled responses a prompt.

A policy that samples is a retriever, and a reward model a reranker (Jin 2025, section 2): pass@N of the one is
Recall@N, and Best-of-N is retrieval followed by reranking. Everything here is an exact mean over all ways to take N of
the n samples, or, for votes, over disjoint groups of N. Shapes: P prompts, n samples a prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from larpo.errors import DataError

Floats = NDArray[np.float64]


def recall(correct_PN: ArrayLike, cutoff: int) -> Floats:
    """Recall@N = pass@N of each prompt, [P]: the chance that N of its n samples hold a correct one.

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, Eq. 1), `1 - C(n - c, N) / C(n, N)` for c correct
    samples of n, as the product `1 - prod_{i = n-c+1..n} (1 - N / i)`, which does not overflow.

    Args:
        correct_PN: whether each sample is correct, [P, n].
        cutoff: N, 1 to n; DataError for another.

    >>> recall([[True, False, False], [False, False, False]], 2).round(4).tolist()
    [0.6667, 0.0]
    """
    correct = np.asarray(correct_PN, dtype=bool)
    _check(correct, cutoff)
    n = correct.shape[1]
    counts, place = np.unique(correct.sum(axis=1), return_inverse=True)
    return np.array([_chance(n, int(c), cutoff) for c in counts])[place]


def _chance(n: int, c: int, cutoff: int) -> float:
    if n - c < cutoff:
        return 1.0
    return float(1.0 - np.prod(1.0 - cutoff / np.arange(n - c + 1, n + 1)))


def best_of(rank_by_PN: ArrayLike, value_PN: ArrayLike, cutoff: int) -> Floats:
    """What the best of N samples is worth, [P]: the mean value of the pick over all subsets of N of the n samples.

    The pick is the sample with the highest `rank_by`; of equal ones, each with the same chance. In ascending order the
    i-th of n samples is the best of a subset with the chance `C(i - 1, N - 1) / C(n, N)`, the order statistic of
    sampling without replacement. With `value_PN = rank_by_PN` this is the expected best reward of N, with correctness
    it is the share of correct picks.

    >>> best_of([[0.0, 1.0, 2.0]], [[0.0, 1.0, 2.0]], 2).round(4).tolist()
    [1.6667]
    """
    ranks, values = np.asarray(rank_by_PN, dtype=np.float64), np.asarray(value_PN, dtype=np.float64)
    _check(ranks, cutoff)
    if ranks.shape != values.shape:
        raise DataError(f"Best-of-N needs one value a sample, got {values.shape} values for {ranks.shape} samples")
    weights = _pick_chances(ranks.shape[1], cutoff)
    return np.array([_picked(*pair, weights) for pair in zip(ranks, values, strict=True)])


def _pick_chances(n: int, cutoff: int) -> Floats:
    """Chance of each sample in ascending order to be the best of N: `N / n` for the last, then by ratios downwards."""
    chances = np.zeros(n)
    chances[n - 1] = cutoff / n
    for i in range(n - 1, cutoff - 1, -1):
        chances[i - 1] = chances[i] * (i + 1 - cutoff) / i
    return chances


def _picked(ranks_N: Floats, values_N: Floats, chances_N: Floats) -> float:
    """Samples of equal rank share their chances."""
    order = np.argsort(ranks_N, kind="stable")
    _, group = np.unique(ranks_N[order], return_inverse=True)
    chance_G, value_G = np.bincount(group, chances_N), np.bincount(group, values_N[order]) / np.bincount(group)
    return float(chance_G @ value_G)


def majority(answers_PN: Sequence[Sequence[Hashable | None]], correct_PN: ArrayLike, cutoff: int) -> Floats:
    """How often a vote of N samples over final answers is right, [P] (self-consistency, arXiv 2203.11171).

    The mean over the n // N disjoint groups of N samples, in the order sampled. The answer with the most votes of a
    group wins; those with equally many share the win evenly, as a fair draw among them would. A sample without an
    answer (None) does not vote; a group in which none votes is wrong. An answer is as right as the share of its
    voters that are correct.

    >>> majority([["4", "4", "5", None]], [[True, True, False, False]], 2).tolist()
    [0.5]
    """
    correct = np.asarray(correct_PN, dtype=bool)
    _check(correct, cutoff)
    starts = range(0, correct.shape[1] - cutoff + 1, cutoff)
    return np.array(
        [
            np.mean([_vote(answers[s : s + cutoff], right[s : s + cutoff]) for s in starts])
            for answers, right in zip(answers_PN, correct, strict=True)
        ]
    )


def _vote(answers: Sequence[Hashable | None], right: NDArray[np.bool_]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return float(np.mean([np.mean(right[[answer == winner for answer in answers]]) for winner in winners]))


def _check(samples_PN: NDArray, cutoff: int) -> None:
    if samples_PN.ndim != 2 or not samples_PN.size:
        raise DataError(f"samples are a [prompts, n] table with at least one of each, not of shape {samples_PN.shape}")
    if not 1 <= cutoff <= samples_PN.shape[1]:
        raise DataError(f"N = {cutoff} of {samples_PN.shape[1]} samples: choose 1 to n, or sample more")
