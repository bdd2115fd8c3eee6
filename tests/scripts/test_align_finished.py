"""`--resume` of a run that is over says so at once: no Ray, no engine, no policy is loaded."""

import json

import pytest
import ray

from larpo.evaluation import HeldoutResult, done_record, format_table, heldout_table, summary
from larpo.recipe import config_to_yaml, load_config
from scripts.align import main

BASE = HeldoutResult("base policy", ("a", "b"), ((0.0, 1.0), (0.5, 0.5)), (0.0, 1.0), ((3, 4), (5, 6)), 0.25)
ALIGNED = HeldoutResult("step 5", ("a", "b"), ((1.0, 1.0), (0.5, 0.75)), (1.0, 1.0), ((3, 4), (5, 6)), 0.0)
LAST = HeldoutResult("after iteration 2", ("a", "b"), ((0.25, 0.0), (0.5, 0.5)), (0.0, 1.0), ((3, 4), (5, 6)), 0.0)


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setattr("actors.preparation.prepare", lambda *_, **__: pytest.fail("the inputs were loaded"))
    folder = tmp_path / "over"
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(config_to_yaml(load_config("quickstart")))
    return folder


def write(run_dir, **fields):
    numbers = done_record(BASE, ALIGNED, resamples=50, seed=0)
    records = [
        {"time": 1.0, "event": "start", "resumed": False},
        {"time": 2.0, "event": "done", **fields, **numbers, "run/seconds": 60.0},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_finished_run_prints_its_table_again(run_dir, capsys):
    place = {"label": "after iteration 2", "iteration": 2, "step": 0}
    write(run_dir, taken=place, last={**place, **summary(ALIGNED)})
    assert main(["--resume", str(run_dir)]) == 0
    printed = capsys.readouterr().out
    assert format_table(heldout_table(BASE, ALIGNED, resamples=50, seed=0)) in printed
    for part in ("this run is finished", run_dir / "model", run_dir / "report.html", run_dir / "metrics.jsonl"):
        assert str(part) in printed
    assert "last policy" not in printed


def test_a_run_of_an_older_version_prints_its_table_too(run_dir, capsys):
    write(run_dir)
    assert main(["--resume", str(run_dir)]) == 0
    assert "aligned policy" in capsys.readouterr().out


def test_the_policy_that_was_taken_stands_beside_the_last(run_dir, capsys):
    last = {"label": "after iteration 2", "iteration": 2, "step": 0, **summary(LAST)}
    taken = {"label": "step 5", "iteration": 0, "step": 5}
    write(run_dir, taken=taken, last=last, best_metric="greedy", stopped="patience was over")
    assert main(["--resume", str(run_dir)]) == 0
    printed = capsys.readouterr().out
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("last policy")]
    assert row == ["last", "policy", f"{(0.125 + 0.5) / 2:.3f}", "50.0%", "4.5", "tokens"]
    assert "The aligned policy (step 5) is the best by greedy; the last policy (after iteration 2)" in printed
    assert "Stopped early: patience was over." in printed


def test_knobs_of_a_finished_run_cannot_change_either(run_dir, capsys):
    write(run_dir)
    assert main(["--resume", str(run_dir), "training.iterations=9"]) == 2
    assert "a resumed run keeps its knobs" in capsys.readouterr().err


def test_how_many_workers_train_can_change(run_dir, capsys):
    write(run_dir)
    assert main(["--resume", str(run_dir), "training.workers=2"]) == 0
    assert "keeps its knobs" not in capsys.readouterr().err


def test_how_many_workers_train_cannot_change_at_stage_1(run_dir, capsys):
    write(run_dir)
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("zero_stage: null", "zero_stage: 1"))
    assert main(["--resume", str(run_dir), "training.workers=2"]) == 2
    assert "training.workers = 2, where 1 trained: with training.zero_stage = 1" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["model", "done"])
def test_a_run_that_lacks_something_is_resumed(run_dir, missing):
    write(run_dir)
    if missing == "model":
        (run_dir / "model").rmdir()
    else:
        (run_dir / "metrics.jsonl").write_text('{"time": 1.0, "event": "start", "resumed": false}\n')
    with pytest.raises(pytest.fail.Exception, match="the inputs were loaded"):
        main(["--resume", str(run_dir)])
