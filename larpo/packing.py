"""Candidate lists as rows: of each list the prompt once, then the responses; short lists may share a row.

Positions restart after the prompt for each response, and a response sees its prompt and itself (larpo.attention), so a
list of M responses costs one prompt instead of M. T tokens, M responses, N response tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from larpo.errors import DataError


class ListShape(NamedTuple):
    """How many tokens the parts of one list have."""

    prompt_length: int
    response_lengths: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PackedRow:
    """One list or several as one row of T tokens, each its prompt and then its responses, in order.

    A segment is a prompt or a response; they are counted from 0 in the order in which they stand.
    """

    lists: tuple[ListShape, ...]
    input_ids_T: Tensor
    position_ids_T: Tensor
    segment_ids_T: Tensor
    prompt_segments_T: Tensor  # the segment of the prompt that a token comes after, or is of
    target_indices_N: Tensor  # where the response tokens stand
    predictor_indices_N: Tensor  # the token before each; before the first of a response, the last of its prompt

    def to(self, device: torch.device | str) -> PackedRow:
        """The same row on that device."""
        return PackedRow(self.lists, *(tensor.to(device) for tensor in _tensors(self)))

    @property
    def response_lengths(self) -> tuple[int, ...]:
        """Of all lists, in order."""
        return tuple(length for shape in self.lists for length in shape.response_lengths)

    @property
    def target_ids_N(self) -> Tensor:
        """The tokens of all responses, in order."""
        return self.input_ids_T.index_select(0, self.target_indices_N)


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
    positions, segments, predictors = list(range(prompt_length)), [0] * prompt_length, []
    for segment, length in enumerate(response_lengths, start=1):
        predictors += [prompt_length - 1, *range(len(positions), len(positions) + length - 1)]
        positions += range(prompt_length, prompt_length + length)
        segments += [segment] * length
    return PackedRow(
        lists=(ListShape(prompt_length, response_lengths),),
        input_ids_T=_whole_numbers([*prompt_ids, *(token for response in responses for token in response)]),
        position_ids_T=_whole_numbers(positions),
        segment_ids_T=_whole_numbers(segments),
        prompt_segments_T=torch.zeros(len(positions), dtype=torch.long),
        target_indices_N=torch.arange(prompt_length, len(positions)),
        predictor_indices_N=_whole_numbers(predictors),
    )


def join_rows(rows: Sequence[PackedRow]) -> PackedRow:
    """One row of the lists of all; they see nothing of one another.

    >>> row = join_rows([pack_list([5, 6], [[7]]), pack_list([1], [[2, 3]])])
    >>> row.input_ids_T.tolist(), row.segment_ids_T.tolist(), row.predictor_indices_N.tolist()
    ([5, 6, 7, 1, 2, 3], [0, 0, 1, 2, 3, 3], [1, 3, 4])
    """
    if len(rows) == 1:
        return rows[0]
    tokens = segments = 0
    parts = []
    for row in rows:
        shifts = (0, 0, segments, segments, tokens, tokens)
        parts.append([tensor + shift for tensor, shift in zip(_tensors(row), shifts, strict=True)])
        tokens += len(row.input_ids_T)
        segments += len(row.lists) + len(row.response_lengths)
    lists = tuple(shape for row in rows for shape in row.lists)
    return PackedRow(lists, *(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def pad_row(row: PackedRow, least: int) -> PackedRow:
    """The row with as many tokens at least: those that come after its lists are a segment that nothing else sees.

    >>> row = pad_row(pack_list([5, 6], [[7]]), 5)
    >>> row.input_ids_T.tolist(), row.segment_ids_T.tolist(), row.prompt_segments_T.tolist()
    ([5, 6, 7, 5, 5], [0, 0, 1, 2, 2], [0, 0, 0, 2, 2])
    """
    missing = least - len(row.input_ids_T)
    if missing <= 0:
        return row
    own_1 = row.segment_ids_T[-1:] + 1

    def longer(values_T: Tensor, tail: Tensor) -> Tensor:
        return torch.cat([values_T, tail.expand(missing)])

    return replace(
        row,
        input_ids_T=longer(row.input_ids_T, row.input_ids_T[:1]),
        position_ids_T=longer(row.position_ids_T, torch.arange(missing, device=own_1.device)),
        segment_ids_T=longer(row.segment_ids_T, own_1),
        prompt_segments_T=longer(row.prompt_segments_T, own_1),
    )


def fill_rows(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Group what has these lengths, in order, so that a group has at most `limit` tokens, or is one that exceeds it.

    >>> fill_rows([3, 4, 9, 2, 2], limit=7)
    [[0, 1], [2], [3, 4]]
    """
    groups: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if not groups or length > room:
            groups.append([])
            room = limit
        groups[-1].append(index)
        room -= length
    return groups


def _tensors(row: PackedRow) -> list[Tensor]:
    """In the order of the fields."""
    return [getattr(row, field.name) for field in fields(row)[1:]]


def _whole_numbers(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long)


def split_list(prompt_ids: Sequence[int], responses: Sequence[Sequence[int]], row_limit: int) -> list[PackedRow]:
    """Pack one list into as few rows of at most `row_limit` tokens as keep the responses in order.

    Every row repeats the prompt. A row takes responses while they fit.

    Raises:
        DataError: as `pack_list`, or the prompt and one response exceed the limit.

    >>> [row.response_lengths for row in split_list([5, 6], [[7, 8], [9], [1, 2, 3]], row_limit=5)]
    [(2, 1), (3,)]
    """
    _check_list(prompt_ids, responses)
    for index, response in enumerate(responses):
        if len(prompt_ids) + len(response) > row_limit:
            raise DataError(
                f"prompt ({len(prompt_ids)} tokens) and response {index} ({len(response)} tokens) exceed the "
                f"row limit of {row_limit} tokens; raise the limit, or shorten prompts or responses"
            )
    groups = fill_rows([len(response) for response in responses], row_limit - len(prompt_ids))
    return [pack_list(prompt_ids, [responses[index] for index in group]) for group in groups]


def _check_list(prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]) -> None:
    if not len(prompt_ids):
        raise DataError("the prompt has 0 tokens; a response needs a token before it: add a BOS token")
    if not len(responses):
        raise DataError("the list has 0 responses; drop it before packing")
    empty = [index for index, response in enumerate(responses) if not len(response)]
    if empty:
        raise DataError(f"responses {empty} of {len(responses)} have 0 tokens; drop them before packing")
