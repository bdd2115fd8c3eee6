"""The models of a grid's arms side by side: one evaluation for all arms that are evaluated alike, under each seed.

The base policy is then sampled once a seed, and every arm's model answers the same prompts. Each is its own
`scripts.evaluate`, which goes on where it was interrupted; what has a result is not made again.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.grid import ArmRun, Grid, check_knobs, made, run_logged, write_result
from larpo.config import Sweep
from larpo.errors import DataError
from larpo.recipe import flat_knobs
from larpo.sweep_over_seeds import SweepResult
from larpo.types import stable_hash

_ASKED = ("policy.", "prompts.", "reward.", "sampling.max_new_tokens", "sampling.stop", "evaluation.sweep.")
_OF_THE_MACHINE = ("policy.lora", "reward.replicas", "reward.resources", "reward.cache")


@dataclass(frozen=True)
class GridSweep:
    """Arms under one seed whose models are asked the same, the first model being what others are compared with."""

    runs: tuple[ArmRun, ...]

    @property
    def name(self) -> str:
        """Its first arm's."""
        return self.runs[0].arm

    @property
    def seed(self) -> int:
        return self.runs[0].seed

    @property
    def sweep(self) -> Sweep:
        return self.runs[0].config.evaluation.sweep

    @property
    def models(self) -> list[tuple[str, str]]:
        """Name and model: the base policy, then what each arm came to; without training the arms' own policies."""
        first = self.runs[0]
        if not first.is_trained:
            return [(run.arm, run.config.policy.model) for run in self.runs]
        trained = [(run.arm, str(run.folder / "model")) for run in self.runs]
        return [("base", first.config.policy.model), *trained]

    @property
    def arms(self) -> dict[str, str]:
        """What each arm's model is: changed when the arm was trained anew, or names another policy."""
        return {run.arm: _hash(run.result) if run.is_trained else run.config.policy.model for run in self.runs}

    @property
    def command(self) -> list[str]:
        first = self.runs[0]
        command = [sys.executable, "-m", "scripts.evaluate", first.recipe, *first.overrides, "--out", str(self.folder)]
        return command + [f"--model={name}={model}" for name, model in self.models]

    @property
    def knobs(self) -> dict[str, Any]:
        return _asked(self.runs[0])

    @property
    def folder(self) -> Path:
        return self.runs[0].folder.parent / "sweeps" / f"{self.name}-seed{self.seed}"

    @property
    def result(self) -> Path:
        return self.runs[0].result.parent / "sweeps" / f"{self.name}-seed{self.seed}.json"


def grid_sweeps(grid: Grid) -> list[GridSweep]:
    """Every sweep of a grid, seed by seed; none where its recipe sets no `evaluation.sweep.arms`."""
    groups: dict[str, list[ArmRun]] = {}
    for run in grid.runs:
        if run.config.evaluation.sweep.arms != "none":
            groups.setdefault(json.dumps([run.seed, _asked(run)], sort_keys=True), []).append(run)
    return [GridSweep(tuple(runs)) for runs in groups.values()]


def _asked(run: ArmRun) -> dict[str, Any]:
    """The knobs on which the evaluation of an arm's model depends; arms that are not trained differ by their model."""
    apart = _OF_THE_MACHINE if run.is_trained else (*_OF_THE_MACHINE, "policy.model")
    knobs = flat_knobs(run.config).items()
    return {key: value for key, value in knobs if key.startswith(_ASKED) and not key.startswith(apart)}


def _hash(file: Path) -> str:
    return f"{stable_hash(file.read_text(encoding='utf-8')):016x}" if file.is_file() else ""


def sweep_results(sweeps: Sequence[GridSweep]) -> list[SweepResult]:
    """Those that are there and of the arms as they are. DataError for a damaged one, or one made with other knobs."""
    found = ((sweep, _result(sweep)) for sweep in sweeps)
    return [result for sweep, result in found if result is not None and result.arms == sweep.arms]


def _result(sweep: GridSweep) -> SweepResult | None:
    if not sweep.result.is_file():
        return None
    result = SweepResult.read(sweep.result)
    check_knobs(sweep.knobs, result.knobs, sweep.result)
    return result


def run_sweeps(sweeps: Sequence[GridSweep], say: Callable[[str], None]) -> None:
    """Until every sweep has its result. DataError for an arm whose model is gone, TrainingError when one fails."""
    from actors.evaluation_results import RESULTS_FILE

    done = {(result.name, result.seed) for result in sweep_results(sweeps)}
    for number, sweep in enumerate(sweeps, start=1):
        if (sweep.name, sweep.seed) in done:
            continue
        for run in sweep.runs:
            if run.is_trained and not (run.folder / "model").is_dir():
                raise DataError(f"{run.folder} has no model any more; remove {run.result} to train the arm again")
        old = _result(sweep)
        if old and any(old.arms[arm] != now for arm, now in sweep.arms.items() if arm in old.arms):
            shutil.rmtree(sweep.folder, ignore_errors=True)  # of a model that is no more
        names = ", ".join(name for name, _ in sweep.models)
        say(f"[sweep {number}/{len(sweeps)}] {names}, seed {sweep.seed}")
        started = time.time()
        run_logged(sweep.command, sweep.folder.with_name(f"{sweep.folder.name}.log"), f"sweep of {names}")
        results = json.loads((sweep.folder / RESULTS_FILE).read_text(encoding="utf-8"))
        kept, seconds = _kept(results), time.time() - started
        result = SweepResult(sweep.name, sweep.seed, sweep.arms, kept, sweep.knobs, made(seconds))
        write_result(sweep.result, result.to_json())


def _kept(results: Mapping[str, Any]) -> dict[str, Any]:
    """Without what judges said, which names files, and the folders of models."""
    models = {
        name: {key: value for key, value in model.items() if key != "model"}
        for name, model in results["models"].items()
    }
    return {key: value for key, value in results.items() if key != "judges"} | {"models": models}
