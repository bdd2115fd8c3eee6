"""Which responses of a list are compared, and one score a response from the comparisons.

A comparison of i and j takes two passes of the ranker, one in each order, since rankers prefer a place: with l(i, j)
the logit that i, standing first, is better, its margin is a(i, j) = (l(i, j) - l(j, i)) / 2 = -a(j, i).

The scores are the least-squares fit of a(i, j) = r(i) - r(j) over the comparisons made, with mean 0 (HodgeRank: Jiang,
Lim, Yao and Ye 2011; the Bradley-Terry model where the logits themselves are seen, instead of wins). When all pairs are
compared this is r(i) = 1/k * sum over j of a(i, j), which orders responses as PairRM's own MaxLogits does (Jiang, Ren
and Lin 2023). When not all are, a mean over opponents would pay for weak opponents; the fit does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Pair = tuple[int, int]


def design(count: int, bound: int | None) -> list[Pair]:
    """The pairs (i, j), i < j, of `count` responses to compare: all, or such that each meets at most `bound` others.

    The bounded design (`bound` at least 2) is a circulant graph: i meets i +- each of `bound // 2` steps, spread from 1
    to half the list, and the response opposite to it where `bound` is odd and `count` even. So each response meets as
    many others as the next, the comparisons hang together, and the same list is always compared in the same way.
    """
    if bound is None or bound >= count - 1:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    half, furthest = bound // 2, (count - 1) // 2
    steps = {1 + round(n * (furthest - 1) / max(1, half - 1)) for n in range(half)}
    if bound % 2 and count % 2 == 0:
        steps.add(count // 2)
    found = {(min(i, j), max(i, j)) for i in range(count) for j in ((i + step) % count for step in steps)}
    return sorted(found)


def passes(count: int, bound: int | None) -> int:
    """Passes of the ranker that a list of `count` responses costs: k (k - 1) for all pairs, else at most k * bound."""
    return 2 * len(design(count, bound))


def fit(count: int, pairs: Sequence[Pair], margins: Sequence[float]) -> list[float]:
    """The scores of `count` responses from the margins a(i, j) of connected pairs; their mean is 0."""
    laplacian_kk, sums_k = np.zeros((count, count)), np.zeros(count)
    for (i, j), margin in zip(pairs, margins, strict=True):
        laplacian_kk[[i, j], [i, j]] += 1.0
        laplacian_kk[[i, j], [j, i]] -= 1.0
        sums_k[i] += margin
        sums_k[j] -= margin
    # The mean is fixed by adding the all-ones matrix, whose image is what the graph's Laplacian sends to 0.
    return np.linalg.solve(laplacian_kk + 1.0, sums_k).tolist() if count else []
