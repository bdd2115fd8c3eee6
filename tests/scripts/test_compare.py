"""Runs side by side, from run folders written by hand."""

import json

import pytest

from larpo.recipe import config_to_yaml, load_config
from scripts.compare import main

HELD_OUT_PROMPTS = {
    "heldout/reward_before": 0.2,
    "heldout/reward_after": 0.45,
    "heldout/reward_diff": 0.25,
    "heldout/reward_diff_low": 0.2,
    "heldout/reward_diff_high": 0.3,
    "heldout/fully_met_after": 0.5,
}


def write_run(folder, *overrides, done=True, steps=3, numbers=None):
    folder.mkdir()
    (folder / "config.yaml").write_text(
        config_to_yaml(load_config("quickstart", [f"run.name={folder.name}", *overrides]))
    )
    records = [{"time": 0.0, "event": "start", "resumed": False}]
    records += [
        {"time": 0.0, "event": "step", "step": n, "iteration": 0, "train/loss": 2.0 / n} for n in range(1, steps + 1)
    ]
    records.append({"time": 0.0, "event": "evaluation", "label": "base policy", "iteration": 0, "heldout/reward": 0.2})
    if done:
        records.append({"time": 1.0, "event": "done", "run/seconds": 90.0, **(numbers or HELD_OUT_PROMPTS)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)


def test_results_and_differing_settings(tmp_path, capsys):
    first = write_run(tmp_path / "first")
    second = write_run(
        tmp_path / "second", "objective.name=listmle", "prompts.tasks.gcd.max_value=30", done=False, steps=7
    )
    assert main([first, second]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["first", "reward", "0.200", "0.450", "+0.250", "[+0.200,", "+0.300]", "50.0%", "3", "1.5"] in lines
    assert ["second", "-", "-", "-", "not", "done", "-", "7", "-"] in lines
    assert ["objective.name", "lambdarank", "listmle"] in lines
    assert ["prompts.tasks.gcd.max_value", "20", "30"] in lines
    assert not any(line and line[0] in ("run.name", "objective.beta") for line in lines)


def test_runs_on_given_lists_have_a_row_for_each_measure(tmp_path, capsys):
    def measured(name, before, after, low, high):
        ends = {"diff": after - before, "diff_low": low, "diff_high": high}
        values = {"before": before, "after": after, **ends}
        return {f"given/{name}_{end}": value for end, value in values.items()}

    numbers = measured("loss", 0.7, 0.5, -0.25, -0.15) | measured("score_accuracy", 0.5, 0.625, 0.1, 0.15)
    assert main([write_run(tmp_path / "given", numbers=numbers), write_run(tmp_path / "sampled")]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "given loss 0.700 0.500 -0.200 [-0.250, -0.150] - 3 1.5" in lines
    assert "given accuracy by score 0.500 0.625 +0.125 [+0.100, +0.150] - 3 1.5" in lines
    assert sum(line.startswith("sampled ") for line in lines) == 1


def test_the_page_has_curves_and_says_what_is_missing(tmp_path, capsys):
    runs = [write_run(tmp_path / name) for name in ("<b>bold", "plain")]
    assert main([*runs, "--page", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 2  # held-out reward and loss
    assert "train/entropy: no run recorded it" in page
    assert "the runs have the same settings" in page
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    assert "the runs have the same settings" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.parametrize("torn", ['{"time": 1.0, "ev', ""])
def test_a_run_that_is_going_on_can_be_looked_at(tmp_path, capsys, torn):
    run = write_run(tmp_path / "going", done=False)
    with open(tmp_path / "going" / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert main([run]) == 0
    assert "not done" in capsys.readouterr().out
