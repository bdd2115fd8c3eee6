"""`rows`: steps over short lists, several of which share a row (`training.shared_row_tokens`), against a row a list.

What lists that share a row save is passes, each of which adds to every gradient once. Engines of both kinds stand in
one Ray Train worker and take the same steps by turns; their losses must agree, for what a row holds changes no gradient
but by rounding.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.benchmarks.lists import random_list
from scripts.benchmarks.measuring import BenchmarkError, Comparison, Result, Series, in_own_process, in_turns
from scripts.benchmarks.trainer import (
    LOSS_TOLERANCE,
    RATE,
    WorkerWork,
    in_train_worker,
    prepared_policy,
    trainer_config,
)

BUDGETS = (1024, 2048)  # tokens of a shared row: the quickstart's, and the long recipe's
ALONE = "a row a list"


@dataclass(frozen=True)
class ShortLists:
    """The work of a step: the quickstart's by default."""

    policy: str  # folder
    dtype: str
    repetitions: int
    lists: int = 12
    candidates: int = 4
    prompt_tokens: int = 56
    response_tokens: int = 32
    warm_ups: int = 1

    def step(self) -> tuple[Any, ...]:
        vocabulary = json.loads((Path(self.policy) / "config.json").read_text())["vocab_size"]
        shape = {"prompt_tokens": self.prompt_tokens, "response_tokens": self.response_tokens}
        return tuple(random_list(number, self.candidates, vocabulary, **shape) for number in range(self.lists))


def run_rows(policy: str, dtype: str, repetitions: int) -> Result:
    """A row of the table for each budget."""
    folder, dtype = prepared_policy(policy, dtype)
    work = ShortLists(str(folder), dtype, repetitions)
    found = in_own_process(rows_side, vars(work))
    sides = {label: Series(label, tuple(values)) for label, values in found["seconds"].items()}
    alone = sides.pop(ALONE)
    what = f"{work.lists} lists of {work.candidates} x {work.response_tokens} tokens"
    compared = [Comparison(f"step of {what}, {label}", "s", side, alone) for label, side in sides.items()]
    settings = {**vars(work), "policy": folder.name, "budgets": list(BUDGETS), "rate": RATE}
    return Result("rows", settings, tuple(compared), (f"losses at most {found['apart']:.1e} apart, relative",))


def rows_side(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of each kind's steps, in lists by their names, and how far apart their losses are."""
    work = ShortLists(**settings)
    found = in_train_worker(_steps_by_turns, trainer_config(work.policy, work.dtype), work)
    if work.dtype == "float32" and not found["apart"] <= LOSS_TOLERANCE:  # bfloat16 rounds other rows otherwise
        raise BenchmarkError(f"losses are {found['apart']:.1e} apart, over {LOSS_TOLERANCE:g}: {found['losses']}")
    return found


def _steps_by_turns(settings: dict[str, Any]) -> None:
    """In a Ray Train worker."""
    from actors.trainer_engine import TrainerEngine
    from actors.work import StepWork

    spec: WorkerWork = settings["spec"]
    work: ShortLists = spec.work
    lists = work.step()
    losses: dict[str, list[float]] = {}
    step = StepWork(0, 0, 0, lists, tuple(item.prompt.id for item in lists), 0.0)

    def side(budget: int) -> Any:
        knobs = spec.config.model_copy(
            update={"training": spec.config.training.model_copy(update={"shared_row_tokens": budget})}
        )
        engine = TrainerEngine(knobs, Path(work.policy), 0, 1)
        engine.load_reference(None)
        told = losses.setdefault(str(budget), [])

        def take() -> float:
            started = time.perf_counter()
            metrics, _ = engine.step(replace(step, position=len(told)), RATE, "reference", on_policy=True)
            told.append(metrics["train/loss"])
            return time.perf_counter() - started

        return take

    sides = {ALONE: side(0)} | {f"rows of {budget}": side(budget) for budget in BUDGETS}
    found = in_turns(sides, work.repetitions, work.warm_ups)
    alone, *others = losses.values()
    apart = max(abs(a - b) / abs(b) for other in others for a, b in zip(other, alone, strict=True))
    seconds = {label: series.values for label, series in found.items()}
    Path(spec.target).write_text(json.dumps({"seconds": seconds, "losses": losses, "apart": apart}))
