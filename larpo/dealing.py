"""Lists to the ranks of a step: equal counts, near costs."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from larpo.errors import DataError


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Deal items to ranks so that their counts differ by at most one and their costs are near.

    Longest processing time first: from the dearest to the cheapest, each item goes to the least loaded rank
    that may still take one. With n = ceil(items / ranks), every rank gets n or n - 1 items; a rank with n -
    1 makes one empty pass, so that all make n backward passes. Ties go to the lower index: equal inputs,
    equal deals.

    Returns:
        for each rank, the indices of its items, ascending.
    Raises:
        DataError: fewer than one rank.

    >>> deal([9, 1, 5, 3, 3], ranks=2)
    [[0, 1], [2, 3, 4]]
    """
    if ranks < 1:
        raise DataError(f"cannot deal {len(costs)} items to {ranks} ranks; pass at least 1 rank")
    at_least, longer_hands = divmod(len(costs), ranks)
    hands: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0.0, rank) for rank in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(heap)
        while len(hands[rank]) == at_least and longer_hands == 0:
            load, rank = heapq.heappop(heap)
        hands[rank].append(index)
        if len(hands[rank]) > at_least:
            longer_hands -= 1
        else:
            heapq.heappush(heap, (load + costs[index], rank))
    return [sorted(hand) for hand in hands]
