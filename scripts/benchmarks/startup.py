"""`startup`: from the command `python -m scripts.align RECIPE` to the first sampled token, the first list and the first
optimizer step.

Each repetition is a whole start in a process of its own, which is stopped when it has made its first step. The times
are those of the run's own records.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benchmarks.measuring import BenchmarkError, Comparison, Result, Series

LIMIT_S, STOP_S, LOOK_S = 1800.0, 60.0, 0.2  # of one start; of the end after it; between two looks at the records
SMALLER = (
    "overlap=stream",
    "prompts.heldout_count=0",
    "evaluation.each_iteration=false",
    "training.iterations=1",
    "training.prompts_per_iteration=24",
    "prompts.train_count=24",
    "lists.selection.policy=all",
    "stream.lists_per_part=2",
    "training.lists_per_step=4",
    "telemetry.wandb=false",
    "telemetry.console=plain",
)
FIRST_TOKEN, FIRST_LIST, FIRST_STEP = "first token", "first list", "first optimizer step"
PHASES = ("imports, checks and Ray", "engine", "trainer", FIRST_TOKEN, FIRST_LIST, FIRST_STEP)


def run_startup(recipe: str, policy: str, repetitions: int) -> Result:
    """Seconds to the first of each, and in the notes where they go."""
    arguments = [recipe, f"policy.model={policy}", *SMALLER]
    starts = [one_start(arguments) for _ in range(repetitions + 1)][1:]  # the first one fills the caches
    first = Series("to " + FIRST_TOKEN, tuple(start[FIRST_TOKEN] for start in starts))
    rows = [
        Comparison(name, "s since the command", Series("larpo", tuple(start[name] for start in starts)), first)
        for name in (FIRST_TOKEN, FIRST_LIST, FIRST_STEP)
    ]
    settings = {"recipe": Path(recipe).stem, "policy": Path(policy).name, "overrides": list(SMALLER)}
    return Result("startup", settings, tuple(rows), tuple(_told(starts)))


def _told(starts: list[dict[str, float]]) -> Iterable[str]:
    yield "seconds since the command at which each part was over (median), parts beside each other overlapping:"
    for name in PHASES:
        yield f"  {median(start[name] for start in starts):7.1f}  {name}"


def one_start(arguments: Iterable[str]) -> dict[str, float]:
    """Seconds since the command at which each of PHASES was over; `arguments` begin with the recipe.

    Raises BenchmarkError with the end of the log when the run ends, or the time is over, before its first step.
    """
    with tempfile.TemporaryDirectory(prefix="lb", dir="/tmp") as folder:  # short: Ray's sockets lie in it
        log = Path(folder) / "log.txt"
        records = Path(folder) / "runs" / "start" / "metrics.jsonl"
        command = [sys.executable, "-m", "scripts.align", *arguments]
        command += [f"run.output_dir={folder}/runs", "run.name=start"]
        started = time.time()
        with log.open("w") as output:
            own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
            environment = own | {"RAY_TMPDIR": folder}
            run = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            while not (found := moments(read_records(records), started)):
                if run.poll() is not None or time.time() - started > LIMIT_S:
                    raise BenchmarkError(f"no optimizer step came of {' '.join(command)}:\n{log.read_text()[-3000:]}")
                time.sleep(LOOK_S)
        finally:
            _end(run)
    return found


def _end(run: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would; one that does not end is killed, with what it started."""
    run.send_signal(signal.SIGTERM)
    try:
        run.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def read_records(file: Path) -> list[dict[str, Any]]:
    """Whole lines of a run's records; none where there is no file yet."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def moments(records: Iterable[Mapping[str, Any]], started: float) -> dict[str, float]:
    """Seconds since `started` at which each of PHASES was over; empty while one of them is not.

    Spans that follow each other are told as one, when the iteration is over: the end of the first step is where the
    first of them begins and the seconds that the step's own record gives; so it is with the first token, of which the
    sampler's record tells.
    """
    records = list(records)
    steps = [record["train/step_seconds"] for record in records if record["event"] == "step"]
    tokens = [record["sampler/first_token_seconds"] for record in records if record["event"] == "sampler"]
    tokens = [seconds for seconds in tokens if seconds > 0]
    ends: dict[str, list[float]] = {name: [] for name in PHASES}
    for record in records:
        name, when = _phase(record)
        if name is not None:
            ends[name].append(when - started)
    if not (steps and tokens and all(ends.values())):
        return {}
    found = {name: min(times) for name, times in ends.items()}
    return found | {FIRST_TOKEN: found[FIRST_TOKEN] + min(tokens), FIRST_STEP: found[FIRST_STEP] + steps[0]}


def _phase(record: Mapping[str, Any]) -> tuple[str | None, float]:
    """Which phase a record tells the end of, and when that was; of the first token and step, when they began."""
    match record["event"], record.get("kind"), str(record.get("actor", "")).partition("-")[0]:
        case "prompts", _, _:  # the run's first word after Ray was there
            return PHASES[0], record["time"]
        case "span", "start", "sampler":
            return "engine", record["end"]
        case "span", "start", "trainer":
            return "trainer", record["end"]
        case "span", "sample", _:
            return FIRST_TOKEN, record["start"]
        case "lists", _, _:
            return FIRST_LIST, record["time"]
        case "span", "train", _:
            return FIRST_STEP, record["start"]
    return None, 0.0
