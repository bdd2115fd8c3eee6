"""One candidate list as one row: the prompt once, then the responses.

Positions restart after the prompt for each response, and a response sees the prompt and itself
(larpo.attention), so a list of M responses costs one prompt instead of M. T tokens, M responses, N response
tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from larpo.errors import DataError


@dataclass(frozen=True, eq=False)
class PackedRow:
    """A prompt and its responses, in order, as one row of T tokens.

    `segment_ids_T` is 0 for the prompt and m for the tokens of response m = 1..M.
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    segment_ids_T: Tensor
    prompt_length: int
    response_lengths: tuple[int, ...]

    def to(self, device: torch.device | str) -> PackedRow:
        """The same row on that device."""
        return replace(
            self,
            input_ids_T=self.input_ids_T.to(device),
            position_ids_T=self.position_ids_T.to(device),
            segment_ids_T=self.segment_ids_T.to(device),
        )

    @property
    def target_ids_N(self) -> Tensor:
        """The tokens of all responses, in order."""
        return self.input_ids_T[self.prompt_length :]

    @property
    def predictor_indices_N(self) -> Tensor:
        """The index in the row of the token that predicts each response token.

        It is the token before; for the first token of a response, the last token of the prompt.
        """
        device = self.input_ids_T.device
        indices_N = torch.arange(self.prompt_length - 1, len(self.input_ids_T) - 1, device=device)
        first_M = torch.tensor((0, *self.response_lengths[:-1]), device=device).cumsum(0)
        return indices_N.index_fill(0, first_M, self.prompt_length - 1)


def pack_list(prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]) -> PackedRow:
    """Pack one list into one row.

    Raises:
        DataError: the prompt is empty, there is no response, or a response is empty.

    >>> row = pack_list([5, 6], [[7, 8], [9]])
    >>> row.input_ids_T.tolist(), row.position_ids_T.tolist(), row.segment_ids_T.tolist()
    ([5, 6, 7, 8, 9], [0, 1, 2, 3, 2], [0, 0, 1, 1, 2])
    """
    _check_list(prompt_ids, responses)
    prompt_length, response_lengths = len(prompt_ids), tuple(len(response) for response in responses)
    ids = [*prompt_ids, *(token for response in responses for token in response)]
    positions = list(range(prompt_length))
    segments = [0] * prompt_length
    for segment, length in enumerate(response_lengths, start=1):
        positions.extend(range(prompt_length, prompt_length + length))
        segments.extend([segment] * length)
    return PackedRow(
        input_ids_T=torch.tensor(ids, dtype=torch.long),
        position_ids_T=torch.tensor(positions, dtype=torch.long),
        segment_ids_T=torch.tensor(segments, dtype=torch.long),
        prompt_length=prompt_length,
        response_lengths=response_lengths,
    )


def split_list(prompt_ids: Sequence[int], responses: Sequence[Sequence[int]], row_limit: int) -> list[PackedRow]:
    """Pack one list into as few rows of at most `row_limit` tokens as keep the responses in order.

    Every row repeats the prompt. A row takes responses while they fit.

    Raises:
        DataError: as `pack_list`, or the prompt and one response exceed the limit.

    >>> [row.response_lengths for row in split_list([5, 6], [[7, 8], [9], [1, 2, 3]], row_limit=5)]
    [(2, 1), (3,)]
    """
    _check_list(prompt_ids, responses)
    groups: list[list[Sequence[int]]] = []
    room = 0
    for index, response in enumerate(responses):
        if len(prompt_ids) + len(response) > row_limit:
            raise DataError(
                f"prompt ({len(prompt_ids)} tokens) and response {index} ({len(response)} tokens) exceed the "
                f"row limit of {row_limit} tokens; raise the limit, or shorten prompts or responses"
            )
        if len(response) > room:
            groups.append([])
            room = row_limit - len(prompt_ids)
        groups[-1].append(response)
        room -= len(response)
    return [pack_list(prompt_ids, group) for group in groups]


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


def _check_list(prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]) -> None:
    if not len(prompt_ids):
        raise DataError("the prompt has 0 tokens; a response needs a token before it: add a BOS token")
    if not len(responses):
        raise DataError("the list has 0 responses; drop it before packing")
    empty = [index for index, response in enumerate(responses) if not len(response)]
    if empty:
        raise DataError(f"responses {empty} of {len(responses)} have 0 tokens; drop them before packing")
