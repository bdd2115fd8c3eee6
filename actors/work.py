"""What the stream gives the trainer's ranks to do, what the trainer has done, and what the stream says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.published import write_durably
from actors.vitals import NOT_KNOWN, Vitals
from larpo.types import CandidateList


@dataclass(frozen=True)
class Journal:
    """Where the trainer is: the next position, and which prompts each (iteration, epoch) has consumed.

    It grows with the run: stream and ranks keep their own, and work brings what it adds.
    """

    position: int = 0
    iteration: int = 0
    epoch: int = 0
    consumed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # "iteration/epoch" -> prompt ids

    def used(self, iteration: int, epoch: int) -> tuple[str, ...]:
        return self.consumed.get(f"{iteration}/{epoch}", ())

    @property
    def begins_iteration(self) -> bool:
        """Whether nothing of the iteration is trained yet."""
        return self.epoch == 0 and not self.used(self.iteration, 0)

    def after(self, work: StepWork | IterationEnd) -> Journal:
        """The journal when that work, which is the one at its position, is done."""
        if isinstance(work, IterationEnd):
            return Journal(work.position + 1, work.iteration + 1, 0, self.consumed)
        used = self.used(work.iteration, work.epoch) + work.prompt_ids
        consumed = {**self.consumed, f"{work.iteration}/{work.epoch}": used}
        return Journal(work.position + 1, work.iteration, work.epoch, consumed)


@dataclass(frozen=True)
class StepWork:
    """One optimizer step: this rank's lists, and what all ranks agree on."""

    position: int
    iteration: int
    epoch: int
    lists: tuple[CandidateList, ...]
    prompt_ids: tuple[str, ...]  # of the global batch
    planned_share: float  # share of the run's planned lists behind this step, for the schedule
    publication: int = 0  # publications within the iteration before this step (overlap: async)
    publishes: bool = False  # the weights after this step are published

    @property
    def list_count(self) -> int:
        """Lists of the global batch: the divisor of the loss."""
        return len(self.prompt_ids)


@dataclass(frozen=True)
class IterationEnd:
    """All epochs of an iteration are trained: publish, checkpoint."""

    position: int
    iteration: int


@dataclass(frozen=True)
class RunEnd:
    """Nothing is left to train."""

    position: int


Work = StepWork | IterationEnd | RunEnd


@dataclass(frozen=True)
class Failure:
    """How a rank of the trainer ended before its time."""

    rank: int
    reason: str
    actor_id: str | None  # Ray's, where its process is gone


@dataclass(frozen=True)
class StreamStatus:
    """Snapshot for the console and the metrics."""

    waiting: int
    producer_wait_seconds: float
    consumer_wait_seconds: float
    trained_iterations: int
    trainer_started: bool  # a group has its place in the stream: none at first, none while one starts again
    trainer_silent_s: float  # since a rank last spoke; 0 while one waits for lists
    reports: tuple[Mapping[str, Any], ...]  # of the trainer's ranks, since the last call
    alarms: tuple[str, ...]
    error: str | None  # why no list will be trained any more
    failures: tuple[Failure, ...] = ()  # of the trainer's ranks, since the last call
    vitals: Vitals = NOT_KNOWN  # of the stream's own process


def _references_file(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "reference_log_probs.json"


def read_references(run_dir: Path) -> dict[str, tuple[float, str]]:
    """Reference log-probabilities on disk: candidate id -> (log-probability, fingerprint); none is no error."""
    file = _references_file(run_dir)
    return {key: tuple(value) for key, value in json.loads(file.read_text()).items()} if file.exists() else {}


def write_references(run_dir: Path, references: Mapping[str, tuple[float, str]]) -> Path:
    """Replace them, whole or not at all; returns the file."""
    file = _references_file(run_dir)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(file.with_suffix(".partial"), json.dumps(references).encode())
    file.with_suffix(".partial").rename(file)
    return file
