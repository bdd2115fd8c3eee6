"""The stream of ranked candidate lists between the conductor and the trainer's ranks.

Lists are on disk before they are offered. Each rank asks for the work at a position; the first to ask has it formed,
the others get their share of the same. Work is one optimizer step, the end of an iteration, or the end of the run, so
that a rank that waits for lists is not inside a collective. The trainer's checkpoint holds the `Journal`; giving it
back with `restore` rolls the stream back to that point.

The `ListQueue` knows what comes next, `Patience` how long to wait for it; here is who asks, and what the ranks report.

Ray starts the actor again when its process dies, and repeats the calls that were lost with it: all of them may come
twice. The memo and the lists on disk tell the new process how far the conductor is; the ranks hear that their lineage
is gone, and the group that takes their place restores it from its checkpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.garbage import collect_less_often
from actors.list_queue import ListQueue
from actors.memo import Memo
from actors.offers import Offers
from actors.patience import Patience
from actors.policies import roll_back
from actors.titles import show_title
from actors.vitals import vitals
from actors.waits import Waits
from actors.work import Failure, Journal, StepWork, StreamStatus, Work, write_references
from larpo.config import Config
from larpo.dealing import deal
from larpo.home import home_of
from larpo.types import CandidateList

Share = tuple[CandidateList, ...]  # one rank's lists of a step


class ListStream:
    """Wrapped by `ray.remote` where it is placed; every method is a coroutine on one event loop."""

    def __init__(self, config: Config, lists_folder: str, memo: Memo | None = None) -> None:
        collect_less_often()
        self._config, self._folder = config, Path(lists_folder)
        self._home = home_of(config, self._folder.parent)
        self._queue = ListQueue(config, self._folder)
        self._works: dict[int, tuple[Work, list[Share]]] = {}  # the newest two positions
        self._rollbacks = 0  # a rank that asked before the newest one is gone
        self._trained = -1  # newest iteration whose end the trainer reported
        self._waits = Waits()
        self._reports: list[Mapping[str, Any]] = []
        self._alarms: list[str] = []
        self._asking = 0  # ranks that wait for work
        self._patience = Patience(config.timeouts.stream_idle_s, lambda: self._queue.restored and not self._asking)
        self._changed = self._patience.changed
        self._published: tuple[int, int, int] | None = None  # within an iteration: which, version, which publication
        self._offers = Offers(config, self._folder, self._home, self._queue, self._patience, self._waits)
        self._failures: list[Failure] = []
        self._regrouping = False  # ranks ended, and the group that comes after has not restored its place
        self._opened, self._closed, self._ended = -1, -1, False
        self._memo = memo
        self._go_on(memo.read() if memo else {})
        show_title(self.doing)

    def __repr__(self) -> str:
        return f"ListStream of {self._config.stream.capacity} lists"

    def doing(self) -> str:
        """For its process's title."""
        waiting = f", {self._asking} trainer ranks wait" if self._asking else ""
        return f"{len(self._queue)} lists wait{waiting}, {self._trained + 1} iterations trained"

    # The conductor's side.

    async def open_iteration(self, iteration: int) -> tuple[str, ...]:
        """Begin an iteration; returns the prompt ids whose lists are on disk already."""
        async with self._changed:
            recorded = await asyncio.to_thread(self._queue.open, iteration)
            self._offers.open(recorded)
            self._opened = iteration
            self._remember()
            self._patience.progress()
        return recorded

    def _remember(self) -> None:
        if self._memo is not None:
            known: dict[str, Any] = {
                "opened": self._opened,
                "closed": self._closed,
                "ended": self._ended,
                "trained": self._trained,
            }
            known |= {"asked": self._queue.asked, "samplers_at": self._queue.samplers_at}
            self._memo.write(known | {"published": self._published})

    def _go_on(self, known: Mapping[str, Any]) -> None:
        """What the process before this one knew, where there was one; a list that it wrote may not be at the home."""
        if not known:
            return
        self._home.push_below(self._folder.name)
        self._opened, self._closed, self._ended = known["opened"], known["closed"], known["ended"]
        self._trained = known["trained"]
        if self._opened >= 0:
            recorded = self._queue.open(self._opened)
            self._offers.open(recorded)
            asked = known["asked"].items()
            self._queue.asked = {prompt: at for prompt, at in asked if prompt not in recorded}
            self._queue.samplers_at = tuple(known["samplers_at"])
            self._published = known["published"] and tuple(known["published"])
        self._queue.close(self._closed)
        if self._ended:
            self._queue.end()

    async def ask(self, prompt_id: str) -> int:
        """With `overlap: async`: wait until this prompt may go to the samplers; returns the publication it counts as.

        Until its list is offered, the trainer leaves time for it.
        """
        with self._waits.of("producer"):
            async with self._changed:
                known = self._queue.asked
                await self._patience.wait(lambda: prompt_id in known or self._queue.may_ask(), "room for a prompt")
                publication = self._queue.ask(prompt_id)
                self._remember()
        return publication

    async def wait_published(self, iteration: int, version: int, timeout_s: float) -> tuple[int, int] | None:
        """The newest weights published within an iteration, version and publication, when not `version`."""

        def newest() -> tuple[int, int] | None:
            if self._published is None:
                return None
            within, newer, publication = self._published
            return (newer, publication) if within == iteration and newer != version else None

        await self._patience.wait_for(lambda: newest() is not None, timeout_s)
        return newest()

    async def samplers_took(self, iteration: int, publication: int) -> None:
        """Every sampler has the weights of that publication, or newer ones; an iteration begins with its 0th."""
        async with self._changed:
            self._queue.took(iteration, publication)
            self._remember()
            self._patience.progress()

    async def offer(self, lists: Sequence[CandidateList]) -> None:
        """Write the lists to disk, and to the run's home; then wait for room for those that carry a signal.

        With `overlap: async` there is: it was waited for before their prompts were asked for. Ray may repeat the call.
        """
        await self._offers.take(lists)

    async def close_iteration(self, iteration: int) -> None:
        """No more lists of this iteration will be offered."""
        async with self._changed:
            self._queue.close(iteration)
            self._closed = iteration
            self._remember()
            self._patience.progress()

    async def end_run(self) -> None:
        """The run ends early: after the step in progress the ranks hear that nothing is left to train."""
        async with self._changed:
            self._queue.end()
            self._ended = True
            self._remember()
            self._patience.progress()

    async def fail(self, message: str) -> None:
        """Wake every rank that waits, with the cause why no list will come."""
        async with self._changed:
            self._patience.error = self._patience.error or message
            self._changed.notify_all()

    async def wait_trained(self, iteration: int, timeout_s: float) -> bool:
        """Whether the trainer has reported the end of the iteration, waiting for it at most `timeout_s`."""
        return await self._patience.wait_for(lambda: self._trained >= iteration, timeout_s)

    async def status(self, moving: bool = False) -> StreamStatus:
        """What the monitor shows; `moving` tells that the samplers are at work, if only on held-out prompts."""
        if moving:
            self._patience.moved()
        reports, self._reports = tuple(self._reports), []
        alarms, self._alarms = tuple(self._alarms), []
        failures, self._failures = tuple(self._failures), []
        return StreamStatus(
            waiting=len(self._queue),
            producer_wait_seconds=self._waits.seconds("producer"),
            consumer_wait_seconds=self._waits.seconds("consumer"),
            trained_iterations=self._trained + 1,
            trainer_started=self._queue.restored and not self._regrouping,
            trainer_silent_s=0.0 if self._asking else time.monotonic() - self._patience.heard,
            reports=reports,
            alarms=alarms,
            error=self._patience.error,
            failures=failures,
            vitals=vitals(),
        )

    async def references(self) -> dict[str, tuple[float, str]]:
        """Reference log-probabilities computed so far: candidate id -> (log-probability, fingerprint)."""
        return self._queue.references

    # The trainer's side.

    async def restore(self, journal: Journal, step: int | None = None) -> None:
        """Roll back (or start) at the journal: lists on disk that it has not consumed are offered again.

        `step` is the optimizer step that a rank on another node has gone back to: it cannot roll back this node's
        policies and results.
        """
        self._patience.heard = time.monotonic()
        if step is not None and self._home.elsewhere:
            await asyncio.to_thread(roll_back, self._home, journal.iteration, step)
        async with self._changed:
            self._works.clear()
            await asyncio.to_thread(self._queue.restore, journal)
            self._trained = journal.iteration - 1
            self._rollbacks += 1
            self._regrouping = False
            self._patience.progress()

    async def next_work(self, rank: int, ranks: int, position: int) -> Work:
        """This rank's share of the work at `position`, formed when the first rank asks.

        Raises PhaseTimeout when nothing moves for `timeouts.stream_idle_s`, TrainingError when the conductor failed,
        RuntimeError when the group has to go on from its checkpoint.
        """
        if not self._queue.restored:
            raise RuntimeError(f"rank {rank} asked a stream that was started again: its place is in the checkpoint")
        rollbacks = self._rollbacks
        self._asking += 1
        try:
            with self._waits.of("consumer") if rank == 0 else nullcontext():
                async with self._changed:
                    await self._patience.wait(
                        lambda: self._rollbacks > rollbacks or position in self._works or self._queue.is_ready(),
                        "lists",
                    )
                    if self._rollbacks > rollbacks:
                        raise RuntimeError(
                            f"rank {rank} waited at position {position} while the stream was rolled back"
                        )
                    work, shares = await self._work_at(position, ranks)
        finally:
            self._asking -= 1
            self._patience.heard = time.monotonic()
        if not isinstance(work, StepWork):
            return work
        return replace(work, lists=shares[rank])

    async def _work_at(self, position: int, ranks: int) -> tuple[Work, list[Share]]:
        """The work at a position and each rank's lists, dealt when the first rank asks; the one before is kept too."""
        if position not in self._works:
            self._works = {p: work for p, work in self._works.items() if p == position - 1}
            work, lists = await asyncio.to_thread(self._queue.form, position)
            dealt = deal([_tokens(item) for item in lists], ranks)
            self._works[position] = work, [tuple(lists[index] for index in share) for share in dealt]
            self._patience.progress()
        return self._works[position]

    async def report(
        self,
        record: Mapping[str, Any],
        references: Mapping[str, tuple[float, str]],
        alarms: Sequence[str] = (),
    ) -> None:
        """A rank's record of a step, the reference log-probabilities it computed, and what the user should know."""
        self._patience.heard = time.monotonic()
        self._reports.append(record)
        self._queue.references.update(references)
        self._alarms.extend(alarms)

    async def published(self, iteration: int, version: int, publication: int) -> None:
        """The trainer has published weights within an iteration, or those that it begins with as its 0th.

        A conductor that resumes may open the iteration later.
        """
        async with self._changed:
            self._published = (iteration, version, publication)
            self._remember()
            self._patience.progress()

    async def has_published(self, iteration: int) -> bool:
        """Whether samplers may have weights that were published within this iteration."""
        return self._published is not None and self._published[0] == iteration and self._published[2] > 0

    async def group_failed(self, failures: Sequence[Failure]) -> None:
        """Ranks that ended before their time; Ray Train starts the group again, or gives up."""
        self._patience.heard, self._regrouping = time.monotonic(), True
        self._failures.extend(failures)

    async def is_there(self) -> bool:
        """What a rank asks that has waited for long."""
        return True

    async def waits_for_turn(self) -> None:
        """A rank lives, and waits for its turn on the GPU; TrainingError when the run has failed meanwhile."""
        self._patience.heard = time.monotonic()
        self._patience.raise_error()

    async def trained(self, iteration: int) -> None:
        """The trainer has published and checkpointed the end of `iteration`."""
        await asyncio.to_thread(self._keep_references, dict(self._queue.references))
        async with self._changed:
            self._trained = iteration
            self._remember()
            self._changed.notify_all()

    def _keep_references(self, references: Mapping[str, tuple[float, str]]) -> None:
        self._home.push(write_references(self._home.folder, references))


def _tokens(item: CandidateList) -> int:
    return len(item.prompt_token_ids) + sum(len(candidate.token_ids) for candidate in item.candidates)
