"""Metric and event names: declared once, refused with the nearest otherwise."""

import doctest
import re

import pytest

import larpo.events
from larpo.errors import LarpoError
from larpo.events import EVENTS, FAILURE_KINDS, check_event, failure_kind
from larpo.metrics import LABELS, METRICS, check_labels, check_names

FINAL = ("reward_before", "reward_after", "reward_diff", "reward_diff_low", "reward_diff_high")


def test_every_name_is_group_slash_noun_with_unit_and_description() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert re.fullmatch(r"[a-z]+/[a-z0-9_]+", name)
        assert metric.unit
        assert metric.description
        assert metric.kind in ("gauge", "counter")
        assert set(metric.labels) <= set(LABELS)


def test_the_names_of_the_final_record_are_declared() -> None:
    check_names(f"heldout/{noun}" for noun in FINAL)


def test_an_undeclared_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(LarpoError, match=r"'train/los' is not declared \(nearest: 'train/loss'\)"):
        check_names({"train/grad_norm": 1.0, "train/los": 2.0})


def test_no_two_metrics_meet_in_the_ray_dashboard() -> None:
    assert len({name.replace("/", "_") for name in METRICS}) == len(METRICS)


def test_events_name_their_fields() -> None:
    check_event("step", {"step": 1, "iteration": 0, "epoch": 0})
    check_event("span", {"actor": "sampler-0", "kind": "sample", "start": 0.0, "end": 1.0})
    with pytest.raises(LarpoError, match="event 'stop' is not one of start, prompts, step"):
        check_event("stop", {})
    with pytest.raises(LarpoError, match="lacks the field 'epoch'"):
        check_event("step", {"step": 1, "iteration": 0})
    with pytest.raises(LarpoError, match="span kind 'dream'"):
        check_event("span", {"actor": "a", "kind": "dream", "start": 0.0, "end": 1.0})
    assert not any("/" in field for fields in EVENTS.values() for field in fields)


def test_a_metric_by_sampler_is_refused_where_the_sampler_is_not_named() -> None:
    check_labels(["sampler/tokens", "train/loss"], {"sampler": "sampler-0"})
    with pytest.raises(LarpoError, match="'sampler/tokens' is told by sampler: its record lacks the field 'sampler'"):
        check_labels(["train/loss", "sampler/tokens"], {"iteration": 0})


def test_failures_are_of_a_few_kinds() -> None:
    check_event("failure", {"actor": "sampler-0", "kind": "lease", "reason": "late"})
    with pytest.raises(LarpoError, match="failure kind 'gremlins' is not one of sampler, reward"):
        check_event("failure", {"actor": "sampler-0", "kind": "gremlins", "reason": "late"})
    assert {failure_kind(actor) for actor in ("sampler-0", "reward-1", "trainer", "shutdown")} <= set(FAILURE_KINDS)


def test_every_kind_of_failure_has_a_failure_that_is_of_it() -> None:
    assert doctest.testmod(larpo.events).failed == 0
    told = {
        "sampler": ("sampler-0", "its process ended (SYSTEM_ERROR): connection error\n    node has died"),
        "reward": ("reward-0", "no answer in 30 s (timeouts.reward_s a list)"),
        "trainer": ("trainer-1", "its process ended (INTENDED_SYSTEM_EXIT)"),
        "stream": ("stream", "it died, and Ray does not say why"),
        "store": ("store", "its process ended (SYSTEM_ERROR)"),
        "node": ("sampler-7", "The actor died because its node has died."),
        "lease": ("sampler-7", "no answer within the lease of 300 s (samplers.lease_s)"),
        "weights": ("sampler-7", "no weight update within 300 s (timeouts.weights_s)"),
        "other": ("shutdown", "TimeoutError"),
    }
    assert list(told) == list(FAILURE_KINDS)
    assert {kind: failure_kind(*failure) for kind, failure in told.items()} == {kind: kind for kind in told}
