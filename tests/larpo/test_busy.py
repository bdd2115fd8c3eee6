"""Busy shares and overlap of spans, counted by hand."""

import doctest

import pytest

import larpo.busy
from larpo.busy import Span, busy_metrics, busy_shares, overlap_metrics, within


def test_examples_hold() -> None:
    assert doctest.testmod(larpo.busy).failed == 0


def test_busy_shares_count_work_once_and_waiting_never() -> None:
    spans = [
        Span("sampler-0", "sample", 0, 4),
        Span("sampler-0", "sample", 2, 6),  # two prompts at a time
        Span("sampler-1", "sample", 0, 2),
        Span("trainer", "wait", 0, 6),
        Span("trainer", "train", 6, 10),
        Span("trainer", "train", 1000, 1010),  # after a resume
    ]
    assert busy_shares(spans) == {"sampler-0": 6 / 20, "sampler-1": 2 / 20, "trainer": 14 / 20}
    assert busy_metrics(spans) == {"busy/sampler": (0.3 + 0.1) / 2, "busy/trainer": 0.7}
    assert busy_shares([]) == {}


SPANS = (
    Span("sampler-0", "start", 0, 10),
    Span("sampler-0", "sample", 10, 40),
    Span("sampler-1", "sample", 20, 50),
    Span("reward-0", "rank", 48, 55),
    Span("trainer-0", "wait", 10, 45),
    Span("trainer-0", "train", 45, 100),
    Span("trainer-1", "train", 45, 90),
)


def test_shares_of_a_time_that_is_given() -> None:
    assert busy_shares(within(SPANS, 40, 100), 60) == {
        "sampler-1": 10 / 60, "reward-0": 7 / 60, "trainer-0": 55 / 60, "trainer-1": 45 / 60,
    }  # fmt: skip
    assert busy_metrics(within(SPANS, 40, 100), 60)["busy/trainer"] == pytest.approx((55 + 45) / 2 / 60)


def test_overlap_is_the_time_of_both_sides_and_efficiency_the_share_of_the_busier_one() -> None:
    making, training, both = 45, 55, 10  # 10 to 55, 45 to 100
    assert overlap_metrics(SPANS, 100) == {
        "busy/overlap": both / 100,
        "busy/overlap_efficiency": max(making, training) / 100,
    }


def test_taking_turns_has_half_the_efficiency_of_working_at_once() -> None:
    turns = [Span("sampler-0", "sample", 0, 50), Span("trainer-0", "train", 50, 100)]
    assert overlap_metrics(turns, 100) == {"busy/overlap": 0.0, "busy/overlap_efficiency": 0.5}
    at_once = [Span("sampler-0", "sample", 0, 50), Span("trainer-0", "train", 0, 50)]
    assert overlap_metrics(at_once, 50) == {"busy/overlap": 1.0, "busy/overlap_efficiency": 1.0}


def test_where_one_side_has_not_worked_there_is_no_overlap_to_tell() -> None:
    assert overlap_metrics(SPANS[:3], 100) == {}
    assert overlap_metrics([], 0.0) == {}
