"""The actors of one run, from their start to their end, and the calls that the conductor makes to them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from actors import placement
from actors.engine import EngineOptions
from actors.pool import SamplerPool
from actors.preparation import PreparedRun
from actors.trainer import TrainSpec
from actors.weights import published_version
from larpo.errors import LarpoError, PhaseTimeout, RewardError
from larpo.rewards import Request, Reward

REWARD_ATTEMPTS = 3


class RewardPool:
    """The reward replicas, by turns; a dead one is replaced, and its batch ranked again."""

    def __init__(self, run: PreparedRun, on_failure: Callable[[str, str], None]) -> None:
        self._section, self._limit = run.config.reward, run.config.timeouts.reward_s
        self._on_failure = on_failure
        self.actors = [placement.place_reward(self._section) for _ in range(self._section.replicas)]
        self._turn = itertools.cycle(range(len(self.actors)))
        self.fingerprint = ""

    async def start(self) -> None:
        described = await asyncio.wait_for(_await(self.actors[0].describe.remote()), self._limit)
        self.fingerprint = described["fingerprint"]

    async def rank(self, requests: Sequence[Request]) -> list[list[Reward]]:
        """Rewards of whole lists; RewardError with the causes when no replica could give them."""
        causes = []
        for _ in range(REWARD_ATTEMPTS):
            number = next(self._turn)
            actor, limit = self.actors[number], self._limit * len(requests)
            try:
                return await asyncio.wait_for(_await(actor.rank.remote(list(requests))), limit)
            except Exception as error:
                reason = str(error) or f"no answer in {limit:g} s (timeouts.reward_s a list)"
                causes.append(reason)
                self._on_failure(f"reward-{number}", reason)
                if self.actors[number] is actor:
                    placement.kill(actor)
                    self.actors[number] = placement.place_reward(self._section)
        raise RewardError(f"{len(requests)} lists could not be ranked in {REWARD_ATTEMPTS} attempts: {causes}")

    async def stats(self) -> list[dict[str, float]]:
        return list(await asyncio.gather(*(_await(actor.stats.remote()) for actor in self.actors)))


class Cast:
    """Store, stream, samplers, reward model and trainer of one run."""

    def __init__(self, run: PreparedRun, on_failure: Callable[[str, str], None]) -> None:
        self.run, self._timeouts, self._on_failure = run, run.config.timeouts, on_failure
        self.store = placement.place_store()
        self.stream = placement.place_stream(run.config, str(run.lists))
        self.rewards = RewardPool(run, on_failure)
        options = EngineOptions.of(run.config, str(run.policy.path))
        self.samplers = SamplerPool(
            lambda name: placement.place_sampler(run.config, options, self.store),
            placement.kill,
            run.config.samplers,
            run.config.timeouts,
            prompts_per_sampler=-(-run.config.samplers.max_num_seqs // run.config.sampling.k) + 1,
            on_failure=on_failure,
        )
        self.trainer: asyncio.Task[None] | None = None

    async def start(self, iteration: int) -> None:
        """Start the trainer, the samplers with the behaviour policy of `iteration`, and the reward model."""
        if iteration > 0:
            from actors.trainer import policy_folder

            folder = policy_folder(self.run.folder, iteration)
            await self.call(self.store.publish_folder, published_version(folder), str(folder))
        spec = TrainSpec(
            config=self.run.config,
            policy_path=str(self.run.policy.path),
            policy_fingerprint=self.run.policy.fingerprint,
            run_dir=str(self.run.folder),
            stream=self.stream,
            store=self.store,
        )
        self.trainer = asyncio.create_task(placement.train(spec))
        await asyncio.gather(self.samplers.start(), self.rewards.start())

    async def call(self, method: Any, *arguments: Any, limit_s: float | None = None) -> Any:
        """Call a method of the store or the stream; PhaseTimeout when it does not answer in time."""
        limit = limit_s or self._timeouts.weights_s
        try:
            return await asyncio.wait_for(_await(method.remote(*arguments)), limit)
        except TimeoutError as error:
            raise PhaseTimeout(f"{method._method_name} did not answer within {limit:g} s") from error

    async def wait_trained(self, iteration: int) -> None:
        """Until the trainer has published the end of `iteration`; a step that takes too long is an error."""
        while not await self.call(self.stream.wait_trained, iteration, 5.0, limit_s=120.0):
            pass

    async def stop(self, reason: str) -> None:
        """End what still runs: the trainer hears why, engines are shut down."""
        try:
            await asyncio.wait_for(_await(self.stream.fail.remote(reason)), 10)
            if self.trainer is not None:
                await asyncio.wait({self.trainer}, timeout=20)
        except Exception as error:  # the run ends for another cause, which is the one that is raised
            self._on_failure("shutdown", str(error) or type(error).__name__)
        for member in self.samplers.members:
            placement.kill(member.actor)


async def _await(reference: Awaitable[Any]) -> Any:
    """A coroutine around an object reference; an error of ours comes back as it was raised."""
    from ray.exceptions import RayTaskError

    try:
        return await reference
    except RayTaskError as error:
        if isinstance(error.cause, LarpoError):
            raise error.cause from error
        raise
