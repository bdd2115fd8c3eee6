"""Evaluation within a run, the best policy kept and the early end, as a user starts them, on a tiny policy."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from actors.checkpoints import newest_checkpoint
from actors.policies import evaluated_points, snapshots, weights_folder
from larpo.best_policy import BASE, Point
from larpo.evaluation import HeldoutResult, summary

ROOT = Path(__file__).parents[2]
REWARD = """
def share_of_small_letters(prompt, response):
    return sum("a" <= character <= "z" for character in response) / max(1, len(response))
"""


def recipe(folder: Path, policy: Path) -> dict:
    """3 iterations of 8 steps; the learning rate is so high that the policy is soon at its best, or spoilt."""
    return {
        "run": {"output_dir": str(folder / "runs"), "name": "toy"},
        "policy": {"model": str(policy), "dtype": "float32"},
        "prompts": {
            "source": str(folder / "prompts.jsonl"),
            "columns": {"prompt": "question"},
            "heldout_count": 8,
            "max_prompt_tokens": 64,
        },
        "sampling": {"k": 4, "max_new_tokens": 16},
        "reward": {"name": "toy_reward:share_of_small_letters"},
        "lists": {"selection": {"policy": "all"}, "replay": False},
        "objective": {"name": "lambdarank", "beta": 0.1},
        "training": {
            "iterations": 3,
            "prompts_per_iteration": 32,
            "lists_per_step": 4,
            "threads": 1,
            "gap_alarm": 100.0,
            "optimizer": {"learning_rate": 3e-3},
        },
        "samplers": {"resources": {"CPU": 0}, "max_model_len": 128, "max_num_seqs": 64, "enforce_eager": True},
        "checkpoints": {"every_steps": 100, "keep": 1},
        "evaluation": {"samples": 2, "every_steps": 3, "best_metric": "greedy", "bootstrap": 100},
        "telemetry": {"wandb": False},
    }


class Toy:
    """A run's files, and the command that starts it."""

    def __init__(self, folder: Path, policy: Path) -> None:
        self.folder, self.run_dir = folder, folder / "runs" / "toy"
        (folder / "toy_reward.py").write_text(REWARD)
        rows = [{"question": f"Say something about {n}."} for n in range(40)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "toy.yaml").write_text(yaml.safe_dump(recipe(folder, policy)))

    def start(self, *arguments: str) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["PYTHONPATH"] = f"{ROOT}:{self.folder}"
        command = [sys.executable, "-m", "scripts.align", *arguments]
        with open(self.folder / "log.txt", "a") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def new(self, *overrides: str) -> subprocess.Popen:
        return self.start(str(self.folder / "toy.yaml"), *overrides)

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def records(self, event: str) -> list[dict]:
        file = self.run_dir / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        return [record for record in whole if record["event"] == event]

    def values(self, metric: str) -> dict[Point, float]:
        """What the result files say."""
        found = {}
        for path in sorted((self.run_dir / "evaluation").glob("*.json")):
            iteration, _, step = path.stem.removeprefix("iteration-").partition("-step-")
            result = HeldoutResult.from_json(path.read_text())
            found[Point(int(iteration), int(step or 0))] = summary(result)[f"heldout/{metric}"]
        return found


@pytest.fixture
def toy(tmp_path, tiny_policy) -> Toy:
    return Toy(tmp_path, tiny_policy)


