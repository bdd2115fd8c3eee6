"""The pool of reward replicas: each works on one batch at a time, a dead one is replaced, its batch ranked again."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from actors import placement
from actors.doing import Doing
from actors.obituary import in_short, obituary
from actors.remote import answer
from actors.reward import Described
from larpo.config import Config
from larpo.errors import ConfigError, DataError, EndpointError, LarpoError, PhaseTimeout, RewardError
from larpo.home import Home
from larpo.reward_cache import RewardCache
from larpo.rewards import Request, Reward

T = TypeVar("T")
REWARD_ATTEMPTS = 3
POLL_S = 1.0  # a look does not wait for a replica
REWARD_CACHE = "rewards.sqlite"  # in the run folder


class RewardPool:
    """The reward replicas, each at work on one batch at a time; a dead one is replaced, and its batch ranked again.

    With `reward.cache`, what has been given before, and lies in the cache folder, is not asked for again.
    """

    def __init__(
        self, config: Config, on_failure: Callable[[str, str], None], cache_folder: Path | None = None
    ) -> None:
        timeouts = config.timeouts
        self._section, self._limit = config.reward, timeouts.reward_s
        self._shutdown_limit, self._placement_limit = timeouts.shutdown_s, timeouts.placement_s
        has_engine = any(section.kind == "vllm" for section in self._section.sections())
        self._start_limit = ("engine_start_s", timeouts.engine_start_s) if has_engine else ("reward_s", self._limit)
        self._on_failure = on_failure
        self._folder = cache_folder if self._section.cache else None
        self._cache: RewardCache | None = None
        self._hits = 0
        self.doing = Doing()
        self._pending: dict[int, Sequence[Request]] = {}  # what each actor works on
        self._memory: dict[int, int] = {}  # bytes that each actor held when it was last asked
        self.actors = [placement.place_reward(self._section, f"reward-{n}") for n in range(self._section.replicas)]
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for number in range(len(self.actors)):
            self._free.put_nowait(number)
        self.fingerprint, self.joint = "", False  # as in `RewardModel`, from `start` on

    async def start(self) -> None:
        """Until every replica is ready; RewardError when one is not, or they are not of one mind."""
        found = await asyncio.gather(*(self._described(number) for number in range(len(self.actors))))
        fingerprints = {described.fingerprint for described in found}
        if len(fingerprints) != 1:
            raise RewardError(
                f"the reward replicas have different models, with the fingerprints {sorted(fingerprints)}"
            )
        self.fingerprint, self.joint = found[0].fingerprint, found[0].joint
        if self._folder is not None:
            self._cache = RewardCache(self._folder / REWARD_CACHE, self.fingerprint, joint=self.joint)

    async def _described(self, number: int) -> Described:
        """When a node has it, perhaps one that the autoscaler brings, and its model is there."""
        actor = self.actors[number]
        await self._begun(number, actor.placed.remote(), "placement_s", self._placement_limit)
        return await self._begun(number, actor.describe.remote(), *self._start_limit)

    async def _begun(self, number: int, reply: Awaitable[T], knob: str, limit: float) -> T:
        try:
            return await asyncio.wait_for(answer(reply), limit)
        except LarpoError:
            raise
        except Exception as error:
            late = f"no answer in {limit:g} s (timeouts.{knob})"
            reason = late if isinstance(error, TimeoutError) else await obituary(error, self.actors[number])
            raise RewardError(f"reward-{number} could not start: {reason}") from error

    async def rank(self, requests: Sequence[Request]) -> list[list[Reward]]:
        """Rewards of whole lists: those that are kept, and of what is left those of the replicas, which share it.

        Raises RewardError with the causes when no replica could give them.
        """
        kept = await self._cached(lambda cache: cache.get(requests))
        if kept is None:
            return await self._asked(requests)
        missing = [
            (prompt, [text for text, reward in zip(texts, row, strict=True) if reward is None])
            for (prompt, texts), row in zip(requests, kept, strict=True)
        ]
        asked = [request for request in missing if request[1]]
        given = await self._asked(asked) if asked else []
        await self._cached(lambda cache: cache.put(asked, given))
        self._hits += sum(reward is not None for row in kept for reward in row)
        fresh = iter([reward for row in given for reward in row])
        return [[reward or next(fresh) for reward in row] for row in kept]

    async def _cached(self, work: Callable[[RewardCache], T]) -> T | None:
        """What the cache gives, or None without one; one that fails is told of and left alone from then on."""
        if self._cache is None:
            return None
        try:
            return await asyncio.to_thread(work, self._cache)
        except sqlite3.Error as error:
            self._on_failure("reward-cache", f"{error}; the run goes on without it")
            self._cache = None
            return None

    async def keep(self, home: Home) -> None:
        """What is in the cache now, to the run's home."""

        def push(cache: RewardCache) -> None:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / REWARD_CACHE
                cache.copy_to(copy)
                home.storage.put(copy, REWARD_CACHE)

        await self._cached(push)

    def take_hits(self) -> int:
        """Responses whose reward was kept from before, since the last call."""
        hits, self._hits = self._hits, 0
        return hits

    async def _asked(self, requests: Sequence[Request]) -> list[list[Reward]]:
        size = -(-len(requests) // len(self.actors))
        shares = [requests[start : start + size] for start in range(0, len(requests), size)]
        ranked = await asyncio.gather(*(self._rank(share) for share in shares))
        return [rewards for share in ranked for rewards in share]

    async def _rank(self, requests: Sequence[Request]) -> list[list[Reward]]:
        causes = []
        for _ in range(REWARD_ATTEMPTS):
            number = await self._free.get()  # the limit counts from here: waiting for a turn is no fault of the actor
            limit = self._limit * len(requests)
            self._pending[number] = requests
            try:
                with self.doing.at_work(f"reward-{number}"):
                    return await asyncio.wait_for(answer(self.actors[number].rank.remote(list(requests))), limit)
            except (ConfigError, DataError):
                raise  # the request's fault: another replica would say the same
            except EndpointError:
                raise  # its servers were asked as often as reward.endpoint.retries says
            except TimeoutError:
                late = PhaseTimeout(f"no answer in {limit:g} s (timeouts.reward_s a list)")
                causes.append(str(late))
                await self._replace(number, late)
            except Exception as error:
                causes.append(in_short(error))
                await self._replace(number, error)
            finally:
                self._pending.pop(number, None)
                self._free.put_nowait(number)
        raise RewardError(f"{len(requests)} lists could not be ranked in {REWARD_ATTEMPTS} attempts: {causes}")

    async def stop(self) -> None:
        """End what the actors hold, an engine's processes too, then the actors."""
        closing = [answer(actor.close.remote()) for actor in self.actors]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), self._shutdown_limit)
        for actor in self.actors:
            placement.kill(actor)
        if self._cache is not None:
            self._cache.close()

    def pending_ids(self) -> list[str]:
        """The prompts whose responses are with a replica."""
        return [prompt.id for requests in self._pending.values() for prompt, _ in requests]

    async def poll(self) -> None:
        """Ask every replica what memory it holds; one that does not answer at once is found by the next batch."""
        for number, actor in enumerate(self.actors if self.fingerprint else ()):
            with suppress(Exception):
                stats = await asyncio.wait_for(answer(actor.stats.remote()), POLL_S)
                self._memory[number] = int(stats["memory_bytes"])

    async def _replace(self, number: int, error: Exception) -> None:
        """A new actor in the place of one that failed; RewardError when it is of another mind."""
        reason = await obituary(error, self.actors[number], self._memory.pop(number, 0))
        self._on_failure(f"reward-{number}", reason)
        placement.kill(self.actors[number])
        self.actors[number] = placement.place_reward(self._section, f"reward-{number}")
        try:
            found = (await self._described(number)).fingerprint
        except RewardError:
            return  # the next attempt tells why
        if found != self.fingerprint:
            raise RewardError(
                f"the reward model changed during the run: its fingerprint was {self.fingerprint}, it is {found};"
                " bring the old one back and resume, or start a new run"
            )
