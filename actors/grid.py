"""Runs the arms of a grid, one after another, each as its own `scripts.align`; what is there is not run again.

An arm that was interrupted is resumed. A new one shares the first lists and the base evaluation of an arm that sampled
the same. Of a run that is done its result is kept as JSON, its lists, model and report stay, its checkpoints go.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import larpo
from actors.policies import evaluated_points, result_file
from actors.preparation import CONFIG_FILE
from actors.sharing import what_differs
from larpo.compute_type import settled
from larpo.config import Config
from larpo.errors import ConfigError, DataError, TrainingError
from larpo.evaluation import HeldoutResult
from larpo.experiment import ArmResult, rounded_rewards, what_was_spent
from larpo.recipe import arms, first_arms, flat_knobs, load_config, recipe_name
from larpo.records import read_lists
from larpo.run_log import read_run_log
from larpo.storage import is_uri

# Knobs that say nothing of what an arm does; what its model is asked afterwards has results of its own.
_OWN = ("run.", "description", "evaluation.sweep.", "evaluation.judges.")
# Nor do those that say how a machine does it: results of a slow one stand beside those of a fast one.
_OF_THE_MACHINE = (
    "policy.dtype",
    "timeouts.",
    "telemetry.",
    "samplers.lease_s",
    "samplers.cpu_cores",
    "reward.timeout_s",
    "training.threads",
    "training.zero_stage",  # stages differ by rounding
    "training.shared_row_tokens",  # and rows
)
_HARDNESS = ("lists/reward_gap", "lists/overlap", "lists/reward_mean", "lists/reward_best", "lists/size")


@dataclass(frozen=True)
class ArmRun:
    """One arm under one seed: its recipe, configuration, and where run and result go."""

    arm: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    config: Config
    folder: Path
    result: Path

    @property
    def knobs(self) -> dict[str, Any]:
        return _knobs(self.config)

    @property
    def trains(self) -> bool:
        """Whether it is a run; the policy of one that is not is evaluated as it is (actors/grid_sweeps.py)."""
        return self.config.evaluation.sweep.arms != "policy"


@dataclass(frozen=True)
class Grid:
    """All runs of an experiment, seed by seed, so that every arm has its first result before one has its second."""

    recipe: str
    arms: tuple[str, ...]
    runs: tuple[ArmRun, ...]

    @property
    def first(self) -> dict[str, str]:
        """The arm that each is compared with."""
        return first_arms(self.recipe)

    def results(self) -> list[ArmResult]:
        """Those that are there. DataError for one that is damaged or was made with other knobs."""
        found = []
        for run in self.runs:
            if run.result.is_file():
                result = ArmResult.read(run.result)
                check_knobs(run.knobs, result.knobs, run.result)
                found.append(result)
        return found


def make_grid(recipe: str, overrides: Sequence[str], seeds: Sequence[int], results: Path | None) -> Grid:
    """Every arm of a recipe's grid under every seed. ConfigError when it has none, or an arm cannot run."""
    names = arms(recipe)
    if not names:
        raise ConfigError(f"recipe {recipe}: has no grid; run it by itself: python -m scripts.align {recipe}")
    runs = []
    for seed in seeds:
        for arm in names:
            chosen = (*overrides, f"run.seed={seed}")
            config = load_config(f"{recipe}:{arm}", chosen)
            if is_uri(config.run.output_dir):
                raise ConfigError(f"run.output_dir = {config.run.output_dir!r}: an experiment needs a folder; give one")
            home = Path(config.run.output_dir) / recipe_name(recipe)
            folder, kept = home / f"{arm}-seed{seed}", (results or home / "results") / f"{arm}-seed{seed}.json"
            runs.append(ArmRun(arm, seed, f"{recipe}:{arm}", chosen, config, folder, kept))
    return Grid(recipe, names, tuple(runs))


def run_grid(grid: Grid, say: Callable[[str], None]) -> None:
    """Until every run has its result. TrainingError when one fails: the same command goes on from there."""
    grid.results()  # what does not fit is told before anything runs
    for number, run in enumerate(grid.runs, start=1):
        if run.result.is_file() or not run.trains:
            continue
        say(f"[{number}/{len(grid.runs)}] {run.arm}, seed {run.seed}")
        started = time.time()
        _align(run, _source(run, grid.runs[: number - 1]))
        _keep(run, time.time() - started)
        done = ArmResult.read(run.result)
        say(f"    held-out reward {done.before:.3f} -> {done.after:.3f}" if done.is_judged else "    done")