def due(toy: Toy) -> set[Point]:
    """What has to be evaluated: the ends of the iterations, and every third step that is none of them."""
    _, state, _ = newest_checkpoint(toy.run_dir / "checkpoints")
    lengths = [-(-len(state.journal.used(iteration, 0)) // 4) for iteration in range(3)]  # in steps of 4 lists
    ends = list(itertools.accumulate(lengths))
    steps = [step for step in range(3, ends[-1], 3) if step not in ends]
    return {Point(sum(end < step for end in ends), step) for step in steps} | {Point(n) for n in range(4)}


def exported(run_dir: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(run_dir / "model" / "model.safetensors")


def published(folder: Path) -> dict:
    from actors.published import published_tensors

    return dict(published_tensors(folder))


def same(left: dict, right: dict) -> bool:
    return all(left[name].equal(right[name]) for name in left)


def check_candidates(run_dir: Path) -> None:
    """What was sampled for an iteration comes from its behaviour policy alone, never from a snapshot."""
    from actors.policies import policy_folder
    from actors.published import published_version
    from larpo.records import read_lists

    spans: dict[int, set[int]] = {}
    for item in read_lists(run_dir / "lists"):
        for candidate in item.candidates:
            spans.setdefault(item.iteration, set()).update(span.version for span in candidate.versions)
    assert all(len(versions) == 1 for versions in spans.values())
    for iteration, (version,) in spans.items():
        folder = policy_folder(run_dir, iteration)
        if iteration and folder.exists():
            assert version == published_version(folder)
    assert spans[0] == {0}


@pytest.mark.slow
def test_snapshots_are_evaluated_and_the_best_policy_is_the_model(toy):
    assert toy.new().wait(timeout=500) == 0, toy.log()[-3000:]
    values = toy.values("greedy")
    assert set(values) == due(toy)
    assert any(point.step for point in values)
    best = max(sorted(set(values) - {BASE}), key=values.get)
    (done,) = toy.records("done")
    assert (done["taken"]["iteration"], done["taken"]["step"]) == (best.iteration, best.step)
    assert done["heldout/greedy_after"] == values[best]
    assert done["last"]["heldout/greedy"] == values[Point(3)]
    assert same(exported(toy.run_dir), published(weights_folder(toy.run_dir, best)))
    assert set(snapshots(toy.run_dir)) <= {best}
    check_candidates(toy.run_dir)
    logged = [(r["iteration"], r.get("step", 0)) for r in toy.records("evaluation")]
    assert logged == [(point.iteration, point.step) for point in sorted(values)]


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_early_and_stays_ended(toy):
    assert toy.new("training.optimizer.learning_rate=1e-12", "evaluation.patience=3").wait(timeout=500) == 0, toy.log()[
        -3000:
    ]
    points = evaluated_points(toy.run_dir)
    assert len(points) == 1 + 3
    (done,) = toy.records("done")
    assert "3 evaluations in a row did not exceed heldout/greedy" in done["stopped"]
    assert "of base policy (evaluation.patience = 3)" in done["stopped"]
    assert done["last"]["step"] == points[-1].step
    assert not toy.records("failure")
    assert not toy.records("alarm")
    assert "Stopped early" in toy.log()
    assert same(exported(toy.run_dir), published(weights_folder(toy.run_dir, points[1])))
    before, began = toy.log().split("Held-out:")[1], time.monotonic()
    assert toy.start("--resume", str(toy.run_dir)).wait(timeout=60) == 0
    assert time.monotonic() - began < 15
    assert toy.log().split("Held-out:")[2] == before
    assert len(toy.records("start")) == 1

    metrics = toy.run_dir / "metrics.jsonl"  # as if it had been killed before it wrote its model
    lines = [line for line in metrics.read_text().splitlines() if json.loads(line)["event"] != "done"]
    metrics.write_text("\n".join(lines) + "\n")
    assert toy.start("--resume", str(toy.run_dir)).wait(timeout=300) == 0
    assert evaluated_points(toy.run_dir) == points
    assert toy.records("done")[0]["stopped"] == done["stopped"]


@pytest.mark.slow
def test_a_killed_run_repeats_no_evaluation_and_loses_none(toy):
    driver = toy.new()
    while not any(point.step for point in evaluated_points(toy.run_dir)):
        assert driver.poll() is None, toy.log()[-3000:]
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(5)
    before = {path: path.read_text() for path in (toy.run_dir / "evaluation").glob("*.json")}
    assert toy.start("--resume", str(toy.run_dir)).wait(timeout=500) == 0, toy.log()[-3000:]
    assert before == {path: path.read_text() for path in before}
    values = toy.values("greedy")
    assert set(values) == due(toy)
    labels = [record["label"] for record in toy.records("evaluation")]
    assert len(labels) == len(set(labels)) == len(values)
    best = max(sorted(set(values) - {BASE}), key=values.get)
    assert same(exported(toy.run_dir), published(weights_folder(toy.run_dir, best)))
    check_candidates(toy.run_dir)
