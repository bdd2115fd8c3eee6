"""The pool of sampler actors: prompts are leased to samplers, and come back when a lease or a sampler ends.

A prompt is handed out under a lease with a deadline. When the sampler dies, or the deadline passes, the prompt is
sampled again elsewhere; a dead sampler is replaced, a limited number of times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from actors.obituary import in_short, is_death, obituary
from actors.sampler import SamplerStats, SampleTask
from larpo.config import Samplers, Timeouts
from larpo.errors import PhaseTimeout, SamplerError
from larpo.types import Candidate

ATTEMPTS_PER_PROMPT = 3


@dataclass
class Member:
    """One place in the pool: the actor that fills it now."""

    name: str
    actor: Any
    version: int = 0
    status: str = "starting"
    in_flight: int = 0
    stats: SamplerStats | None = None  # the newest, until the monitor has taken it
    busy: bool = False
    memory_bytes: int = 0  # that its actor held when it was last asked
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class SamplerPool:
    """`spawn(name)` places a sampler actor; `on_failure(name, reason)` hears of each that ended."""

    def __init__(
        self,
        spawn: Callable[[str], Any],
        kill: Callable[[Any], None],
        samplers: Samplers,
        timeouts: Timeouts,
        prompts_per_sampler: int,
        on_failure: Callable[[str, str], None],
    ) -> None:
        self._spawn, self._kill, self._on_failure = spawn, kill, on_failure
        self._samplers, self._timeouts = samplers, timeouts
        self._per_sampler = prompts_per_sampler
        self._restarts = 0
        self.pending: dict[str, str] = {}  # prompt in flight -> sampler that has its lease
        self.requeued = 0  # prompts that went back to the queue
        self._version = 0  # of the weights that every sampler should have, a replacement too
        self.members: list[Member] = []
        self._changed = asyncio.Condition()
        self._replacing: set[asyncio.Task[None]] = set()
        self._failed: SamplerError | None = None

    @property
    def slots(self) -> int:
        """How many prompts the pool works on at a time."""
        return self._samplers.count * self._per_sampler

    @property
    def restarts(self) -> int:
        return self._restarts

    async def start(self, version: int = 0) -> None:
        """Start every sampler; returns when all have their engine and the weights of that version."""
        self._version = version
        self.members = [self._place(f"sampler-{number}") for number in range(self._samplers.count)]
        await asyncio.gather(*(self._start(member) for member in self.members))

    def _place(self, name: str) -> Member:
        return Member(name, self._spawn(name))

    async def _start(self, member: Member) -> None:
        """Until the engine runs with the version that the pool has by then: it may change meanwhile."""
        limit = self._timeouts.engine_start_s
        try:
            wanted = self._version
            member.version = await asyncio.wait_for(_result(member.actor.start.remote(wanted)), limit)
            while wanted != self._version:
                wanted, limit = self._version, self._timeouts.weights_s
                member.version = await asyncio.wait_for(_result(member.actor.update.remote(wanted)), limit)
        except TimeoutError as error:
            raise PhaseTimeout(
                f"{member.name} did not start its engine within {limit:g} s (timeouts.engine_start_s)"
            ) from error
        except Exception as error:
            reason = await obituary(error, member.actor)
            raise SamplerError(f"{member.name} could not start its engine: {reason}") from error
        member.status = "ready"
        member.ready.set()
        async with self._changed:
            self._changed.notify_all()

    async def sample(self, task: SampleTask) -> list[Candidate]:
        """Sample one prompt under a lease; raises SamplerError when it failed on several samplers."""
        reasons = []
        for attempt in range(ATTEMPTS_PER_PROMPT):
            self.requeued += attempt > 0
            member = await self._acquire()
            actor = member.actor
            self.pending[task.key] = member.name
            try:
                return await asyncio.wait_for(_result(actor.sample.remote(task)), self._samplers.lease_s)
            except TimeoutError:
                late = PhaseTimeout(f"no answer within the lease of {self._samplers.lease_s:g} s (samplers.lease_s)")
                reasons.append(f"{member.name}: {late}")
                self._replace(member, actor, late)
            except Exception as error:
                reasons.append(f"{member.name}: {in_short(error)}")
                if is_death(error) or await self._is_broken(actor):
                    self._replace(member, actor, error)
            finally:
                self.pending.pop(task.key, None)
                await self._release(member)
        raise SamplerError(f"prompt {task.key} failed {len(reasons)} times: " + "; ".join(reasons))

    async def _acquire(self) -> Member:
        async with self._changed:
            while True:
                if self._failed:
                    raise self._failed
                ready = [m for m in self.members if m.ready.is_set() and m.in_flight < self._per_sampler]
                if ready:
                    member = min(ready, key=lambda m: m.in_flight)
                    member.in_flight += 1
                    return member
                await self._changed.wait()

    async def _release(self, member: Member) -> None:
        async with self._changed:
            member.in_flight -= 1
            self._changed.notify_all()

    async def _is_broken(self, actor: Any) -> bool:
        try:
            await asyncio.wait_for(_result(actor.stats.remote()), self._timeouts.answer_s)
        except Exception:
            return True
        return False

    def _replace(self, member: Member, actor: Any, error: Exception) -> None:
        """Put a new actor in the place of one that ended, in the background; the first caller to notice does it."""
        if member.actor is not actor or not member.ready.is_set():
            return
        member.ready.clear()
        member.status = "restarting"
        task = asyncio.create_task(self._restart(member, error))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _restart(self, member: Member, error: Exception) -> None:
        """Start new actors until one runs; past the limit, whoever waits for a sampler hears why."""
        limit = self._samplers.max_restarts
        reason = await obituary(error, member.actor, member.memory_bytes)
        while not member.ready.is_set():
            self._on_failure(member.name, reason)
            self._restarts += 1
            if self._restarts > limit:
                async with self._changed:
                    self._failed = SamplerError(
                        f"samplers died {self._restarts} times, over the limit of {limit} (samplers.max_restarts);"
                        f" the last, {member.name}: {reason}"
                    )
                    self._changed.notify_all()
                return
            try:
                self._kill(member.actor)
                member.actor, member.memory_bytes = self._spawn(member.name), 0
                await self._start(member)
            except Exception as again:
                reason = str(again)

    async def update(self, version: int) -> None:
        """Every sampler pulls the weights of that version; one that cannot is replaced, and starts with them."""
        self._version = version
        await asyncio.gather(*(self._update(member) for member in self.members if member.ready.is_set()))

    async def _update(self, member: Member) -> None:
        actor, limit = member.actor, self._timeouts.weights_s
        member.status = "updating"
        try:
            member.version = await asyncio.wait_for(_result(actor.update.remote(self._version)), limit)
            member.status = "ready"
        except TimeoutError:
            late = PhaseTimeout(f"no weight update within {limit:g} s (timeouts.weights_s)")
            self._replace(member, actor, late)
        except Exception as error:
            self._replace(member, actor, error)

    async def stop(self) -> None:
        """End every engine, then its actor: an engine that is killed with it leaves its queues in shared memory."""
        shutdowns = [_result(member.actor.shutdown.remote()) for member in self.members if member.ready.is_set()]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*shutdowns, return_exceptions=True), self._timeouts.shutdown_s)
        for member in self.members:
            self._kill(member.actor)

    async def poll(self) -> None:
        """Refresh `stats` of each member; one whose engine has died is replaced. Raises what ended the pool."""
        if self._failed:
            raise self._failed
        for member in self.members:
            if not member.ready.is_set():
                continue
            actor = member.actor
            try:
                stats: SamplerStats = await asyncio.wait_for(_result(actor.stats.remote()), self._timeouts.answer_s)
                member.stats, member.version = stats, stats.weight_version
                member.memory_bytes = stats.memory_bytes
            except TimeoutError:
                continue  # busy in a blocking call: the leases decide
            except Exception as error:
                self._replace(member, actor, error)


async def _result(reference: Awaitable[Any]) -> Any:
    """A coroutine around an object reference, which asyncio can cancel."""
    return await reference
