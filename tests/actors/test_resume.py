"""Going on after a death: no list is lost, none is trained twice in an epoch.

The whole runs are real ones: `python -m scripts.align` on a tiny policy, killed in the middle of each phase.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import psutil
import pytest

from actors.checkpoints import newest_checkpoint
from actors.stream import ListStream
from actors.work import IterationEnd, Journal
from larpo.config import Config
from larpo.lists import training_list
from larpo.recipe import load_config
from larpo.records import read_lists

REPOSITORY = Path(__file__).parents[2]


def test_a_rank_that_died_waiting_takes_no_list_with_it(trainer_config, make_list, tmp_path):
    """Its question is still in the stream when the group that replaced it asks the same."""

    async def go():
        config = trainer_config(training={"lists_per_step": 2})
        stream = ListStream(config, str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(n) for n in range(2)])
        first = await stream.next_work(0, 1, 0)
        dead = asyncio.create_task(stream.next_work(0, 1, 1))
        await asyncio.sleep(0.05)
        await stream.restore(Journal())  # no checkpoint yet: from the start
        await stream.offer([make_list(n) for n in range(2, 4)])
        with pytest.raises(RuntimeError, match="rolled back"):
            await dead
        await stream.close_iteration(0)
        return first, [await stream.next_work(0, 1, position) for position in range(3)]

    first, (again, second, end) = asyncio.run(go())
    assert [item.prompt.id for item in again.lists] == [item.prompt.id for item in first.lists] == ["p0", "p1"]
    assert [item.prompt.id for item in second.lists] == ["p2", "p3"]
    assert isinstance(end, IterationEnd)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_killed_trainer_worker_costs_nothing_but_time(train, trainer_config, make_list, tmp_path, stage):
    """Ray Train starts the group again; the weights are those of a run in which nobody died."""
    lists = [make_list(number, (5 + number % 3, 3)) for number in range(9)]
    config = trainer_config(
        training={"lists_per_step": 3, "workers": 2, "zero_stage": stage, "prompts_per_iteration": 9, "epochs": 2},
        checkpoints={"every_steps": 2},
    )
    calm = train(config, tmp_path / "calm", [[lists[:6], lists[6:]]])

    async def kill_one():
        await _until(lambda: (tmp_path / "killed/checkpoints/position-00000002/manifest.json").exists())
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        assert len(workers) == 2
        workers[1].kill()

    killed = train(config, tmp_path / "killed", [[lists[:6], kill_one, lists[6:]]])
    assert {key: sorted(ids) for key, ids in killed.consumed.items()} == {
        key: [f"p{n}" for n in range(9)] for key in ("0/0", "0/1")
    }
    assert killed.consumed == calm.consumed
    for name, tensor in calm.policy(1).items():
        assert (killed.policy(1)[name] - tensor).abs().max() < 1e-6, name


async def _until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.1)


# Whole runs.

RECIPE = """
policy: {{model: {policy}, dtype: float32}}
prompts:
  source: {prompts}
  columns: {{prompt: text, id: id}}
  train_count: 24
  heldout_count: 2
  max_prompt_tokens: 96
sampling: {{k: 4, max_new_tokens: 12}}
reward: {{name: "toy_reward:low_bytes"}}
lists: {{selection: {{policy: all}}, memory: current_and_all_previous, near_duplicate: 1.0}}
training:
  iterations: 2
  prompts_per_iteration: 12
  epochs: 2
  lists_per_step: 4
  threads: 1
  gap_alarm: 100.0
samplers: {{max_model_len: 128, max_num_seqs: 4, enforce_eager: true, resources: {{CPU: 0.5}}}}
stream: {{capacity: 8, lists_per_part: 2}}
checkpoints: {{every_steps: 1}}
evaluation: {{samples: 1, each_iteration: false, bootstrap: 100}}
telemetry: {{wandb: false, console: plain}}
"""

REWARD = """
def low_bytes(prompt, response):
    return sum(ord(letter) < 128 for letter in response) / (1 + len(response)) + 1e-3 * len(set(response))
