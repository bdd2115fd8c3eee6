"""The stream of ranked candidate lists between the conductor and the trainer's ranks.

Lists are on disk before they are offered. Each rank asks for the work at a position; the first to ask has it formed,
the others get their share of the same. Work is one optimizer step, the end of an iteration, or the end of the run, so
that a rank that waits for lists is not inside a collective. The trainer's checkpoint holds the `Journal`; giving it
back with `restore` rolls the stream back to that point.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.work import IterationEnd, Journal, RunEnd, StepWork, StreamStatus, Work, read_references, write_references
from larpo.config import Config
from larpo.errors import PhaseTimeout, TrainingError
from larpo.lists import training_list
from larpo.memory import with_references
from larpo.objective_table import get_spec
from larpo.packing import deal
from larpo.records import list_parts, next_part_number, read_lists, write_part
from larpo.types import CandidateList, stable_hash


class ListStream:
    """Wrapped by `ray.remote` where it is placed; every method is a coroutine on one event loop."""

    def __init__(self, config: Config, lists_folder: str) -> None:
        self._config, self._folder = config, Path(lists_folder)
        self._queue: deque[CandidateList] = deque()  # trainable, not yet in a step
        self._iteration, self._epoch = 0, 0
        self._opened, self._closed = -1, -1  # newest iteration opened by the conductor; newest closed
        self._journal = Journal()
        self._works: dict[int, tuple[Work, list[CandidateList]]] = {}  # the newest two positions
        self._changed = asyncio.Condition()
        self._restored = False
        self._rollbacks = 0  # a rank that asked before the newest one is gone
        self._dropped: dict[str, int] = {}
        self._behind: dict[str, float] = {}  # prompt id -> share of its pass behind its list, dropped lists too
        self._trained = -1  # newest iteration whose end the trainer reported
        self._waits = {"producer": 0.0, "consumer": 0.0}
        self._reports: list[Mapping[str, Any]] = []
        self._alarms: list[str] = []
        self._references = read_references(self._folder.parent)
        self._error: str | None = None
        self._heard = time.monotonic()  # from any rank
        self._progressed = time.monotonic()  # lists came, or work was formed
        self._asking = 0  # ranks that wait for work

    # The conductor's side.

    async def open_iteration(self, iteration: int) -> tuple[str, ...]:
        """Begin an iteration; returns the prompt ids whose lists are on disk already."""
        async with self._changed:
            self._opened = iteration
            self._dropped, self._behind = {}, {}
            self._enqueue_recorded()
            self._progress()
        return tuple(record.prompt.id for record in self._recorded(iteration))

    async def offer(self, lists: Sequence[CandidateList]) -> None:
        """Write the lists to disk, then wait until there is room for those that carry a signal."""
        iteration = lists[0].iteration
        part = next_part_number(self._folder, iteration)
        await asyncio.to_thread(write_part, self._folder, lists, iteration, part)
        trainable = self._trainable(lists)
        started = time.monotonic()
        async with self._changed:
            self._progress()
            self._place(lists)
            if self._config.overlap == "stream":
                await self._wait(lambda: self._has_room(len(trainable)), "room in the stream")
            self._waits["producer"] += time.monotonic() - started
            if self._iteration == iteration and self._epoch == 0:
                self._append(trainable)
            self._progress()

    def _has_room(self, arriving: int) -> bool:
        """The bound holds, or the trainer has too little for a step: then both would wait for each other."""
        waiting = len(self._queue)
        return waiting + arriving <= self._config.stream.capacity or waiting < self._config.training.lists_per_step

    def _place(self, lists: Sequence[CandidateList]) -> None:
        """Where each list stands in the first pass of its iteration, in the order in which they are on disk."""
        for item in lists:
            place = len(self._behind) + 1
            self._behind.setdefault(item.prompt.id, min(1.0, place / self._config.training.prompts_per_iteration))

    def _progress(self) -> None:
        """Something moved: whoever waits looks again, and its patience begins anew."""
        self._progressed = time.monotonic()
        self._changed.notify_all()

    async def close_iteration(self, iteration: int) -> None:
        """No more lists of this iteration will be offered."""
        async with self._changed:
            self._closed = iteration
            self._progress()

    async def fail(self, message: str) -> None:
        """Wake every rank that waits, with the cause why no list will come."""
        async with self._changed:
            self._error = self._error or message
            self._changed.notify_all()

    async def wait_trained(self, iteration: int, timeout_s: float) -> bool:
        """Whether the trainer has reported the end of the iteration, waiting for it at most `timeout_s`."""
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._error is not None or self._trained >= iteration), timeout_s
                )
            except TimeoutError:
                return False
        self._raise_error()
        return True

    async def status(self, moving: bool = False) -> StreamStatus:
        """What the monitor shows; `moving` tells that the samplers are at work, if only on held-out prompts."""
        if moving:
            self._progressed = time.monotonic()
        reports, self._reports = tuple(self._reports), []
        alarms, self._alarms = tuple(self._alarms), []
        return StreamStatus(
            waiting=len(self._queue),
            producer_wait_seconds=self._waits["producer"],
            consumer_wait_seconds=self._waits["consumer"],
            dropped=dict(self._dropped),
            trained_iterations=self._trained + 1,
            trainer_started=self._restored,
            trainer_silent_s=0.0 if self._asking else time.monotonic() - self._heard,
            reports=reports,
            alarms=alarms,
            error=self._error,
        )

    async def references(self) -> dict[str, tuple[float, str]]:
        """Reference log-probabilities computed so far: candidate id -> (log-probability, fingerprint)."""
        return self._references

    # The trainer's side.

    async def restore(self, journal: Journal) -> None:
        """Roll back (or start) at the journal: lists on disk that it has not consumed are offered again."""
        self._heard = time.monotonic()
        async with self._changed:
            self._works.clear()
            self._journal = journal
            self._iteration, self._epoch = journal.iteration, journal.epoch
            self._trained = journal.iteration - 1
            self._queue.clear()
            self._dropped, self._behind = {}, {}
            self._restored = True
            self._rollbacks += 1
            if self._epoch > 0:
                self._start_epoch(self._epoch)
            else:
                self._enqueue_recorded()
            self._progress()

    async def next_work(self, rank: int, ranks: int, position: int) -> Work:
        """This rank's share of the work at `position`, formed when the first rank asks.

        Raises PhaseTimeout when nothing moves for `timeouts.stream_idle_s`, TrainingError when the conductor failed.
        """
        started, rollbacks = time.monotonic(), self._rollbacks
        self._asking += 1
        try:
            async with self._changed:
                await self._wait(
                    lambda: self._rollbacks > rollbacks or position in self._works or self._ready(), "lists"
                )
                if self._rollbacks > rollbacks:
                    raise RuntimeError(f"rank {rank} waited at position {position} while the stream was rolled back")
                work, lists = self._work_at(position)
        finally:
            self._asking -= 1
            self._heard = time.monotonic()
        if rank == 0:
            self._waits["consumer"] += self._heard - started
        if not isinstance(work, StepWork):
            return work
        shares = deal([_tokens(item) for item in lists], ranks)
        mine = tuple(lists[index] for index in shares[rank])
        return StepWork(**{**vars(work), "lists": mine})

    def _work_at(self, position: int) -> tuple[Work, list[CandidateList]]:
        """The work at a position, formed when the first rank asks; that of the position before is kept too."""
        if position not in self._works:
            self._works = {p: work for p, work in self._works.items() if p == position - 1}
            self._works[position] = self._form(position)
            self._progress()
        return self._works[position]

    async def report(
        self,
        record: Mapping[str, Any],
        references: Mapping[str, tuple[float, str]],
        alarms: Sequence[str] = (),
    ) -> None:
        """A rank's record of a step, the reference log-probabilities it computed, and what the user should know."""
        self._heard = time.monotonic()
        self._reports.append(record)
        self._references.update(references)
        self._alarms.extend(alarms)

    async def trained(self, iteration: int) -> None:
        """The trainer has published and checkpointed the end of `iteration`."""
        await asyncio.to_thread(write_references, self._folder.parent, dict(self._references))
        async with self._changed:
            self._trained = iteration
            self._changed.notify_all()

    async def _wait(self, ready: Callable[[], bool], what: str) -> None:
        """Until `ready`, as long as something moves within `timeouts.stream_idle_s`, or the trainer is at work.

        Whether that work takes too long is the monitor's to tell.
        """
        limit, started = self._config.timeouts.stream_idle_s, time.monotonic()
        while True:
            moved = max(started, self._progressed, self._heard)
            try:
                left = max(0.05, moved + limit - time.monotonic())
                await asyncio.wait_for(self._changed.wait_for(lambda: self._error is not None or ready()), left)
                return self._raise_error()
            except TimeoutError as error:
                busy = self._restored and not self._asking
                if not busy and max(self._progressed, self._heard) <= moved:
                    message = f"waited for {what}, and nothing moved for {limit:g} s (timeouts.stream_idle_s)"
                    raise PhaseTimeout(message) from error

    def _raise_error(self) -> None:
        if self._error is not None:
            raise TrainingError(self._error)

    def _ready(self) -> bool:
        """Whether the next work can be formed."""
        if not self._restored:
            return False
        if self._iteration >= self._config.training.iterations:
            return True
        if self._opened < self._iteration:
            return False
        closed = self._closed >= self._iteration
        full_step = len(self._queue) >= self._config.training.lists_per_step
        return closed or (full_step and self._config.overlap == "stream")

    def _form(self, position: int) -> tuple[Work, list[CandidateList]]:
        if self._iteration >= self._config.training.iterations:
            return RunEnd(position), []
        while not self._queue and self._epoch + 1 < self._config.training.epochs:
            self._start_epoch(self._epoch + 1)
        if not self._queue:
            return self._end_iteration(position), []
        count = min(self._config.training.lists_per_step, len(self._queue))
        lists = [self._queue.popleft() for _ in range(count)]
        self._changed.notify_all()
        key = f"{self._iteration}/{self._epoch}"
        used = self._journal.used(self._iteration, self._epoch) + tuple(item.prompt.id for item in lists)
        consumed = {**self._journal.consumed, key: used}
        self._journal = Journal(position + 1, self._iteration, self._epoch, consumed)
        share = self._planned_share(lists[-1])
        return StepWork(position, self._iteration, self._epoch, (), count, share, self._journal), lists

    def _end_iteration(self, position: int) -> IterationEnd:
        ended = self._iteration
        self._iteration, self._epoch = ended + 1, 0
        self._journal = Journal(position + 1, self._iteration, 0, self._journal.consumed)
        self._dropped, self._behind = {}, {}
        self._enqueue_recorded()
        return IterationEnd(position, ended, self._journal)

    def _planned_share(self, last: CandidateList) -> float:
        """Share of the planned passes behind a step that ends with this list, whatever was dropped before it."""
        training = self._config.training
        passes = self._iteration * training.epochs + self._epoch
        return (passes + self._behind[last.prompt.id]) / (training.iterations * training.epochs)

    def _start_epoch(self, epoch: int) -> None:
        """Later epochs take every trainable list of the iteration again, shuffled by the seed."""
        self._epoch = epoch
        lists = self._trainable(self._recorded(self._iteration), count_dropped=False)
        lists.sort(key=lambda item: item.prompt.id)
        random.Random(stable_hash(self._config.run.seed, self._iteration, epoch)).shuffle(lists)
        self._behind = {item.prompt.id: (place + 1) / len(lists) for place, item in enumerate(lists)}
        used = set(self._journal.used(self._iteration, epoch))
        self._queue.extend(item for item in lists if item.prompt.id not in used)

    def _recorded(self, iteration: int) -> list[CandidateList]:
        records = [record for part in list_parts(self._folder, iteration) for record in read_lists(part)]
        return [with_references(record, self._references) for record in records]

    def _enqueue_recorded(self) -> None:
        """Offer again what is on disk of the first epoch and not consumed."""
        if self._restored and self._epoch == 0 and self._opened >= self._iteration:
            recorded = self._recorded(self._iteration)
            self._place(recorded)
            self._append(self._trainable(recorded))

    def _append(self, lists: Sequence[CandidateList]) -> None:
        """Queue lists of the first epoch, each once, whether it came from the conductor or from disk."""
        taken = set(self._journal.used(self._iteration, 0)) | {item.prompt.id for item in self._queue}
        self._queue.extend(item for item in lists if item.prompt.id not in taken)

    def _trainable(self, lists: Sequence[CandidateList], count_dropped: bool = True) -> list[CandidateList]:
        config, uses = self._config, get_spec(self._config.objective.name).uses
        trainable = []
        for item in lists:
            selected, reason = training_list(item, config.lists, config.sampling, seed=config.run.seed, uses=uses)
            if selected is not None:
                trainable.append(selected)
            elif count_dropped:
                self._dropped[reason] = self._dropped.get(reason, 0) + 1
        return trainable


def _tokens(item: CandidateList) -> int:
    return len(item.prompt_token_ids) + sum(len(candidate.token_ids) for candidate in item.candidates)
