"""The pool of sampler actors: prompts are leased to samplers, and come back when a lease or a sampler ends.

A prompt is handed out under a lease with a deadline. When the sampler dies, or the deadline passes, the prompt is
sampled again elsewhere; a dead sampler is replaced, a limited number of times, to which those whose node was lost do
not count. What a leaving sampler has not answered is sampled elsewhere too, and counts as no failure of anyone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from actors.members import Member, result, shut_down
from actors.membership import Membership
from actors.obituary import in_short, is_death, obituary
from actors.sampler import SamplerStats, SampleTask
from larpo.config import Samplers, Timeouts
from larpo.errors import NotPlaced, PhaseTimeout, SamplerError
from larpo.events import failure_kind
from larpo.types import Candidate

ATTEMPTS_PER_PROMPT = 3


def responses_per_sampler(samplers: Samplers, responses: int) -> int:
    """That one may be asked for, at so many a prompt: twice what its engine holds, and one prompt.

    As the shorter responses of its prompts end, their places are filled with what waits there.
    """
    return max(2 * samplers.max_num_seqs, responses) + responses


class _HandedBack(Exception):
    """A sampler left before it had answered."""


class SamplerPool(Membership):
    """Leases prompts to the members, and replaces those that die."""

    def __init__(
        self,
        spawn: Callable[[str], Any],
        kill: Callable[[Any], None],
        samplers: Samplers,
        timeouts: Timeouts,
        responses_per_sampler: int,
        on_failure: Callable[[str, str], None],
        draining: Callable[[], Collection[str]] = frozenset,
        own_node: str = "",
    ) -> None:
        """`responses_per_sampler`: that one may be asked for at a time, those that wait in it among them.

        `draining` tells the ids of the nodes that are told to go; it may block. `own_node` stays, with the run.
        """
        super().__init__(spawn, kill, samplers, timeouts, responses_per_sampler, on_failure, own_node)
        self._draining = draining
        self.per_sampler = responses_per_sampler
        self.restarts = 0
        self._deaths = 0  # of them, those that no lost node explains
        self.pending: set[str] = set()  # prompts that wait for a sampler or are with one
        self.requeued = 0  # prompts that went back to the queue
        self.handed_back = 0  # prompts that leaving samplers gave back
        self._slots_taken = 0
        self._slot_queue, self._place_queue = asyncio.Lock(), asyncio.Lock()  # served in order, large and small
        self._vacant = asyncio.Condition()  # a sampler can take a prompt more

    @property
    def active(self) -> int:
        """How many prompts wait for a sampler or are with one."""
        return len(self.pending)

    @property
    def slots(self) -> int:
        """How many responses the pool may be asked for at a time."""
        return self.ready * self.per_sampler

    async def take_slots(self, responses: int) -> None:
        """Wait until the pool has room for one more prompt; the room follows the samplers that are ready.

        A prompt of more responses than there are slots goes by itself.
        """

        def has_room() -> bool:
            return self._slots_taken + responses <= max(self.slots, responses if self.slots else 0)

        async with self._slot_queue, self._changed:
            await self._changed.wait_for(lambda: self._failed or has_room())
            self._raise_failed()
            self._slots_taken += responses

    async def free_slots(self, responses: int) -> None:
        self._slots_taken -= responses
        await super()._notify()

    async def sample(self, task: SampleTask) -> list[Candidate]:
        """Sample one prompt under a lease; raises SamplerError when it failed on several samplers."""
        self.pending.add(task.key)
        try:
            return await self._sample(task)
        finally:
            self.pending.discard(task.key)

    async def _sample(self, task: SampleTask) -> list[Candidate]:
        reasons: list[str] = []
        while len(reasons) < ATTEMPTS_PER_PROMPT:
            member = await self._acquire(task.responses)
            actor = member.actor
            try:
                return await self._leased(member, actor.sample.remote(task))
            except TimeoutError:
                late = PhaseTimeout(f"no answer within the lease of {self._samplers.lease_s:g} s (samplers.lease_s)")
                reasons.append(f"{member.name}: {late}")
                self._replace(member, actor, late)
            except Exception as error:
                if member.is_leaving:
                    self.handed_back += 1
                    continue
                reasons.append(f"{member.name}: {in_short(error)}")
                if is_death(error) or await self._is_broken(actor):
                    self._replace(member, actor, error)
            finally:
                await self._release(member, task.responses)
            self.requeued += len(reasons) < ATTEMPTS_PER_PROMPT
        raise SamplerError(f"prompt {task.key} failed {len(reasons)} times: " + "; ".join(reasons))

    async def _leased(self, member: Member, reference: Any) -> list[Candidate]:
        """The answer, within the lease; _HandedBack when the sampler leaves before.

        A lease is as good as new with every answer of its sampler: until then the prompt may have waited for a place.
        """
        assert member.let_go is not None
        call, begun, lease = asyncio.ensure_future(result(reference)), time.monotonic(), self._samplers.lease_s
        try:
            while (left := max(begun, member.answered) + lease - time.monotonic()) > 0:
                await asyncio.wait({call, member.let_go}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if call.done():
                    member.answered = time.monotonic()
                    return call.result()
                if member.let_go.done():
                    raise _HandedBack
            raise TimeoutError
        finally:
            call.cancel()

    async def _acquire(self, responses: int) -> Member:
        """A free sampler. Only the first in line waits for one: waking all costs what all cost, for each prompt."""
        async with self._place_queue, self._vacant:
            while True:
                self._raise_failed()
                member = self._places.take(responses)
                if member is not None:
                    return member
                await self._vacant.wait()

    async def _release(self, member: Member, responses: int) -> None:
        self._places.give_back(member, responses)
        async with self._vacant:
            self._vacant.notify_all()
        if member.is_leaving:
            await super()._notify()

    async def _notify(self) -> None:
        await super()._notify()
        async with self._vacant:
            self._vacant.notify_all()

    async def _is_broken(self, actor: Any) -> bool:
        try:
            await asyncio.wait_for(result(actor.stats.remote()), self._timeouts.answer_s)
        except Exception:
            return True
        return False

    def _replace(self, member: Member, actor: Any, error: Exception) -> None:
        """Put a new actor in the place of one that ended, in the background; the first caller to notice does it."""
        if member.actor is not actor or not member.ready.is_set():
            return
        self._close(member, "restarting")
        member.task = asyncio.create_task(self._restart(member, error))

    async def _restart(self, member: Member, error: Exception) -> None:
        """Start new actors until one runs; past the limit, one that can be spared is given up, else the pool ends."""
        limit = self._samplers.max_restarts
        reason = await obituary(error, member.actor, member.memory_bytes)
        while not member.ready.is_set():
            self._on_failure(member.name, reason)
            self.restarts += 1
            self._deaths += failure_kind(member.name, reason) != "node"
            if self._deaths > limit:
                too_many = SamplerError(
                    f"samplers died {self._deaths} times, over the limit of {limit} (samplers.max_restarts);"
                    f" the last, {member.name}: {reason}"
                )
                return await self._give_up(member, too_many)
            try:
                self._kill(member.actor)
                member.actor, member.memory_bytes, member.asked = self._spawn(member.name), 0, time.monotonic()
                member.node = ""
                await self._start(member)
            except NotPlaced as not_placed:
                return await self._give_up(member, not_placed)
            except Exception as again:
                reason = str(again)

    async def update(self, version: int) -> None:
        """Every sampler pulls the weights of that version; one that cannot is replaced, and starts with them."""
        self._version = version
        working = [member for member in self.members if member.ready.is_set() or member.is_leaving]
        await asyncio.gather(*(self._update(member) for member in working))

    async def _update(self, member: Member) -> None:
        actor = member.actor
        if not member.is_leaving:
            member.status = "updating"
        try:
            member.version = await self._taken(member, actor)
            if member.status == "updating":
                member.status = "ready"
        except Exception as error:
            self._refused(member, actor, error)

    async def _taken(self, member: Member, actor: Any) -> int:
        """The version that a sampler then has; late, it has the lease of its prompts too, which may have to end first.

        It goes on taking prompts until the weights are loaded. Raises PhaseTimeout.
        """
        limit, knob = self._timeouts.weights_s, "timeouts.weights_s"
        call = asyncio.ensure_future(result(actor.update.remote(self._version)))
        try:
            await asyncio.wait({call}, timeout=limit)
            if not call.done() and member.in_flight:
                limit, knob = limit + self._samplers.lease_s, f"{knob}, and the lease of what it had begun"
                await asyncio.wait({call}, timeout=self._samplers.lease_s)
            if not call.done():
                raise PhaseTimeout(f"no weight update within {limit:g} s ({knob})")
            return call.result()
        finally:
            call.cancel()

    def _refused(self, member: Member, actor: Any, error: Exception) -> None:
        if member.is_leaving:
            self._hand_back(member)
        self._replace(member, actor, error)

    async def sleep(self) -> None:
        """Every engine leaves the GPU to the trainer, one that starts once it has; no other starts before `wake`."""
        self._awake.clear()
        async with self._changed:
            await self._changed.wait_for(lambda: not self._loading)
        await asyncio.gather(*(self._turn(member, "sleep", "asleep") for member in self.members))

    async def wake(self) -> None:
        """The engines that sleep come back to the GPU."""
        self._awake.set()
        sleeping = [member for member in self.members if member.status == "asleep"]
        await asyncio.gather(*(self._turn(member, "wake", "ready") for member in sleeping))

    async def _turn(self, member: Member, method: str, status: str) -> None:
        actor, limit = member.actor, self._timeouts.weights_s
        if not member.ready.is_set():
            return
        try:
            await asyncio.wait_for(result(getattr(actor, method).remote()), limit)
            member.status = status
        except TimeoutError:
            self._replace(member, actor, PhaseTimeout(f"no {method} within {limit:g} s (timeouts.weights_s)"))
        except Exception as error:
            self._replace(member, actor, error)

    async def stop(self) -> None:
        """End every engine, then its actor."""
        for member in self.members:
            if member.task is not None:
                member.task.cancel()
        await shut_down([member for member in self.members if not member.is_coming], self._timeouts.shutdown_s)
        for member in self.members:
            self._kill(member.actor)

    async def poll(self) -> None:
        """Refresh `stats` of each member; one whose engine has died is replaced, one whose node has to go leaves.

        Raises what ended the pool.
        """
        self._raise_failed()
        with suppress(TimeoutError):  # the next look asks again
            self.leave(await asyncio.wait_for(asyncio.to_thread(self._draining), self._timeouts.answer_s))
        await asyncio.gather(*(self._look(member) for member in self.members if not member.is_coming))

    async def _look(self, member: Member) -> None:
        actor = member.actor
        try:
            stats: SamplerStats = await asyncio.wait_for(result(actor.stats.remote()), self._timeouts.answer_s)
            member.stats, member.version = stats, stats.weight_version
            member.memory_bytes = stats.memory_bytes
        except TimeoutError:
            return  # busy in a blocking call: the leases decide
        except Exception as error:
            self._replace(member, actor, error)