"""


class Runs:
    """Starts `scripts.align` in a process of its own, with a mark in the environment that all its processes inherit."""

    def __init__(self, folder: Path, policy: Path) -> None:
        self.folder, self.run_dir = folder, folder / "runs" / "killed"
        self.mark = uuid.uuid4().hex
        prompts = [{"id": f"q{n}", "text": f"Say {n} in bytes."} for n in range(26)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
        (folder / "toy_reward.py").write_text(REWARD)
        (folder / "recipe.yaml").write_text(RECIPE.format(policy=policy, prompts=folder / "prompts.jsonl"))
        self._ray = tempfile.mkdtemp(prefix="lr", dir="/tmp")  # short: sockets lie in it

    def start(self, *arguments: str) -> subprocess.Popen:
        """In a session of its own, as from a terminal; what it prints goes to log.txt."""
        environment = os.environ | {
            "LARPO_TEST_MARK": self.mark,
            "RAY_TMPDIR": self._ray,
            "PYTHONPATH": f"{REPOSITORY}:{self.folder}",
        }
        environment.pop("RAY_ADDRESS", None)
        with open(self.folder / "log.txt", "a") as log:
            command = [sys.executable, "-m", "scripts.align", *arguments]
            return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)

    def new(self, overlap: str) -> subprocess.Popen:
        output = f"run.output_dir={self.folder / 'runs'}"
        return self.start(str(self.folder / "recipe.yaml"), output, "run.name=killed", f"overlap={overlap}")

    def records(self, event: str) -> list[dict]:
        file = self.run_dir / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        return [record for record in whole if record["event"] == event]

    def processes(self) -> list[psutil.Process]:
        """Everything alive that this run started."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and process.environ().get("LARPO_TEST_MARK") == self.mark
        except psutil.Error:
            return False

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()[-3000:]


@pytest.fixture
def runs(tmp_path, tiny_policy):
    started = Runs(tmp_path, tiny_policy)
    yield started
    for process in started.processes():
        process.kill()


def is_sampling(runs: Runs) -> bool:
    """Samplers are busy, and no list has been ranked."""
    return any(record["actor"].startswith("sampler") and record["kind"] == "sample" for record in runs.records("span"))


def is_ranking(runs: Runs) -> bool:
    """Some lists are on disk, not yet all."""
    return len(runs.records("lists")) >= 2


def is_training(runs: Runs) -> bool:
    return len(runs.records("step")) >= 2


def is_publishing(runs: Runs) -> bool:
    return any(runs.run_dir.glob("checkpoints/policy-0001*"))


def is_in_the_second_iteration(runs: Runs) -> bool:
    return any(record["iteration"] == 1 for record in runs.records("step"))


PHASES = [
    pytest.param(is_training, "stream"),
    pytest.param(is_sampling, "stream", marks=pytest.mark.slow),
    pytest.param(is_ranking, "stream", marks=pytest.mark.slow),
    pytest.param(is_publishing, "stream", marks=pytest.mark.slow),
    pytest.param(is_training, "none", marks=pytest.mark.slow),
    pytest.param(is_in_the_second_iteration, "none", marks=pytest.mark.slow),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("phase", "overlap"), PHASES)
def test_a_run_whose_driver_was_killed_resumes_to_its_end(runs, phase, overlap):
    driver = runs.new(overlap)
    while not phase(runs):
        assert driver.poll() is None, runs.log()
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    deadline = time.monotonic() + 60
    while (left := runs.processes()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, [process.cmdline() for process in left]
    assert not runs.records("done")
    base = runs.run_dir / "evaluation" / "iteration-0000.json"
    evaluated = json.loads(base.read_text()) if base.exists() else None
    base.unlink(missing_ok=True)  # as if the kill had come before the base policy's evaluation was through

    assert runs.start("--resume", str(runs.run_dir)).wait() == 0, runs.log()
    assert json.loads((runs.run_dir / "metrics.jsonl").read_text().splitlines()[-1])["event"] == "done"
    check_exactly_once(runs.run_dir)
    if evaluated is not None:
        assert json.loads(base.read_text())["greedy_rewards_P"] == evaluated["greedy_rewards_P"]
    assert not runs.processes()


def check_exactly_once(run_dir: Path) -> None:
    """The journal of the last checkpoint holds what could be trained on, each list once an epoch."""
    config = load_config(str(run_dir / "config.yaml"))
    _, state, _ = newest_checkpoint(run_dir / "checkpoints")
    expected = trainable(config, run_dir)
    assert set(state.journal.consumed) == {f"{i}/{epoch}" for i in range(2) for epoch in range(2)}
    for key, ids in state.journal.consumed.items():
        assert Counter(ids) == Counter(expected[int(key[0])]), key


def trainable(config: Config, run_dir: Path) -> list[list[str]]:
    """Prompt ids with a list that carries a signal, by iteration; every drawn prompt has one list on disk."""
    by_iteration: list[list[str]] = [[], []]
    seen = Counter(item.id for item in read_lists(run_dir / "lists"))
    assert set(seen.values()) == {1}
    for item in read_lists(run_dir / "lists"):
        chosen, _ = training_list(item, config.lists, config.sampling, seed=config.run.seed)
        if chosen is not None:
            by_iteration[item.iteration].append(item.prompt.id)
    fresh = [[i for i in read_lists(run_dir / "lists") if i.iteration == n] for n in range(2)]
    assert len(fresh[0]) == 12
    assert len(fresh[1]) == 12 + 12  # the second draws other prompts, and the first ones are replayed
    return by_iteration
