"""Sweeps of several seeds, told as one."""

import json

import pytest

from larpo.config import Sweep
from larpo.errors import DataError
from larpo.experiment import t_interval
from larpo.sweep_over_seeds import SweepResult, over_seeds
from larpo.sweep_page import sweep_plots
from larpo.sweep_tables import format_results, sweep_tables

SWEEP = Sweep(samples=2, cutoffs=(1, 2), temperatures=(1.0,))


def sweep_result(seed: int, base: float, aligned: float) -> SweepResult:
    def measures(value: float) -> dict:
        names = ("greedy/reward", "greedy/correct", "T=1/reward", "T=1/recall@1", "T=1/recall@2")
        return {name: [value, value - 0.1, value + 0.1] for name in names}

    models = {"base": {"fingerprint": "b"}, "aligned": {"fingerprint": f"a{seed}"}}
    for name, value in (("base", base), ("aligned", aligned)):
        models[name]["measures"] = measures(value)
    results = {
        "prompts": 5,
        "reward": "gsm8k",
        "models": models,
        "differences": {"aligned": measures(aligned - base)},
        "win_rates": {"aligned": {"raw": [0.6, 0.5, 0.7], "length_controlled": [0.5, 0.4, 0.6], "length_weight": 0.1}},
        "ranking": {},
        "notes": [],
    }
    return SweepResult("aligned", seed, {"aligned": "1f"}, results, {"policy.model": "m"}, {"seconds": 1})


SEEDS = [sweep_result(0, 0.2, 0.4), sweep_result(1, 0.2, 0.5), sweep_result(2, 0.26, 0.66)]


def test_a_number_is_the_mean_over_seeds_with_students_interval():
    joined = over_seeds(SEEDS)
    expected = t_interval([0.4, 0.5, 0.66])
    assert joined["models"]["aligned"]["measures"]["T=1/recall@2"] == pytest.approx(
        [expected.mean, expected.low, expected.high]
    )
    difference = t_interval([0.2, 0.3, 0.4])
    found = joined["differences"]["aligned"]["T=1/reward"]
    assert found == pytest.approx([0.3, difference.low, difference.high])


def test_a_model_that_no_seed_changes_keeps_intervals_over_prompts():
    """Else its greedy responses, which are the same each time, would have an interval of no width."""
    assert over_seeds(SEEDS)["models"]["base"]["measures"]["greedy/reward"] == pytest.approx([0.22, 0.12, 0.32])


def test_one_seed_keeps_its_own_intervals():
    assert over_seeds(SEEDS[:1])["models"] == SEEDS[0].results["models"]


def test_the_tables_and_plots_of_one_evaluation_read_it():
    joined = over_seeds(SEEDS)
    rewards, recall, difference, wins = sweep_tables(joined, SWEEP)
    assert [row[0] for row in rewards[1:]] == ["base", "aligned"]
    over = t_interval([0.4, 0.5, 0.66])
    cell = f"{over.mean:.3f} [{over.low:.3f}, {over.high:.3f}]"
    assert recall == [
        ("model", "T", "N", "Recall@N"),
        *(("base", "1", n, "0.220 [0.120, 0.320]") for n in ("1", "2")),
        *(("aligned", "1", n, cell) for n in ("1", "2")),
    ]
    assert difference[1][:2] == ("aligned - base", "1")
    assert wins[1][:2] == ("aligned", "base")
    assert "intervals over seeds 0, 1" in format_results(joined, SWEEP, "seeds 0, 1")
    assert {"recall_by_model", "picking_base", "picking_aligned"} <= set(sweep_plots(joined, SWEEP))


def test_a_result_comes_back_as_it_was(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(SEEDS[0].to_json())
    assert json.loads(SweepResult.read(file).to_json()) == json.loads(SEEDS[0].to_json())
    file.write_text("{}")
    with pytest.raises(DataError, match=r"a\.json holds no SweepResult .* remove it"):
        SweepResult.read(file)
