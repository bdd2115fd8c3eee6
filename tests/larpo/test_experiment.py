"""Results of arms: what is kept, and what the table says."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from larpo.errors import DataError
from larpo.experiment import (
    TABLE_HEADER,
    ArmResult,
    Interval,
    against,
    arm_plot,
    by_arm,
    markdown_table,
    t_interval,
    table,
    what_was_spent,
)
from larpo.metrics import METRICS
from larpo.run_log import make_run_log


def result(arm: str, seed: int, before: float, after: float, **hardness: float) -> ArmResult:
    done = {
        "heldout/reward_before": before,
        "heldout/reward_after": after,
        "heldout/fully_met_samples_after": after / 2,
    }
    return ArmResult(arm, seed, done, {"base policy": (before,)}, hardness, {"objective.name": arm}, {"seconds": 1})


PAIRS = [result("pairwise", 0, 0.2, 0.3), result("pairwise", 1, 0.2, 0.4), result("pairwise", 2, 0.2, 0.35)]
LISTS = [result("listmle", 0, 0.2, 0.4), result("listmle", 1, 0.2, 0.48)]


def test_an_interval_over_seeds_is_students():
    values = [0.1, 0.25, 0.18]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    found = t_interval(values)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_one_seed_has_no_interval():
    assert t_interval([0.25]) == Interval(0.25, None, None)


def test_a_difference_is_paired_by_seed():
    arms = by_arm([*PAIRS, *LISTS], ("pairwise", "listmle"))
    found = against(arms["listmle"], arms["pairwise"])
    expected = t_interval([0.4 - 0.3, 0.48 - 0.4])  # seed 2 has no partner
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert against(arms["listmle"], {7: PAIRS[0]}) is None


def test_the_table_has_a_row_an_arm_in_the_order_of_the_grid():
    hard = result("hard", 0, 0.2, 0.3, **{"lists/reward_gap": 0.75, "lists/overlap": 0.5})
    rows = table([*LISTS, *PAIRS, hard], ("pairwise", "missing", "listmle", "hard"))
    assert [row[0] for row in rows] == ["pairwise", "listmle", "hard"]
    assert rows[0][1:4] == ("0, 1, 2", "0.200", "0.350")
    assert rows[0][5] == ""  # the first arm is what the others are compared with
    assert rows[1][5].startswith("+0.090 [")
    assert rows[2][4:] == ("+0.100", "+0.000", "15.0%", "0.750", "0.500", "-", "-", "-")


def test_arms_of_several_axes_are_compared_with_their_own_kind():
    """The other axis is the policy: no line is the base of both, and rewards that are no verifier's are not right."""
    names = ("pairwise.a", "pairwise.b", "listmle.a", "listmle.b")
    first = {name: f"pairwise.{name[-1]}" for name in names}
    runs = []
    for name, after in zip(names, (0.3, 2.0, 0.4, 2.5), strict=True):
        run = result(name, 0, 0.2, after)
        kind = "verifier" if name.endswith("a") else "sequence_classification"
        runs.append(dataclasses.replace(run, knobs={"policy.model": name[-1], "reward.kind": kind}))
    rows = table(runs, names, first)
    assert [row[5] for row in rows] == ["", "", "+0.100", "+0.500"]
    assert [row[6] for row in rows] == ["15.0%", "-", "20.0%", "-"]
    assert "base policy" not in arm_plot(runs, names, "two policies")
    assert "base policy" in arm_plot([runs[0], runs[2]], names, "one policy")


def test_arms_without_held_out_rewards_have_a_row_and_no_plot():
    """Those of a pairwise ranker, whose rewards have mean 0 in every list."""
    unjudged = ArmResult("pairrm", 0, {"run/seconds": 9.0}, {}, {"lists/reward_gap": 0.5}, {}, {})
    judged = result("rm", 0, 0.1, 0.3)
    rows = table([unjudged, judged], ["pairrm", "rm"])
    assert rows[0][:2] == ("pairrm", "0")
    assert set(rows[0][2:5]) == {"-"}
    assert rows[1][3] == "0.300"
    assert "pairrm" not in arm_plot([unjudged, judged], ["pairrm", "rm"], "both")
    with pytest.raises(DataError, match="no arm has held-out rewards"):
        arm_plot([unjudged], ["pairrm"], "none")


def step(number: int, lists: float, bad: float = 0.0) -> dict:
    return {"time": 0.0, "event": "step", "step": number, "train/lists": lists, "train/bad_steps": bad}


def test_what_was_spent_is_that_of_the_steps_that_count_and_of_fresh_responses(make_list):
    log = make_run_log([step(1, 4.0), step(2, 4.0), step(2, 3.0), step(3, 4.0, bad=1.0)])  # 2 was taken back once
    fresh, old = make_list(0, (7, 3)), make_list(1, (5, 2, 4))
    remembered = [old.candidates[0].replace(origin="remembered"), old.candidates[1].replace(origin="given")]
    lists = [fresh, old.replace(candidates=(*remembered, old.candidates[2])), old.replace(candidates=remembered[:1])]
    found = what_was_spent(log, iter(lists))
    assert found == {
        "run/step": 2,
        "train/lists": 4 + 3,
        "sampler/prompts": 2,
        "sampler/samples": 2 + 1,
        "sampler/tokens": 7 + 3 + 4,
    }
    assert set(found) <= set(METRICS)
    lost = what_was_spent(make_run_log([step(1, 4.0), step(3, 4.0)]), [fresh])
    assert set(found) - set(lost) == {"run/step", "train/lists"}


def test_the_table_tells_what_was_spent_where_every_result_does():
    spent = [{"run/step": steps, "train/lists": 120, "sampler/tokens": 38_400} for steps in (10, 11)]
    both = [dataclasses.replace(run, spent=told) for run, told in zip(PAIRS, spent, strict=False)]
    assert TABLE_HEADER[-3:] == ("steps", "lists", "sampled tokens")
    assert table(both, ("pairwise",))[0][-3:] == ("10.5", "120.0", "38400")
    assert table([*both, PAIRS[2]], ("pairwise",))[0][-3:] == ("-", "-", "-")  # a mean over two of three seeds


def test_a_result_of_before_it_was_told_is_read(tmp_path):
    older = json.loads(PAIRS[0].to_json())
    del older["spent"]
    (tmp_path / "a.json").write_text(json.dumps(older))
    assert ArmResult.read(tmp_path / "a.json").spent == {}


def test_the_page_table_has_as_many_cells_in_each_line():
    lines = markdown_table([TABLE_HEADER, *table([*PAIRS, *LISTS], ("pairwise", "listmle"))]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_the_plot_names_every_arm():
    drawn = arm_plot([*PAIRS, *LISTS], ("pairwise", "listmle"), "objectives")
    assert "<svg" in drawn
    assert "<!-- pairwise -->" in drawn
    assert "<!-- listmle -->" in drawn


def test_a_result_comes_back_as_it_was(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(PAIRS[0].to_json())
    assert json.loads(ArmResult.read(file).to_json()) == json.loads(PAIRS[0].to_json())


@pytest.mark.parametrize("text", ["{", "[]", '{"arm": "a"}'])
def test_a_damaged_result_says_what_to_do(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json holds no ArmResult .* remove it"):
        ArmResult.read(tmp_path / "a.json")
