import doctest
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import larpo.packing
from larpo.errors import DataError
from larpo.packing import ListShape, fill_rows, join_rows, pack_list, split_list

tokens = st.lists(st.integers(0, 50_000), min_size=1, max_size=12)
lists = st.tuples(tokens, st.lists(tokens, min_size=1, max_size=10))


def unpack(row):
    (shape,) = row.lists
    prompt, *responses = row.input_ids_T.split([shape.prompt_length, *shape.response_lengths])
    return prompt.tolist(), [response.tolist() for response in responses]


def test_docstring_examples():
    assert doctest.testmod(larpo.packing).failed == 0


def test_a_row_written_out():
    row = pack_list([5, 6, 7], [[8, 9], [1], [2, 3]])
    assert row.input_ids_T.tolist() == [5, 6, 7, 8, 9, 1, 2, 3]
    assert row.position_ids_T.tolist() == [0, 1, 2, 3, 4, 3, 3, 4]
    assert row.segment_ids_T.tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    assert row.prompt_segments_T.tolist() == [0] * 8
    assert row.lists == (ListShape(3, (2, 1, 2)),)
    assert row.target_indices_N.tolist() == [3, 4, 5, 6, 7]
    assert row.target_ids_N.tolist() == [8, 9, 1, 2, 3]
    # Token 7 (index 2) predicts the first token of each response; 8 (3) predicts 9; 2 (6) predicts 3.
    assert row.predictor_indices_N.tolist() == [2, 3, 2, 2, 6]


@given(lists)
def test_a_row_unpacks_to_its_list(prompt_and_responses):
    prompt, responses = prompt_and_responses
    row = pack_list(prompt, responses)
    assert unpack(row) == (prompt, responses)
    assert row.input_ids_T.dtype == row.position_ids_T.dtype == row.segment_ids_T.dtype == torch.long
    # Each response stands in the row as in its own sequence: same positions, same predictors.
    whole = [token for response in responses for token in (prompt + response)[len(prompt) - 1 : -1]]
    assert row.input_ids_T[row.predictor_indices_N].tolist() == whole
    for segment, response in enumerate(responses, start=1):
        positions = row.position_ids_T[row.segment_ids_T == segment]
        assert positions.tolist() == list(range(len(prompt), len(prompt) + len(response)))


def test_a_joined_row_written_out():
    row = join_rows([pack_list([5, 6, 7], [[8, 9], [1]]), pack_list([4], [[3], [2, 2]])])
    assert row.input_ids_T.tolist() == [5, 6, 7, 8, 9, 1, 4, 3, 2, 2]
    assert row.position_ids_T.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 1, 2]
    assert row.segment_ids_T.tolist() == [0, 0, 0, 1, 1, 2, 3, 4, 5, 5]
    assert row.prompt_segments_T.tolist() == [0] * 6 + [3] * 4
    assert row.lists == (ListShape(3, (2, 1)), ListShape(1, (1, 2)))
    assert (row.response_lengths, row.target_ids_N.tolist()) == ((2, 1, 1, 2), [8, 9, 1, 3, 2, 2])
    assert row.predictor_indices_N.tolist() == [2, 3, 2, 6, 6, 8]


@given(st.lists(lists, min_size=1, max_size=4))
def test_a_joined_row_is_its_rows_side_by_side(items):
    rows = [pack_list(*item) for item in items]
    joined = join_rows(rows)
    for name in ("input_ids_T", "position_ids_T", "target_ids_N"):
        assert getattr(joined, name).tolist() == [x for row in rows for x in getattr(row, name).tolist()]
    predictors = joined.input_ids_T[joined.predictor_indices_N]
    assert predictors.tolist() == [x for row in rows for x in row.input_ids_T[row.predictor_indices_N].tolist()]
    counts = [len(responses) + 1 for _, responses in items]
    assert joined.segment_ids_T.unique_consecutive().tolist() == list(range(sum(counts)))
    firsts = [0, *itertools.accumulate(counts)][:-1]
    assert joined.prompt_segments_T.unique_consecutive().tolist() == firsts
    assert joined.lists == tuple(shape for row in rows for shape in row.lists)


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(0, 40))
def test_rows_are_filled_in_order_up_to_the_limit(lengths, limit):
    groups = fill_rows(lengths, limit)
    assert [index for group in groups for index in group] == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in group) for group in groups]
    assert all(total <= limit or len(group) == 1 for total, group in zip(sums, groups, strict=True))
    for total, after in zip(sums[:-1], groups[1:], strict=True):
        assert total + lengths[after[0]] > limit


def test_a_row_moves_whole():
    row = pack_list([5], [[6]]).to("meta")
    assert {tensor.device.type for tensor in vars(row).values() if torch.is_tensor(tensor)} == {"meta"}


@given(lists, st.integers(24, 60))
def test_split_rows_hold_the_list_in_order_within_the_limit(prompt_and_responses, row_limit):
    prompt, responses = prompt_and_responses
    rows = split_list(prompt, responses, row_limit)
    assert [response for row in rows for response in unpack(row)[1]] == responses
    assert all(unpack(row)[0] == prompt and len(row.input_ids_T) <= row_limit for row in rows)
    # Greedy: the first response of a row did not fit into the row before.
    for before, row in itertools.pairwise(rows):
        assert len(before.input_ids_T) + row.response_lengths[0] > row_limit


def test_a_list_that_fits_stays_one_row():
    (row,) = split_list([5, 6], [[7, 8], [9]], row_limit=5)
    assert row.response_lengths == (2, 1)


@pytest.mark.parametrize(
    ("prompt", "responses", "message"),
    [
        ([], [[1]], "prompt has 0 tokens"),
        ([1], [], "list has 0 responses"),
        ([1], [[2], [], [3], []], r"responses \[1, 3\] of 4 have 0 tokens"),
    ],
)
def test_lists_that_cannot_be_packed(prompt, responses, message):
    with pytest.raises(DataError, match=message):
        pack_list(prompt, responses)
    with pytest.raises(DataError, match=message):
        split_list(prompt, responses, row_limit=100)


def test_a_response_that_fits_no_row_is_named_with_the_limit():
    with pytest.raises(DataError, match=r"prompt \(2 tokens\) and response 1 \(4 tokens\).* limit of 5 tokens"):
        split_list([1, 2], [[3], [4, 5, 6, 7]], row_limit=5)
