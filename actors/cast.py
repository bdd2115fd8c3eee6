"""The actors of one run, from their start to their end, and the calls that the conductor makes to them."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from actors import placement
from actors.doing import Doing
from actors.engine import EngineOptions
from actors.obituary import in_short, is_death, obituary, rank_failures, told
from actors.policies import policy_folder
from actors.pool import SamplerPool
from actors.preparation import PreparedRun
from actors.reward import Described
from actors.trainer import TrainSpec
from actors.turns import begin_sampling
from actors.weights import published_version
from larpo.config import Config
from larpo.errors import ConfigError, DataError, LarpoError, PhaseTimeout, RewardError, TrainingError
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
        self._shutdown_limit = timeouts.shutdown_s
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
        knob, limit = self._start_limit
        try:
            return await asyncio.wait_for(_await(self.actors[number].describe.remote()), limit)
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
                    return await asyncio.wait_for(_await(self.actors[number].rank.remote(list(requests))), limit)
            except (ConfigError, DataError):
                raise  # the request's fault: another replica would say the same
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
        closing = [_await(actor.close.remote()) for actor in self.actors]
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
                stats = await asyncio.wait_for(_await(actor.stats.remote()), POLL_S)
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


class TrainingCast:
    """Store, stream and trainer of one run: all that training on given lists needs."""

    samplers: SamplerPool | None = None
    rewards: RewardPool | None = None
    turns: Any = None  # handle to the Turns actor, where samplers and trainer share a GPU by turns

    def __init__(self, run: PreparedRun, on_failure: Callable[[str, str], None]) -> None:
        self.run, self._timeouts, self._on_failure = run, run.config.timeouts, on_failure
        self.store = placement.place_store(run.config.training.max_failures, run.home)
        self.stream = placement.place_stream(run.config, str(run.lists))
        self.trainer: asyncio.Task[None] | None = None

    def start_trainer(self) -> None:
        spec = TrainSpec(
            config=self.run.config,
            policy=self.run.policy,
            run_dir=str(self.run.folder),
            stream=self.stream,
            store=self.store,
            turns=self.turns,
        )
        self.trainer = asyncio.create_task(self._train(spec))

    async def _train(self, spec: TrainSpec) -> None:
        """To the end of the stream; raises TrainingError with how each rank ended, and its log's last lines."""
        try:
            await placement.train(spec)
        except TrainingError as error:
            ranks = rank_failures(getattr(error.__cause__, "worker_failures", {}))
            if not ranks:
                raise
            ends = [f"rank {each.rank}: {await told(each.reason, each.actor_id)}" for each in ranks]
            limit = self.run.config.training.max_failures
            message = f"the training group failed, after {limit} restarts (training.max_failures):"
            raise TrainingError("\n".join([message, *ends])) from error

    async def call(self, method: Any, *arguments: Any, limit_s: float | None = None) -> Any:
        """Call a method of the store or the stream; PhaseTimeout when it does not answer in time.

        Ray starts a dead one again and repeats the call; TrainingError when it died too often for that.
        """
        limit = limit_s or self._timeouts.weights_s
        try:
            return await asyncio.wait_for(_await(method.remote(*arguments)), None if limit == math.inf else limit)
        except TimeoutError as error:
            raise PhaseTimeout(f"{method._method_name} did not answer within {limit:g} s") from error
        except Exception as error:
            if not is_death(error):
                raise
            raise TrainingError(
                f"{method._method_name} has nobody to answer it: its actor died more often than"
                f" training.max_failures = {self.run.config.training.max_failures} allows; resume the run."
                f" The last time {await obituary(error)}"
            ) from error

    async def is_trained(self, iteration: int, wait_s: float = 5.0) -> bool:
        """Whether the trainer has published the end of `iteration`, waiting a little for it."""
        return await self.call(self.stream.wait_trained, iteration, wait_s, limit_s=wait_s + self._timeouts.answer_s)

    async def wait_trained(self, iteration: int) -> None:
        """Until the trainer has published the end of `iteration`; a step that takes too long is an error."""
        while not await self.is_trained(iteration):
            pass

    async def end_training(self) -> None:
        """Let the trainer end after the step in progress; PhaseTimeout when that takes too long."""
        await self.call(self.stream.end_run)
        limit = self._timeouts.step_s
        if self.trainer is not None and not (await asyncio.wait({self.trainer}, timeout=limit))[0]:
            raise PhaseTimeout(f"the trainer did not end its last step within {limit:g} s (timeouts.step_s)")

    async def stop(self, reason: str, *, gently: bool = False) -> None:
        """End what still runs: the trainer hears why. `gently`: after the step in progress, and a checkpoint of it."""
        try:
            if gently:
                await self._end_step()
            limit = self._timeouts.shutdown_s
            await asyncio.wait_for(_await(self.stream.fail.remote(reason)), limit)
            if self.trainer is not None:
                await asyncio.wait({self.trainer}, timeout=min(limit, 5.0) if gently else limit)
        except Exception as error:  # the run ends for another cause, which is the one that is raised
            self._on_failure("shutdown", str(error) or type(error).__name__)

    async def _end_step(self) -> None:
        """The trainer ends its step and writes a checkpoint, as far as `timeouts.stop_s` lets it."""
        if self.trainer is None or self.trainer.done():
            return
        limit = self._timeouts.stop_s
        await self.call(self.stream.end_run, limit_s=limit)
        if not (await asyncio.wait({self.trainer}, timeout=limit))[0]:
            self._on_failure(
                "trainer", f"no checkpoint within {limit:g} s of the stop (timeouts.stop_s): the one before counts"
            )


