"""Held-out numbers: the table's arithmetic, and the interval against scipy's."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from larpo.errors import DataError
from larpo.evaluation import (
    HeldoutResult,
    done_record,
    format_table,
    heldout_table,
    paired_bootstrap,
    prompt_rewards,
    summary,
)
from larpo.metrics import check_names

BASE = HeldoutResult(
    label="base policy",
    prompt_ids=("a", "b", "c", "d"),
    rewards_PN=((0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (0.0, 0.5)),
    greedy_rewards_P=(0.0, 0.0, 1.0, 0.5),
    response_tokens_PN=((10, 20), (30, 40), (10, 10), (20, 20)),
    cut_off_share=0.25,
)
ALIGNED = dataclasses.replace(
    BASE,
    label="aligned policy",
    rewards_PN=((1.0, 1.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)),
    greedy_rewards_P=(1.0, 0.0, 1.0, 1.0),
)


def test_summary_is_the_mean_over_prompts_of_the_mean_of_samples() -> None:
    numbers = summary(BASE)
    check_names(numbers)
    means = np.array([0.5, 0.0, 1.0, 0.25])
    assert numbers["heldout/reward"] == (0.5 + 0.0 + 1.0 + 0.25) / 4
    assert numbers["heldout/reward_stderr"] == pytest.approx(scipy.stats.sem(means))
    assert numbers["heldout/greedy"] == 1.5 / 4
    assert numbers["heldout/fully_met"] == 1 / 4
    assert numbers["heldout/fully_met_any"] == 2 / 4
    assert numbers["heldout/fully_met_samples"] == 3 / 8
    assert numbers["heldout/response_tokens"] == 160 / 8
    assert numbers["heldout/cut_off_share"] == 0.25


def test_one_prompt_has_no_spread() -> None:
    one = HeldoutResult("x", ("a",), ((1.0,),), (1.0,), ((3,),), 0.0)
    assert summary(one)["heldout/reward_stderr"] == 0.0
    assert paired_bootstrap([0.0], [1.0], resamples=10, seed=0) == (1.0, 1.0, 1.0)


def test_json_round_trip() -> None:
    text = BASE.to_json()
    assert HeldoutResult.from_json(text) == BASE
    assert json.loads(text)["label"] == "base policy"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_ids": ("a", "b", "c")}, "rewards_PN has 4 rows for 3 prompts"),
        ({"prompt_ids": ("a", "b", "c", "a")}, "names a prompt twice"),
        ({"rewards_PN": ((1.0,), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0))}, r"\[1, 2\] samples"),
        ({"greedy_rewards_P": (0.0, float("nan"), 1.0, 1.0)}, "not finite"),
        ({"prompt_ids": (), "rewards_PN": ()}, "no prompts"),
    ],
)
def test_a_result_that_does_not_add_up_is_refused(changes: dict[str, tuple[object, ...]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        dataclasses.replace(BASE, **changes)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_interval_agrees_with_scipys_percentile_bootstrap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before_P = rng.binomial(4, 0.2, 150) / 4
    after_P = np.clip(before_P + rng.normal(0.15, 0.3, 150), 0, 1)
    diff, low, high = paired_bootstrap(before_P, after_P, resamples=20_000, seed=seed)
    theirs = scipy.stats.bootstrap(
        (before_P, after_P),
        lambda before, after, axis: (after - before).mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(100 + seed),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert diff == pytest.approx((after_P - before_P).mean())
    assert low == pytest.approx(theirs.low, abs=0.03 * width)
    assert high == pytest.approx(theirs.high, abs=0.03 * width)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        before_P, after_P = rng.normal(0.0, 1.0, 80), rng.normal(0.3, 1.0, 80)
        _, low, high = paired_bootstrap(before_P, after_P, resamples=1000, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_pairing_narrows_the_interval_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    before_P = rng.normal(0, 1, 100)
    after_P = before_P + rng.normal(0.2, 0.1, 100)
    paired = paired_bootstrap(before_P, after_P, resamples=2000, seed=0)
    mixed = paired_bootstrap(before_P, rng.permutation(after_P), resamples=2000, seed=0)
    assert (paired[2] - paired[1]) * 5 < mixed[2] - mixed[1]
    monkeypatch.setattr("larpo.evaluation._BLOCK", 1000)
    assert paired_bootstrap(before_P, after_P, resamples=2000, seed=0) == pytest.approx(paired)


@pytest.mark.parametrize(
    ("before", "after", "knobs", "said"),
    [
        ([0.0], [0.0, 1.0], {}, r"\(1,\), \(2,\)"),
        ([], [], {}, "non-empty"),
        ([0.0], [1.0], {"resamples": 0}, "resamples 0"),
        ([0.0], [1.0], {"level": 1.0}, "level 1.0"),
    ],
)
def test_bad_input_of_the_bootstrap(before: list[float], after: list[float], knobs: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        paired_bootstrap(before, after, **{"resamples": 10, "seed": 0, **knobs})


def test_different_prompts_are_refused_by_name() -> None:
    other = dataclasses.replace(ALIGNED, prompt_ids=("a", "b", "x", "d"))
    with pytest.raises(DataError, match="prompt 2 is 'c' for 'base policy' and 'x' for 'aligned policy'"):
        heldout_table(BASE, other, resamples=10, seed=0)
    with pytest.raises(DataError, match="same held-out prompts"):
        done_record(BASE, other, resamples=10, seed=0)


def test_the_done_record_and_the_table_say_the_same() -> None:
    record = done_record(BASE, ALIGNED, resamples=500, seed=3)
    check_names(record)
    base, aligned = heldout_table(BASE, ALIGNED, resamples=500, seed=3)
    assert (base.diff, base.reward) == (None, record["heldout/reward_before"])
    assert (aligned.diff, aligned.diff_low, aligned.diff_high) == (
        record["heldout/reward_diff"],
        record["heldout/reward_diff_low"],
        record["heldout/reward_diff_high"],
    )
    assert record["heldout/reward_after"] == (1.0 + 0.5 + 1.0 + 0.5) / 4
    assert aligned.diff == pytest.approx((prompt_rewards(ALIGNED) - prompt_rewards(BASE)).mean())


def test_the_printed_table_fits_80_columns() -> None:
    text = format_table(heldout_table(BASE, ALIGNED, resamples=200, seed=0))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Held-out: 4 prompts, 2 samples each")
    assert lines[-2].split() == ["base", "policy", "0.438", "25.0%", "20.0", "tokens"]
    assert lines[-1].split()[:4] == ["aligned", "policy", "0.750", "+0.312"]
