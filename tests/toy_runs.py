"""Whole runs on a tiny policy, in processes of their own that a test can kill, and what they must leave."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from actors.checkpoints import newest_checkpoint
from larpo.config import Config
from larpo.lists import training_list
from larpo.recipe import load_config
from larpo.records import read_lists

REPOSITORY = Path(__file__).parents[1]

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


def write_toy(folder: Path, policy: Path) -> None:
    """The prompts, the reward function and the recipe of a toy run."""
    prompts = [{"id": f"q{n}", "text": f"Say {n} in bytes."} for n in range(26)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "toy_reward.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(RECIPE.format(policy=policy, prompts=folder / "prompts.jsonl"))


def records(run_dir: Path, event: str) -> list[dict]:
    """What a run has told so far of one kind of event."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return [record for record in whole if record["event"] == event]


def marked_processes(mark: str) -> list[psutil.Process]:
    """Everything alive with that mark in its environment."""

    def is_ours(process: psutil.Process) -> bool:
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and process.environ().get("LARPO_TEST_MARK") == mark
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if is_ours(process)]


def train_workers(processes: list[psutil.Process] | None = None) -> list[psutil.Process]:
    """The trainer's ranks among these, or below this process: by Ray's name of one or ours, whichever was set last."""
    found = psutil.Process().children(recursive=True) if processes is None else processes
    return [process for process in found if command_of(process).startswith(("ray::RayTrainWorker", "ray::trainer-"))]


async def kill_one_rank(run_dir: Path, position: int, doing: str = "") -> None:
    """Kills one of the two ranks of a run, below this process, when the checkpoint of that position is there.

    `doing` is what their titles then say that they do.
    """
    while not (run_dir / f"checkpoints/position-{position:08}/manifest.json").exists():
        await asyncio.sleep(0.1)
    ranks: list[psutil.Process] = []
    while len(ranks) < 2:  # Ray's name of a process may stand there for a moment
        ranks = [process for process in train_workers() if f" of {run_dir.name}: {doing}" in command_of(process)]
        await asyncio.sleep(0.1)
    ranks[1].kill()


def command_of(process: psutil.Process) -> str:
    """Empty for one that is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_ports(count: int) -> list[int]:
    """Below those that Ray gives its workers."""
    found: list[int] = []
    for port in range(6500, 9900):
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def until(condition, limit_s: float, tell=lambda: "") -> float:
    """Seconds until `condition` holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + limit_s, tell()[-4000:]
        time.sleep(0.2)
    return time.monotonic() - started


class Runs:
    """Starts `scripts.align` in a process of its own, with a mark in the environment that all its processes inherit."""

    module = "scripts.align"

    def __init__(self, folder: Path, policy: Path, address: str | None = None) -> None:
        """`address` is that of the Ray cluster to join; each run starts its own without."""
        self.join(address)
        self.folder, self.run_dir = folder, folder / "runs" / "killed"
        self.environment: dict[str, str] = {}  # beside the test's own
        self.mark = uuid.uuid4().hex
        write_toy(folder, policy)
        self._ray = tempfile.mkdtemp(prefix="lr", dir="/tmp")  # short: sockets lie in it

    def join(self, address: str | None) -> None:
        self._address = address

    def start(self, *arguments: str) -> subprocess.Popen:
        """In a session of its own, as from a terminal; what it prints goes to log.txt."""
        environment = os.environ | {
            "LARPO_TEST_MARK": self.mark,
            "RAY_TMPDIR": self._ray,
            "RAY_worker_niceness": "0",  # Ray's actors do not stand back behind whatever else this machine does
            "PYTHONPATH": f"{REPOSITORY}:{self.folder}",
        }
        environment.pop("RAY_ADDRESS", None)
        if self._address is not None:
            environment["RAY_ADDRESS"] = self._address
        environment |= self.environment
        with open(self.folder / "log.txt", "a") as log:
            command = [sys.executable, "-m", self.module, *arguments]
            return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)

    def new(self, overlap: str, *overrides: str) -> subprocess.Popen:
        output = f"run.output_dir={self.folder / 'runs'}"
        recipe = str(self.folder / "recipe.yaml")
        return self.start(recipe, output, "run.name=killed", f"overlap={overlap}", *overrides)

    def records(self, event: str) -> list[dict]:
        return records(self.run_dir, event)

    def until(self, condition: Callable[[], object], driver: subprocess.Popen, limit_s: float = 600) -> None:
        """Until it holds, while the run goes on."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert driver.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """Everything alive that this run started."""
        return marked_processes(self.mark)

    def until_gone(self, limit_s: float = 150) -> None:
        """Until nothing of it is alive. Ray's agents may try for a minute to tell a dead GCS of their raylet's end."""
        until(lambda: not self.processes(), limit_s, lambda: "\n".join(map(command_of, self.processes())))

    def log(self) -> str:
        """What the runs printed; of much, the last part."""
        return (self.folder / "log.txt").read_text()[-20_000:]


def check_exactly_once(run_dir: Path, counts: tuple[int, ...] = (12, 12 + 12), epochs: int = 2) -> None:
    """The journal of the last checkpoint holds what could be trained on, each list once an epoch.

    `counts` are the lists of each iteration: where the second draws other prompts, the first ones are replayed.
    """
    config = load_config(str(run_dir / "config.yaml"))
    _, state, _ = newest_checkpoint(run_dir / "checkpoints")
    expected = trainable(config, run_dir, counts)
    assert set(state.journal.consumed) == {f"{i}/{epoch}" for i in range(len(counts)) for epoch in range(epochs)}
    for key, ids in state.journal.consumed.items():
        assert Counter(ids) == Counter(expected[int(key[0])]), key


def trainable(config: Config, run_dir: Path, counts: tuple[int, ...]) -> list[list[str]]:
    """Prompt ids with a list that carries a signal, by iteration; every drawn prompt has one list on disk."""
    by_iteration: list[list[str]] = [[] for _ in counts]
    seen = Counter(item.id for item in read_lists(run_dir / "lists"))
    assert set(seen.values()) == {1}
    for item in read_lists(run_dir / "lists"):
        chosen, _ = training_list(item, config.lists, config.sampling, seed=config.run.seed)
        if chosen is not None:
            by_iteration[item.iteration].append(item.prompt.id)
    found = Counter(item.iteration for item in read_lists(run_dir / "lists"))
    assert tuple(found[iteration] for iteration in range(len(counts))) == counts
    return by_iteration