class Cast(TrainingCast):
    """The same with samplers and a reward model."""

    samplers: SamplerPool
    rewards: RewardPool

    def __init__(self, run: PreparedRun, on_failure: Callable[[str, str], None]) -> None:
        super().__init__(run, on_failure)
        self.turns = placement.place_turns() if run.config.samplers.sleep else None
        self.rewards = RewardPool(run.config, on_failure, run.folder)
        options = EngineOptions.of(run.config)
        self.samplers = SamplerPool(
            lambda name: placement.place_sampler(run.config, options, run.policy, self.store, name),
            placement.kill,
            run.config.samplers,
            run.config.timeouts,
            prompts_per_sampler=-(-run.config.samplers.max_num_seqs // run.config.sampling.k) + 1,
            on_failure=on_failure,
        )

    async def start(self, iteration: int, *, initial: bool = False) -> None:
        """Start the trainer, the samplers with the behaviour policy of `iteration`, and the reward model.

        `initial`: the samplers begin with the initial policy all the same, until `update_samplers`.
        """
        version = 0
        if iteration > 0:
            folder = policy_folder(self.run.folder, iteration)
            version = published_version(folder)
            await self.call(self.store.publish_folder, version, self.run.home.name(folder))
        self.start_trainer()
        await begin_sampling(self, "trainer_start_s")
        await asyncio.gather(self.samplers.start(0 if initial else version), self.rewards.start())

    async def update_samplers(self) -> None:
        """The newest published weights become the behaviour policy; it is the samplers' turn, where they have turns."""
        await begin_sampling(self, "weights_s")
        await self.samplers.update(await self.call(self.store.newest))

    async def keep_rewards(self) -> None:
        """The rewards given so far, to the run's home."""
        if self.run.home.elsewhere:
            await self.rewards.keep(self.run.home)

    async def lend(self, version: int, folder: Path) -> None:
        """The samplers take a policy to evaluate it, until `update_samplers`."""
        await self.call(self.store.lend_folder, version, self.run.home.name(folder))
        await self.samplers.update(version)

    async def stop(self, reason: str, *, gently: bool = False) -> None:
        """The same, and engines are shut down."""
        await asyncio.gather(super().stop(reason, gently=gently), self.samplers.stop(), self.rewards.stop())


async def _await(reference: Awaitable[Any]) -> Any:
    """A coroutine around an object reference; an error of ours comes back as it was raised."""
    from ray.exceptions import RayTaskError

    try:
        return await reference
    except RayTaskError as error:
        if isinstance(error.cause, LarpoError):
            raise error.cause from error
        raise
