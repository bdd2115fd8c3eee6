"""The actors of one run, from their start to their end, and the calls that the conductor makes to them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors import placement, training_group
from actors.engine import EngineOptions
from actors.obituary import is_death, obituary, rank_failures, told
from actors.policies import policy_folder
from actors.pool import SamplerPool, responses_per_sampler
from actors.preparation import PreparedRun
from actors.published import published_version
from actors.remote import answer
from actors.reward_pool import RewardPool
from actors.room import draining_nodes
from actors.trainer import TrainSpec
from actors.turns import begin_sampling
from larpo.errors import PhaseTimeout, TrainingError
from larpo.placement_checks import shares_gpu


class TrainingCast:
    """Store, stream and trainer of one run: all that training on given lists needs."""

    samplers: SamplerPool | None = None
    rewards: RewardPool | None = None
    turns: Any = None  # handle to the Turns actor, where samplers and trainer share a GPU by turns

    def __init__(self, run: PreparedRun, on_failure: Callable[[str, str], None]) -> None:
        self.run, self._timeouts, self._on_failure = run, run.config.timeouts, on_failure
        kept = 2 + run.config.max_staleness * (run.config.overlap == "async")  # so many may be asked for at one time
        self.store = placement.place_store(run.config.training.max_failures, run.home, kept)
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
            await training_group.train(spec)
        except TrainingError as error:
            ranks = rank_failures(getattr(error.__cause__, "worker_failures", {}))
            if not ranks:
                raise
            ends = [f"rank {each.rank}: {await told(each.reason, each.actor_id)}" for each in ranks]
            limit = self.run.config.training.max_failures
            message = f"the training group failed, after {limit} restarts (training.max_failures):"
            raise TrainingError("\n".join([message, *ends])) from error

    async def call(
        self, method: Any, *arguments: Any, limit_s: float | None = None, knob: str = "timeouts.weights_s"
    ) -> Any:
        """Call a method of the store, the stream or the turns; PhaseTimeout when it does not answer in time.

        `limit_s` is what `knob` gives, and is taken from timeouts.weights_s where it is not named.
        Ray starts a dead store or stream again and repeats the call; TrainingError when it does so no more.
        """
        limit = limit_s or self._timeouts.weights_s
        try:
            async with asyncio.timeout(None if limit == math.inf else limit) as own:
                return await answer(method.remote(*arguments))
        except TimeoutError as error:
            if not own.expired():
                raise
            raise PhaseTimeout(f"{method._method_name} did not answer within {limit:g} s ({knob})") from error
        except Exception as error:
            if not is_death(error):
                raise
            raise TrainingError(
                f"{method._method_name} has nobody to answer it: its actor died, and is not started again"
                f" (training.max_failures = {self.run.config.training.max_failures}); resume the run."
                f" The last time {await obituary(error)}"
            ) from error

    async def is_trained(self, iteration: int, wait_s: float = 5.0) -> bool:
        """Whether the trainer has published the end of `iteration`, waiting a little for it."""
        limit, knob = wait_s + self._timeouts.answer_s, "timeouts.answer_s"
        return await self.call(self.stream.wait_trained, iteration, wait_s, limit_s=limit, knob=knob)

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
            await asyncio.wait_for(answer(self.stream.fail.remote(reason)), limit)
            if self.trainer is not None:
                await asyncio.wait({self.trainer}, timeout=min(limit, 5.0) if gently else limit)
        except Exception as error:  # the run ends for another cause, which is the one that is raised
            self._on_failure("shutdown", str(error) or type(error).__name__)

    async def _end_step(self) -> None:
        """The trainer ends its step and writes a checkpoint, as far as `timeouts.stop_s` lets it."""
        if self.trainer is None or self.trainer.done():
            return
        limit = self._timeouts.stop_s
        await self.call(self.stream.end_run, limit_s=limit, knob="timeouts.stop_s")
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
            responses_per_sampler(run.config.samplers, max(run.config.sampling.k, run.config.evaluation.samples + 1)),
            on_failure=on_failure,
            draining=draining_nodes,
            own_node=placement.own_node(),
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
        begins_with, config = 0 if initial else version, self.run.config
        if self.turns is None and any(shares_gpu(of.resources) for of in (config.samplers, config.reward)):
            await self.samplers.start(begins_with)  # vLLM counts as its own what others take while it starts
            await self.rewards.start()
            return self.start_trainer()
        self.start_trainer()
        await begin_sampling(self, "trainer_start_s")
        await asyncio.gather(self.samplers.start(begins_with), self.rewards.start())

    async def update_samplers(self) -> None:
        """The newest published weights become the behaviour policy; it is the samplers' turn, where they have turns."""
        await begin_sampling(self, "weights_s")
        await self.samplers.update(await self.call(self.store.newest))

    async def keep_rewards(self) -> None:
        """The rewards given so far, to the run's home."""
        if self.run.home.elsewhere:
            await self.rewards.keep(self.run.home)

    async def lend(self, version: int, folder: Path) -> None:
        """The samplers take a policy that need not be the newest, until `update_samplers` or `follow`."""
        await self.call(self.store.lend_folder, version, self.run.home.name(folder))
        await self.samplers.update(version)

    async def hand_over(self, iteration: int) -> None:
        """The samplers take the policy that an iteration begins with, whatever the trainer has published since."""
        if iteration > 0:
            folder = policy_folder(self.run.folder, iteration)
            await self.lend(published_version(folder), folder)
        await self.call(self.stream.samplers_took, iteration, 0)

    async def stop(self, reason: str, *, gently: bool = False) -> None:
        """The same, and engines are shut down."""
        await asyncio.gather(super().stop(reason, gently=gently), self.samplers.stop(), self.rewards.stop())
