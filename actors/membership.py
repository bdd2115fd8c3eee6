"""Who is in the pool of samplers: they are asked for, join when they hold the weights that all hold, and leave.

A sampler that is asked for waits until the cluster has a node for it, perhaps one that the autoscaler starts: it is on
its way, which is no failure. One that leaves takes no new prompt; what it has not answered within a limit goes back to
the queue; then its engine and its actor end, so that its node can go. Those whose node is told to go leave like that,
while others come in their place.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from typing import Any

from actors.members import Member, be_placed, result, shut_down, start_engine
from actors.places import Places
from larpo.config import Samplers, Timeouts
from larpo.errors import LarpoError, NotPlaced
from larpo.events import failure_kind
from larpo.placement_checks import shares_gpu


class Membership:
    """`spawn(name)` places a sampler actor; `on_failure(name, reason)` hears of each that ended."""

    def __init__(
        self,
        spawn: Callable[[str], Any],
        kill: Callable[[Any], None],
        samplers: Samplers,
        timeouts: Timeouts,
        responses_per_sampler: int,
        on_failure: Callable[[str, str], None],
        own_node: str = "",
    ) -> None:
        self._own_node = own_node
        self._spawn, self._kill, self._on_failure = spawn, kill, on_failure
        self._samplers, self._timeouts = samplers, timeouts
        self._version = 0  # of the weights that every sampler should have, one that joins too
        self.members: list[Member] = []
        self._places = Places(responses_per_sampler)  # of those that are ready
        self.departed: list[Member] = []  # with counts that the monitor has not taken
        self.wanted = 0  # samplers that are to be here
        self.start_seconds: deque[float] = deque(maxlen=8)  # from asking for a sampler until it was ready, of late
        self._failed_joins = 0
        self._alarms: list[str] = []
        self._changed = asyncio.Condition()
        self._failed: LarpoError | None = None
        self._awake = asyncio.Event()  # cleared while the GPU is the trainer's: no engine is started on it
        self._awake.set()
        self._loading: set[str] = set()  # samplers whose engines start
        self._in_turn = asyncio.Lock()  # engines on one GPU: each measures what is free there while it starts

    @property
    def ready(self) -> int:
        return len(self._places)

    @property
    def coming(self) -> int:
        """Samplers that are on their way: no node has them yet, or their engines start."""
        return sum(member.is_coming for member in self.members)

    @property
    def may_grow(self) -> bool:
        """Not when samplers that joined could not start more often than dead ones may be replaced."""
        return self._failed_joins <= self._samplers.max_restarts

    def take_alarms(self) -> list[str]:
        """What the user should know of since the last call."""
        alarms, self._alarms = self._alarms, []
        return alarms

    async def start(self, version: int = 0) -> None:
        """Ask for `samplers.count`; returns when as many as the pool always has are ready, with that version."""
        self._version = version
        self.resize(self._samplers.count)
        async with self._changed:
            await self._changed.wait_for(lambda: self._failed or self.ready >= self._samplers.least)
        self._raise_failed()

    def resize(self, wanted: int) -> None:
        """Ask for samplers or let some go until so many are here or coming, within the pool's bounds.

        Those go first that no node has yet, then those that start; then those whose node can go with them: not the
        run's own, and the one with the fewest samplers; then those with least to do.
        """
        self.wanted = max(self._samplers.least, min(self._samplers.most, wanted))
        staying = [member for member in self.members if not member.is_leaving]
        for _ in range(self.wanted - len(staying)):
            self._ask()
        beside = Counter(member.node for member in staying)

        def loss(member: Member) -> tuple[bool, bool, bool, int, int]:
            is_working, stays = member.ready.is_set(), member.node == self._own_node
            return is_working, member.status != "pending", stays, beside[member.node], member.in_flight

        for member in sorted(staying, key=loss)[: max(0, len(staying) - self.wanted)]:
            self.let_go(member)

    def _ask(self) -> None:
        taken = {member.name for member in self.members}
        name = next(name for number in range(len(taken) + 1) if (name := f"sampler-{number}") not in taken)
        member = Member(name, self._spawn(name), let_go=asyncio.get_running_loop().create_future())
        self.members.append(member)
        member.task = asyncio.create_task(self._join(member))

    async def _join(self, member: Member) -> None:
        """Bring in one more sampler; that it cannot come ends the pool only where it cannot be spared."""
        try:
            await self._start(member)
        except LarpoError as error:
            await self._give_up(member, error)
            if not isinstance(error, NotPlaced) and failure_kind(member.name, str(error)) != "node":
                self._count_failed_join()

    def _count_failed_join(self) -> None:
        could = self.may_grow
        self._failed_joins += 1
        if could and not self.may_grow:
            self._alarms.append(
                f"{self._failed_joins} samplers that were to join could not start, over the limit of"
                f" {self._samplers.max_restarts} (samplers.max_restarts): the pool grows no more"
            )

    async def _start(self, member: Member) -> None:
        await be_placed(member, self._timeouts)
        await self._awake.wait()
        self._loading.add(member.name)
        try:
            async with self._in_turn if shares_gpu(self._samplers.resources) else nullcontext():
                await start_engine(member, lambda: self._version, self._timeouts)
            member.status = "ready"
            member.ready.set()
            self._places.open(member)
            self.start_seconds.append(time.monotonic() - member.asked)
        finally:
            self._loading.discard(member.name)
            await self._notify()

    async def _give_up(self, member: Member, error: LarpoError) -> None:
        """Do without a sampler that did not come; where too few are left, whoever waits for one hears why."""
        left = sum(other is not member and not other.is_leaving for other in self.members)
        if left < self._samplers.least:
            return await self._fail(error)
        if isinstance(error, NotPlaced):
            self._alarms.append(f"{error}: it is waited for no more, {left} samplers stay")
        else:
            self._on_failure(member.name, str(error))
        self.wanted = min(self.wanted, left)
        self._remove(member)

    def let_go(self, member: Member) -> None:
        """A sampler that is not at work yet goes at once; one that is gets no new prompt, and `drain_s`."""
        if member.task is not None:
            member.task.cancel()
        if not member.ready.is_set():
            return self._remove(member)
        self._close(member, "leaving")
        member.task = asyncio.create_task(self._drain(member))

    def leave(self, nodes: Collection[str]) -> None:
        """Samplers on these nodes, which are told to go, are let go, and as many others asked for."""
        going = [m for m in self.members if m.node in nodes and not m.is_leaving and m.status != "restarting"]
        for member in going:
            self._alarms.append(f"{member.name} leaves its node, which is told to go: another is asked for")
            self.let_go(member)
        if going:
            self.resize(self.wanted)

    async def _drain(self, member: Member) -> None:
        """Hand back what has not begun, and what is not answered in time; then end the engine and the actor."""
        with suppress(Exception):  # one that has died is found by its prompts
            await asyncio.wait_for(result(member.actor.leave.remote()), self._timeouts.answer_s)
        async with self._changed:
            empty = self._changed.wait_for(lambda: member.in_flight == 0)
            with suppress(TimeoutError):
                await asyncio.wait_for(empty, self._samplers.drain_s)
        self._hand_back(member)
        with suppress(Exception):  # one that has died has nothing more to tell
            member.stats = await asyncio.wait_for(result(member.actor.stats.remote()), self._timeouts.answer_s)
        await shut_down([member], self._timeouts.shutdown_s)
        self._remove(member)

    def _close(self, member: Member, status: str) -> None:
        """It gets no new prompt."""
        member.ready.clear()
        self._places.close(member)
        member.status = status

    def _hand_back(self, member: Member) -> None:
        if member.let_go is not None and not member.let_go.done():
            member.let_go.set_result(None)

    def _remove(self, member: Member) -> None:
        self._kill(member.actor)
        self.members = [other for other in self.members if other is not member]
        self.departed.append(member)

    async def _fail(self, error: LarpoError) -> None:
        """Nothing can be sampled any more: whoever waits hears why."""
        self._failed = self._failed or error
        await self._notify()

    def _raise_failed(self) -> None:
        if self._failed:
            raise self._failed

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
