"""`job`: a whole run of a recipe with `overlap: stream`, against the same work done phase by phase by scripts.

The other side is `phases.py`: for every iteration a process that samples, one that ranks and one that trains, each
loading what it needs and allowed all cores. Both sides have the same prompts, samples, token limits and steps at most;
sampling is random, so that the tokens sampled differ and are told, as is the wall time that they took. Held-out
evaluation is off on both. Wall time is from the start of the first process to the end of the last. There is no warm-up:
the start is a part of the job.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from larpo.config import Config
from larpo.errors import ConfigError
from larpo.objective_table import get_spec
from larpo.recipe import load_config
from scripts.benchmarks.measuring import Comparison, Result, Series, in_own_process, in_turns, rates
from scripts.benchmarks.phases import PhaseWork, rank_phase, sample_phase, train_phase
from scripts.benchmarks.runs import QUIET, align, by_kind, sampled_tokens

TARGET = ">= 2.5"
PHASES = (sample_phase, rank_phase, train_phase)


@dataclass
class Told:
    """What one side says beside its seconds: tokens sampled and steps of each repetition, and where time went."""

    tokens: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    parts: str = ""  # of the newest repetition

    def note(self, side: str) -> str:
        return f"{side}: tokens sampled {self.tokens}, optimizer steps {self.steps}; the newest: {self.parts}"


def run_job(recipe: str, overrides: Sequence[str], repetitions: int) -> Result:
    """Raises ConfigError for a recipe whose work the scripts cannot do, BenchmarkError when a side fails."""
    knobs = (*overrides, "overlap=stream")
    check_recipe(load_config(recipe, [*knobs, *QUIET]))
    streamed, phased = Told(), Told()
    sides = {"larpo": partial(_streamed, recipe, knobs, streamed), "scripts": partial(_phased, recipe, knobs, phased)}
    ours, other = in_turns(sides, repetitions, warm_ups=0).values()
    fast, slow = (rates(series.label, series.values, 3600.0) for series in (ours, other))
    rows = (
        Comparison(f"{recipe}, whole", "jobs/h", fast, slow, TARGET),
        Comparison(f"{recipe}, by wall time", "sampled tokens/s", _speed(ours, streamed), _speed(other, phased)),
    )
    settings = {"recipe": recipe, "overrides": list(knobs), "repetitions": repetitions}
    return Result("job", settings, rows, (streamed.note("larpo"), phased.note("scripts")))


def check_recipe(config: Config) -> None:
    """ConfigError for what the scripts of the other side leave out."""
    spec = get_spec(config.objective.name)
    refused = {
        "policy.lora.rank": config.policy.lora.rank > 0,
        "lists.negatives": config.lists.negatives != "sampled",
        "reward.kind": config.reward.kind == "vllm",
        "objective.name": spec.divergence or spec.per != "list",
    }
    for knob, is_refused in refused.items():
        if is_refused:
            raise ConfigError(f"job: the scripts of the other side do not know this value of {knob}; leave it out")


def _speed(series: Series, told: Told) -> Series:
    values = zip(told.tokens, series.values, strict=True)
    return Series(series.label, tuple(tokens / duration for tokens, duration in values))


def _streamed(recipe: str, overrides: Sequence[str], told: Told) -> float:
    """Seconds of the run as a user starts it."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = align(recipe, overrides, Path(folder))
    told.tokens.append(outcome.tokens)
    told.steps.append(len(outcome.log.steps))
    told.parts = by_kind(outcome.log.spans)
    return outcome.seconds


def _phased(recipe: str, overrides: Sequence[str], told: Told) -> float:
    """Seconds of the scripts, one after another, and of reading the recipe's prompts once before them."""
    from actors.preparation import prepare

    parts: dict[str, float] = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(load_config(recipe, [*overrides, *QUIET]), Path(folder) / "run", resumed=False)
        parts["reading the prompts"] = time.perf_counter() - started
        model, steps = run.policy.path, 0
        for iteration in range(run.config.training.iterations):
            work = PhaseWork(run, iteration, str(model), folder)
            for phase in PHASES:
                steps += _in_a_process(phase, work, parts)
            model = work.trained
        seconds = time.perf_counter() - started
        told.tokens.append(sampled_tokens(work.lists))
    told.steps.append(steps)
    told.parts = ", ".join(f"{part} {value:.1f} s" for part, value in parts.items())
    return seconds


def _in_a_process(phase: Any, work: PhaseWork, parts: dict[str, float]) -> int:
    """The phase, its seconds added to `parts`, what is not the phase's own as that of processes; the steps it took."""
    started = time.perf_counter()
    found = in_own_process(phase, vars(work))
    whole = time.perf_counter() - started
    own = {**found["seconds"], "starting and ending processes": whole - sum(found["seconds"].values())}
    for part, value in own.items():
        parts[part] = parts.get(part, 0.0) + value
    return len(found.get("losses", ()))
