"""`overlap`: the wall time of runs whose phases overlap, against the larger of their phases alone, one core each.

The phases alone are those of a run of the same recipe with `overlap: none`, where the trainer is idle while all prompts
of an iteration are sampled and ranked, and the samplers are while it trains on the lists that wait for it: generation
alone is the time in which some sampler or reward actor works, training alone that in which some rank does. The time of
an overlapping run is from the first work of any actor to the end of the last; starting is left out on both sides.
On a CPU a sampler is bound to core 0 and the trainer has one thread. Each list is trained on once. There is no warm-up:
every run starts its own processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import get_args

from larpo.config import Config
from larpo.recipe import load_config
from larpo.run_log import RunLog
from scripts.benchmarks.measuring import Comparison, Result, Series, in_turns
from scripts.benchmarks.runs import MAKERS, QUIET, align, from_first_to_last, worked

TARGET = "<= 1.10"
ONE_CORE_EACH = ('samplers.cpu_cores="0"', "training.threads=1")
ONE_PASS = ("training.epochs=1",)  # later ones train what is older than `async` allows
ALONE = "none"


def overlapping_modes() -> tuple[str, ...]:
    """The ways to run in which phases overlap, as the configuration knows them."""
    return tuple(mode for mode in get_args(Config.model_fields["overlap"].annotation) if mode != ALONE)


def run_overlap(recipe: str, overrides: Sequence[str], repetitions: int) -> Result:
    """Raises ConfigError for a recipe that cannot be used, BenchmarkError when a run fails."""
    logs: dict[str, list[RunLog]] = {mode: [] for mode in (ALONE, *overlapping_modes())}
    knobs = [*overrides, *ONE_CORE_EACH, *ONE_PASS]
    for mode in logs:
        load_config(recipe, [*knobs, *QUIET, f"overlap={mode}"])
    sides = {mode: partial(_run, mode, recipe, knobs, logs[mode]) for mode in logs}
    found = in_turns(sides, repetitions, warm_ups=0)
    alone = Series("larger of both alone", tuple(max(phases_alone(log)) for log in logs[ALONE]))
    rows = tuple(
        Comparison(f"{recipe}, overlap: {mode}", "s", Series(mode, found[mode].values), alone, TARGET)
        for mode in overlapping_modes()
    )
    notes = [_alone_note(logs[ALONE]), *(_shares_note(mode, of_mode) for mode, of_mode in logs.items())]
    settings = {"recipe": recipe, "overrides": knobs, "repetitions": repetitions}
    return Result("overlap", settings, rows, tuple(notes))


def phases_alone(log: RunLog) -> tuple[float, float]:
    """Seconds of generation and of training in a run whose phases take turns."""
    return worked(log.spans, *MAKERS), worked(log.spans, "trainer")


def _run(mode: str, recipe: str, knobs: Sequence[str], logs: list[RunLog]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        outcome = align(recipe, [*knobs, f"overlap={mode}"], Path(folder))
    logs.append(outcome.log)
    return from_first_to_last(outcome.log.spans)


def _alone_note(logs: Sequence[RunLog]) -> str:
    generation, training = zip(*(phases_alone(log) for log in logs), strict=True)
    return f"alone: generation {mean(generation):.1f} s, training {mean(training):.1f} s (means)"


def _shares_note(mode: str, logs: Sequence[RunLog]) -> str:
    """Mean busy shares over iterations and runs, as metrics.jsonl has them."""
    records = [record for log in logs for record in log.iterations]
    names = ("busy/sampler", "busy/reward", "busy/trainer", "busy/overlap", "busy/overlap_efficiency")
    told = {name: [float(record[name]) for record in records if name in record] for name in names}
    return f"{mode}: " + ", ".join(f"{name} {mean(values):.2f}" for name, values in told.items() if values)
