"""Held-out lists through the trainer's own packed log-probabilities: what a run on a dataset is judged by.

The ranks do it, since they hold the policy: before the first step, and when the weights are published. A result is a
file in the run folder, so a run that goes on does not do it again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from actors.rank_home import RankHome
from larpo.bound_objective import bind
from larpo.config import Config
from larpo.list_evaluation import ListResult, pair_accuracy
from larpo.list_step import PackedList, list_loss
from larpo.lists import training_list
from larpo.memory import with_references
from larpo.records import list_parts, read_lists
from larpo.types import CandidateList

_COLUMNS = 5  # loss, weight, and, with whether there is a pair, the two accuracies


def heldout_folder(run_dir: Path) -> Path:
    return run_dir / "heldout"


def result_file(run_dir: Path, iteration: int) -> Path:
    """Where the result lies of the policy that `iteration` begins with."""
    return run_dir / "evaluation" / f"given-{iteration:04d}.json"


class HeldoutLists:
    """The held-out lists of a run, one rank's share of the work; a run without any does nothing."""

    def __init__(self, config: Config, home: RankHome, rank: int, ranks: int) -> None:
        self._config, self._home, self._rank, self._ranks = config, home, rank, ranks
        self._run_dir = home.home.folder
        self._objective = bind(config.objective)
        folder = heldout_folder(self._run_dir)
        home.fetch_below(folder.name, "evaluation")
        self._lists = [self._trained_on(item) for item in read_lists(folder)] if list_parts(folder) else []

    def _trained_on(self, item: CandidateList) -> CandidateList:
        """What the objective would see of it; the list itself where nothing would be learned."""
        config = self._config
        uses = self._objective.spec.uses
        chosen, _ = training_list(item, config.lists, config.sampling, seed=config.run.seed, uses=uses)
        return item if chosen is None else chosen

    def forget_after(self, iteration: int) -> None:
        """Remove the results of later policies: a run that goes on from before them makes others."""
        later = result_file(self._run_dir, iteration + 1)
        if self._rank == 0 and later.exists():
            self._home.home.discard(later)  # a run on a dataset has one iteration

    def evaluate(self, engine: Any, iteration: int, reference_name: str) -> bool:
        """Judge the engine's policy, unless that is done; every rank calls it. Returns whether there was work."""
        file = result_file(self._run_dir, iteration)
        if not self._lists or engine.maximum([int(file.exists())])[0]:
            return False
        numbers = torch.zeros(len(self._lists), _COLUMNS, dtype=torch.float64, device=engine.device)
        mine = range(self._rank, len(self._lists), self._ranks)
        share = tuple(self._lists[number] for number in mine)
        scored = engine.log_probs(share, reference_name)
        divergence = engine.divergence(share)  # by then ranks have agreed on calls, and dropout is off
        for number, (item, log_probs_M) in zip(mine, scored, strict=True):
            numbers[number] = torch.tensor(self._judge(item, log_probs_M, divergence), dtype=torch.float64)
            self._lists[number] = _with_reference(self._lists[number], item.reference_M, reference_name)
        torch.distributed.all_reduce(numbers)
        if self._rank == 0:
            _write(self._result(numbers.tolist(), iteration), file)
        self._home.publish(file)
        engine.barrier()
        return True

    def _judge(self, item: PackedList, log_probs_M: Tensor, divergence: Tensor | None) -> Sequence[float]:
        loss, weight = float(list_loss(self._objective, item, divergence, log_probs_M)), 1.0
        if self._objective.spec.per == "token":
            weight = float(sum(len(candidate.token_ids) for candidate in item.source.candidates))
        rewards = item.rewards_M.tolist()
        by_score = pair_accuracy(self._objective.scores(log_probs_M, item.reference_M).tolist(), rewards)
        by_log_prob = pair_accuracy(log_probs_M.tolist(), rewards)
        return loss / weight, weight, float(by_score is not None), by_score or 0.0, by_log_prob or 0.0

    def _result(self, rows: Sequence[Sequence[float]], iteration: int) -> ListResult:
        paired = all(row[2] for row in rows)
        return ListResult(
            label="base policy" if iteration == 0 else "trained policy",
            list_ids=tuple(item.id for item in self._lists),
            losses_P=tuple(row[0] for row in rows),
            weights_P=tuple(row[1] for row in rows),
            score_accuracy_P=tuple(row[3] for row in rows) if paired else (),
            log_prob_accuracy_P=tuple(row[4] for row in rows) if paired else (),
        )


def _with_reference(item: CandidateList, reference_M: Tensor | None, name: str) -> CandidateList:
    """The list with its reference log-probabilities, which the next evaluation takes from it."""
    if reference_M is None:
        return item
    pairs = zip(item.candidates, reference_M.tolist(), strict=True)
    return with_references(item, {candidate.id: (value, name) for candidate, value in pairs})


def _write(result: ListResult, file: Path) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with partial.open("w") as out:
        out.write(result.to_json())
        out.flush()
        os.fsync(out.fileno())
    partial.rename(file)
