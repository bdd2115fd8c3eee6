"""Names what makes no progress, while the limits that end a run are still far.

Everything here is asked of what the monitor knows already: nothing waits, and nothing ends by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from actors.console_page import COMING
from actors.progress import Progress
from actors.work import StreamStatus

NAMED = 4  # prompts or samplers that are named one by one


@dataclass(frozen=True)
class Part:
    """One part of a run: a mark that changes when it gets on, and what it has still to do, empty for nothing."""

    name: str
    mark: Any
    owes: str


class Watchdog:
    """Says when nothing at all has moved for `limit_s`, and again each time that has doubled."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.time) -> None:
        self._limit, self._patience, self._clock = limit_s, limit_s, clock
        self._since: dict[str, tuple[Any, float]] = {}  # part -> its mark, and since when it has been that

    def look(self, parts: Sequence[Part]) -> str | None:
        """A message for the user, or None while something moves."""
        now = self._clock()
        for part in parts:
            mark, _ = self._since.get(part.name, (None, now))
            if part.name not in self._since or mark != part.mark:
                self._since[part.name] = (part.mark, now)
        still = now - max((since for _, since in self._since.values()), default=now)
        if still < self._limit:
            self._patience = self._limit
        if still < self._patience:
            return None
        self._patience = 2 * still
        return f"nothing has moved for {still:.0f} s (timeouts.stalled_s = {self._limit:g}): {self._named(parts)}"

    def _named(self, parts: Sequence[Part]) -> str:
        found = [f"{part.name} since {_clock(self._since[part.name][1])}, {part.owes}" for part in parts if part.owes]
        return "; ".join(found) or "and nothing is left to do that is known of: look at Ray's dashboard"


def parts_of(cast: Any, progress: Progress, status: StreamStatus, sampled: Any) -> list[Part]:
    """The parts of a run as the monitor sees them now; `sampled` counts what the samplers did."""
    trainer = Part(
        "trainer", (progress.step, status.trainer_started, status.trained_iterations), _trainer(cast, status)
    )
    stream = Part("stream", (status.waiting, status.trained_iterations), _count(status.waiting, "list", "waiting"))
    if cast.samplers is None:
        return [stream, trainer]
    members = cast.samplers.members
    starting = [member.name for member in members if member.status in COMING]
    updating = [member.name for member in members if member.status == "updating"]
    return [
        Part("engines", tuple(member.status for member in members), _names(starting, "sampler", "starting")),
        Part("sampling", sampled, _sampling(cast.samplers, progress)),
        Part("ranking", progress.ranked, _names(cast.rewards.pending_ids(), "prompt", "with the reward model")),
        stream,
        trainer,
        Part("weights", tuple(member.version for member in members), _names(updating, "sampler", "taking new ones")),
    ]


def _trainer(cast: Any, status: StreamStatus) -> str:
    if cast.trainer is None or cast.trainer.done():
        return ""
    if not status.trainer_started:
        return "its group starts"
    return f"silent for {status.trainer_silent_s:.0f} s, in a step or a checkpoint" if status.trainer_silent_s else ""


def _sampling(pool: Any, progress: Progress) -> str:
    """Prompts that are asked for, or that nobody is there to be asked for."""
    if pool.pending or pool.ready:
        return _names(pool.pending, "prompt", "sampled or waiting for it")
    return _count(progress.total - progress.sampled, "prompt", "waiting for a sampler")


def _names(names: Collection[str], noun: str, doing: str) -> str:
    if not names:
        return ""
    first = sorted(names)[:NAMED]
    more = ", ..." if len(names) > NAMED else ""
    return f"{_count(len(names), noun, doing)}: {', '.join(first)}{more}"


def _count(count: int, noun: str, doing: str) -> str:
    return f"{count} {noun}{'s' * (count > 1)} {doing}" if count else ""


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
