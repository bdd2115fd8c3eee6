"""One place in the pool of samplers, and an actor's way into it: placed, started, given the newest weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from actors.obituary import obituary
from actors.sampler import SamplerStats
from larpo.config import Timeouts
from larpo.errors import NotPlaced, PhaseTimeout, SamplerError


@dataclass
class Member:
    """One place in the pool: the actor that fills it now."""

    name: str
    actor: Any
    node: str = ""  # id of the node that has its actor, once one has
    version: int = 0
    status: str = "pending"  # no node has it yet; then starting, ready, updating, asleep, restarting, leaving
    in_flight: int = 0  # responses that it is asked for
    stats: SamplerStats | None = None  # the newest, until the monitor has taken it
    busy: bool = False
    memory_bytes: int = 0  # that its actor held when it was last asked
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    answered: float = 0.0  # when it last did, by the monotonic clock
    asked: float = field(default_factory=time.monotonic)  # when its actor was asked for
    let_go: asyncio.Future[None] | None = None  # of one that leaves: done when what it still has goes back
    task: asyncio.Task[None] | None = None  # that starts it, replaces it or ends it

    @property
    def is_leaving(self) -> bool:
        return self.status == "leaving"

    @property
    def is_coming(self) -> bool:
        """Asked for, or being replaced: it will work when a node has it and its engine runs."""
        return not self.ready.is_set() and not self.is_leaving


async def be_placed(member: Member, timeouts: Timeouts) -> None:
    """Until a node has room for its actor, perhaps one that the autoscaler brings; NotPlaced when none has in time."""
    limit = timeouts.placement_s
    try:
        member.node = await _call(member, member.actor.placed, limit=limit)
    except TimeoutError as error:
        raise NotPlaced(
            f"{member.name} was asked for, and no node had room for it within {limit:g} s (timeouts.placement_s)"
        ) from error
    if member.status == "pending":
        member.status = "starting"


async def start_engine(member: Member, newest: Callable[[], int], timeouts: Timeouts) -> None:
    """Until the engine runs with the version that `newest` tells by then: it may change meanwhile."""
    member.version = await _timed(member, member.actor.start, limit=timeouts.engine_start_s, knob="engine_start_s")
    while member.version != (wanted := newest()):
        limit = timeouts.weights_s
        member.version = await _timed(member, member.actor.update, wanted, limit=limit, knob="weights_s")


async def _timed(member: Member, method: Any, *arguments: Any, limit: float, knob: str) -> int:
    try:
        return await _call(member, method, *arguments, limit=limit)
    except TimeoutError as error:
        what = "start its engine" if knob == "engine_start_s" else f"take weight version {arguments[0]}"
        raise PhaseTimeout(f"{member.name} did not {what} within {limit:g} s (timeouts.{knob})") from error


async def _call(member: Member, method: Any, *arguments: Any, limit: float) -> Any:
    try:
        return await asyncio.wait_for(result(method.remote(*arguments)), limit)
    except TimeoutError:
        raise
    except Exception as error:
        reason = await obituary(error, member.actor)
        raise SamplerError(f"{member.name} could not start its engine: {reason}") from error


async def shut_down(members: list[Member], limit: float) -> None:
    """End engines before their actors: an engine that is killed with its actor leaves its queues in shared memory."""
    shutdowns = [result(member.actor.shutdown.remote()) for member in members]
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*shutdowns, return_exceptions=True), limit)


async def result(reference: Awaitable[Any]) -> Any:
    """A coroutine around an object reference, which asyncio can cancel."""
    return await reference
