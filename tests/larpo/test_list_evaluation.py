"""Held-out numbers of lists, from values small enough to compute by hand."""

import doctest

import pytest

import larpo.list_evaluation
from larpo.errors import DataError
from larpo.evaluation import paired_bootstrap
from larpo.list_evaluation import (
    ListResult,
    format_list_table,
    list_done_record,
    list_summary,
    pair_accuracy,
    weighted_bootstrap,
)
from larpo.metrics import check_names


def result(losses, accuracies=(), weights=None, label="base policy", ids=None) -> ListResult:
    count = len(losses)
    return ListResult(
        label=label,
        list_ids=tuple(ids or (f"0000/p{n}" for n in range(count))),
        losses_P=tuple(losses),
        weights_P=tuple(weights or (1.0,) * count),
        score_accuracy_P=tuple(accuracies),
        log_prob_accuracy_P=tuple(1 - value for value in accuracies),
    )


def test_docstring_examples():
    assert doctest.testmod(larpo.list_evaluation).failed == 0


def test_pairs_of_equal_rewards_do_not_count_and_ties_count_half():
    assert pair_accuracy([1.0, 2.0], [1.0, 0.0]) == 0.0
    assert pair_accuracy([0.0, 0.0, 0.0], [2.0, 1.0, 1.0]) == 0.5
    assert pair_accuracy([3.0, 1.0, 2.0], [2.0, 1.0, 1.0]) == 1.0
    assert pair_accuracy([3.0], [1.0]) is None


def test_a_loss_of_tokens_is_weighted_by_them():
    summary = list_summary(result([1.0, 4.0], weights=[3.0, 1.0]))
    assert summary == {"given/loss": (3 * 1 + 1 * 4) / 4, "given/lists": 2.0}
    check_names(summary)


def test_equal_weights_give_the_paired_bootstrap():
    before, after = [0.0, 1.0, 3.0, 2.0, 5.0], [1.0, 1.5, 2.0, 4.0, 5.5]
    ours = weighted_bootstrap(before, after, [2.0] * 5, resamples=500, seed=3)
    assert ours == pytest.approx(paired_bootstrap(before, after, resamples=500, seed=3))


def test_the_interval_of_a_weighted_mean_divides_by_what_was_drawn():
    """One heavy list and one light: a resample holds 0, 1 or 2 of the heavy one."""
    mean, low, high = weighted_bootstrap([0.0, 0.0], [1.0, 5.0], [3.0, 1.0], resamples=2000, seed=0)
    assert (mean, low, high) == ((3 * 1 + 1 * 5) / 4, 1.0, 5.0)


def test_the_last_record_and_its_table():
    before, after = result([2.0, 4.0], [0.5, 0.5]), result([1.0, 2.0], [1.0, 0.5], label="trained policy")
    record = list_done_record(before, after, resamples=200, seed=0)
    check_names(record)
    assert (record["given/loss_before"], record["given/loss_after"], record["given/loss_diff"]) == (3.0, 1.5, -1.5)
    assert (record["given/loss_diff_low"], record["given/loss_diff_high"]) == (-2.0, -1.0)
    assert record["given/score_accuracy_diff"] == 0.25
    table = format_list_table(record)
    assert "2 lists" in table
    assert "-1.5000 [-2.0000, -1.0000]" in table
    assert "accuracy by log-probability" in table
    with pytest.raises(DataError, match="different lists"):
        list_done_record(before, result([1.0, 2.0], ids=("a", "b")), resamples=10, seed=0)


def test_it_survives_the_disk():
    one = result([1.0, 2.0], weights=[3.0, 4.0])
    assert ListResult.from_json(one.to_json()) == one
    assert one.measures == ("loss",)
