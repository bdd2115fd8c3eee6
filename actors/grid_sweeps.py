"""The models of a grid's arms side by side: one evaluation for all arms that are evaluated alike, under each seed.

The base policy is then sampled once a seed, and every arm's model answers the same prompts. Each is its own
`scripts.evaluate`, which goes on where it was interrupted; what has a result is not made again.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.evaluation_inputs import MODEL_NAME, SCORES_EACH
from actors.grid import ArmRun, Grid, check_knobs, made, run_logged, write_result
from actors.sharing import NOT_SEEN, SAMPLED
from larpo.config import Sweep
from larpo.errors import ConfigError, DataError
from larpo.recipe import flat_knobs
from larpo.sweep_over_seeds import SweepResult
from larpo.types import stable_hash

BASE = "base"  # name of the policy that arms were trained from
_SWEEP = "evaluation.sweep."
_RECKONED = tuple(_SWEEP + name for name in ("arms", "cutoffs", "acceptable"))  # other ones need no new sample
_NO_JUDGES = ("evaluation.judges.alpaca_eval=false", "evaluation.judges.lm_eval_tasks=[]")  # they cost; asked apart


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
        if not first.trains:
            return [(run.arm, run.config.policy.model) for run in self.runs]
        trained = [(run.arm, str(run.folder / "model")) for run in self.runs]
        return [(BASE, first.config.policy.model), *trained]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each arm's model: another one when the arm was trained anew, or names another policy."""
        return {run.arm: _hash(run.result) if run.trains else run.config.policy.model for run in self.runs}

    @property
    def knobs(self) -> dict[str, Any]:
        return _asked(self.runs[0])

    @property
    def folder(self) -> Path:
        """Of the evaluation: another one for other models or samples, which it would refuse."""
        key = f"{stable_hash(json.dumps([self.fingerprints, self.knobs], sort_keys=True)):016x}"
        return self.runs[0].folder.parent / "sweeps" / f"{self.name}-seed{self.seed}-{key[:8]}"

    @property
    def result(self) -> Path:
        return self.runs[0].result.parent / "sweeps" / f"{self.name}-seed{self.seed}.json"

    @property
    def command(self) -> list[str]:
        first = self.runs[0]
        command = [sys.executable, "-m", "scripts.evaluate", first.recipe, *first.overrides, *_NO_JUDGES]
        command += ["--out", str(self.folder)]
        return command + [f"--model={name}={model}" for name, model in self.models]


def grid_sweeps(grid: Grid) -> list[GridSweep]:
    """Every sweep of a grid, seed by seed; none where its recipe sets no `evaluation.sweep.arms`.

    Policies that are not trained are the same under every seed, and are asked under the first alone. ConfigError for
    an arm that cannot be evaluated.
    """
    groups: dict[str, list[ArmRun]] = {}
    for run in grid.runs:
        if run.config.evaluation.sweep.arms != "none" and (run.trains or run.seed == grid.runs[0].seed):
            _check(run)
            groups.setdefault(json.dumps([run.seed, _asked(run)], sort_keys=True), []).append(run)
    return [GridSweep(tuple(runs)) for runs in groups.values()]


def _check(run: ArmRun) -> None:
    where = f"{run.recipe}: evaluation.sweep.arms = {run.config.evaluation.sweep.arms}"
    if not re.fullmatch(MODEL_NAME, run.arm) or run.arm == BASE:
        raise ConfigError(
            f"{where}: the arm {run.arm!r} names a model, by letters, digits, dots and dashes, and not {BASE!r};"
            " give its labels other names"
        )
    if run.config.prompts.heldout_count == 0:
        raise ConfigError(f"{where}: asks held-out prompts, but prompts.heldout_count is 0; hold some out, or set none")
    if kinds := run.config.reward.joint_kinds:
        raise ConfigError(
            f"{where}: rewards of kind {' and '.join(kinds)} compare within one list alone; set none, or another reward"
            f" ({SCORES_EACH})"
        )


def _asked(run: ArmRun) -> dict[str, Any]:
    """The knobs on which the samples of an arm's model depend; arms that are not trained differ by their model."""
    apart = (*NOT_SEEN, *_RECKONED) if run.trains else (*NOT_SEEN, *_RECKONED, "policy.model")
    knobs = flat_knobs(run.config).items()
    return {key: value for key, value in knobs if key.startswith((*SAMPLED, _SWEEP)) and not key.startswith(apart)}


def _hash(file: Path) -> str:
    return f"{stable_hash(file.read_text(encoding='utf-8')):016x}" if file.is_file() else ""


def sweep_results(sweeps: Sequence[GridSweep]) -> list[SweepResult]:
    """Those that are there and of the arms as they are. DataError for a damaged one, or one made with other knobs."""
    found = []
    for sweep in sweeps:
        if sweep.result.is_file():
            result = SweepResult.read(sweep.result)
            check_knobs(sweep.knobs, result.knobs, sweep.result)
            asked = sweep.sweep.model_dump(mode="json")
            if result.fingerprints == sweep.fingerprints and result.results["sweep"] == asked:
                found.append(result)
    return found


def run_sweeps(sweeps: Sequence[GridSweep], say: Callable[[str], None]) -> None:
    """Until every sweep has its result. DataError for an arm whose model is gone, TrainingError when one fails."""
    from actors.evaluation_results import RESULTS_FILE

    done = {(result.name, result.seed) for result in sweep_results(sweeps)}
    for number, sweep in enumerate(sweeps, start=1):
        if (sweep.name, sweep.seed) in done:
            continue
        for run in sweep.runs:
            if run.trains and not (run.folder / "model").is_dir():
                raise DataError(f"{run.folder} has no model any more; remove {run.result} to train the arm again")
        names = ", ".join(name for name, _ in sweep.models)
        say(f"[sweep {number}/{len(sweeps)}] {names}, seed {sweep.seed}")
        started = time.time()
        run_logged(sweep.command, sweep.folder.with_name(f"{sweep.folder.name}.log"), f"sweep of {names}")
        results = _kept(json.loads((sweep.folder / RESULTS_FILE).read_text(encoding="utf-8")))
        told = made(time.time() - started)
        result = SweepResult(sweep.name, sweep.seed, sweep.fingerprints, results, sweep.knobs, told)
        write_result(sweep.result, result.to_json())


def _kept(results: Mapping[str, Any]) -> dict[str, Any]:
    """Without the folders of models, and what judges said."""
    models = {
        name: {key: value for key, value in model.items() if key != "model"}
        for name, model in results["models"].items()
    }
    return {key: value for key, value in results.items() if key != "judges"} | {"models": models}