def _align(run: ArmRun, source: ArmRun | None) -> None:
    """One `scripts.align` to its end, its output in the run's log."""
    command = [sys.executable, "-m", "scripts.align"]
    if (run.folder / CONFIG_FILE).is_file():
        check_knobs(run.knobs, _knobs(load_config(str(run.folder / CONFIG_FILE))), run.folder)
        command += ["--resume", str(run.folder)]
    else:
        command += [run.recipe, *run.overrides, f"run.output_dir={run.folder.parent}", f"run.name={run.folder.name}"]
        command += ["--share", str(source.folder)] if source else []
    log = run.folder.with_name(f"{run.folder.name}.log")  # an arm's name may have dots
    run_logged(command, log, f"{run.arm}, seed {run.seed}")


def run_logged(command: Sequence[str], log: Path, what: str) -> None:
    """One command to its end, its output in `log`. TrainingError with the end of that when the command fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # it ends well, and can be resumed
            try:
                process.wait(timeout=120)
            finally:
                process.kill()
            raise
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise TrainingError(f"{what}: ended with code {code}; {log} ends with:\n{tail}")


def _source(run: ArmRun, earlier: Sequence[ArmRun]) -> ArmRun | None:
    """An earlier run with the same first lists, or else with the same base evaluation."""
    ours = settled(run.config)
    there = [(other, file) for other in earlier if (file := other.folder / CONFIG_FILE).is_file()]
    differences = [(other, what_differs(load_config(str(file)), ours)) for other, file in there]
    for kind in (0, 1):
        for other, of in differences:
            if not of[kind]:
                return other
    return None


def _keep(run: ArmRun, seconds: float) -> None:
    """Write the result, then let go of the optimizer's states and published weights."""
    log = read_run_log(run.folder / "metrics.jsonl")
    if log.done is None:
        raise DataError(f"{run.folder} ended without a result; look at its log, remove the folder and run again")
    result = ArmResult(
        arm=run.arm,
        seed=run.seed,
        done={key: value for key, value in log.done.items() if key.startswith(("heldout/", "run/"))},
        evaluations={evaluation.label: rounded_rewards(evaluation) for evaluation in _evaluations(run.folder)},
        hardness={name: fmean(found) for name in _HARDNESS if (found := [r[name] for r in log.lists if name in r])},
        knobs=_knobs(load_config(str(run.folder / CONFIG_FILE))),
        made=made(seconds),
        spent=what_was_spent(log, read_lists(run.folder / "lists")),
    )
    write_result(run.result, result.to_json())
    _drop_checkpoints(run.folder / "checkpoints")


def write_result(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(file)


def made(seconds: float) -> dict[str, Any]:
    """By what code, on what machine and in what time a result was made."""
    return {"larpo": larpo.__version__, "commit": _commit(), "machine": _machine(), "seconds": round(seconds)}


def _evaluations(folder: Path) -> Iterator[HeldoutResult]:
    for point in evaluated_points(folder):
        yield HeldoutResult.from_json(result_file(folder, point).read_text())


def _drop_checkpoints(folder: Path) -> None:
    """Everything but the reference log-probabilities, which later runs may share."""
    import shutil

    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _knobs(config: Config) -> dict[str, Any]:
    return {key: value for key, value in flat_knobs(config).items() if not key.startswith(_OWN)}


def check_knobs(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: Path) -> None:
    """DataError when what is there, a result or a run folder, is of other knobs."""
    compared = [key for key in ours if key in theirs and not key.startswith(_OF_THE_MACHINE)]
    changed = [f"{key}: {theirs[key]} -> {ours[key]}" for key in compared if theirs[key] != _plain(ours[key])]
    if changed:
        raise DataError(
            f"{where} is of other knobs: {'; '.join(changed)}. Remove it, or give other folders for both,"
            " --results and run.output_dir"
        )


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _commit() -> str:
    """Of the code that runs, where it is a git checkout."""
    root = Path(__file__).parent.parent
    try:
        found = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip()


def _machine() -> str:
    """Processor and cores, without a host's name."""
    model = next(
        (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), platform.machine()
    )
    return f"{os.cpu_count()} x {model}"


def _cpu_lines() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.is_file() else []
