"""The numbers of a part of lists, counted by hand."""

import pytest

from larpo.config import Config, Objective
from larpo.list_metrics import list_metrics

CONFIG = Config.model_validate({"lists": {"selection": {"policy": "all"}, "near_duplicate": 1.0}})


def test_numbers_of_a_part(make_list):
    first = make_list(0, (4, 2, 6), rewards=[1.0, 0.0, 0.0])
    copy = first.candidates[1].replace(id="copy", origin="remembered")
    cut = first.candidates[2].replace(finish_reason="length")
    first = first.replace(candidates=(*first.candidates[:2], cut, copy))
    equal = make_list(1, (3, 3), rewards=[0.5, 0.5])
    single = make_list(2, (5,))
    metrics = list_metrics([first, equal, single], CONFIG)
    expected = {
        "lists/reward_mean": (1 + 0 + 0 + 0.5 + 0.5 + 1) / 6,
        "lists/reward_best": (1 + 0.5 + 1) / 3,
        "lists/reward_spread": ((2 / 9) ** 0.5 + 0 + 0) / 3,
        "lists/fully_met": 2 / 3,
        "lists/response_tokens": (4 + 2 + 6 + 3 + 3 + 5) / 6,
        "lists/cut_off_share": 1 / 6,
        "lists/dropped_equal_rewards": 1,
        "lists/dropped_too_few": 1,
        "lists/duplicates": 1,
        "lists/replayed": 0,
        "lists/size": 3,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["lists/reward_gap"] > 0


def test_a_part_of_replayed_lists_has_no_fresh_numbers(make_list):
    item = make_list(0, (4, 2))
    replayed = item.replace(candidates=tuple(c.replace(origin="remembered") for c in item.candidates))
    metrics = list_metrics([replayed], CONFIG)
    assert metrics["lists/replayed"] == 1
    assert metrics["lists/remembered_share"] == 1
    assert "lists/reward_mean" not in metrics


def test_a_part_without_signal_has_no_hardness(make_list):
    metrics = list_metrics([make_list(0, (3, 3), rewards=[0.0, 0.0])], CONFIG)
    assert metrics["lists/dropped_equal_rewards"] == 1
    assert "lists/reward_gap" not in metrics


def test_lists_of_a_dataset_are_not_replayed(make_list):
    item = make_list(0, (4, 2))
    given = item.replace(candidates=tuple(c.replace(origin="given") for c in item.candidates))
    metrics = list_metrics([given], CONFIG)
    assert metrics["lists/replayed"] == 0
    assert metrics["lists/reward_gap"] == 1.0
    tuned = CONFIG.model_copy(update={"objective": Objective(name="sft")})
    assert list_metrics([given.replace(candidates=given.candidates[:1])], tuned)["lists/size"] == 1
