"""Evaluation of several models, one after another, through sampler and reward actors.

What is sampled and ranked is on disk, in parts, before it counts: the same command again goes on with what is missing.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from actors import placement
from actors.engine import EngineOptions
from actors.evaluation_inputs import EvaluatedModel, PreparedEvaluation, check_comparable
from actors.pool import SamplerPool, responses_per_sampler
from actors.reranking import rerank_all, unreranked
from actors.reward_pool import RewardPool
from actors.sampler import SampleTask
from actors.scoring import score_all, unscored
from larpo.config import Config
from larpo.errors import DataError
from larpo.records import next_part_number, write_part
from larpo.sweep import GREEDY
from larpo.types import CandidateList, Prompt, list_id

Say = Callable[[str], None]


def is_done(evaluation: PreparedEvaluation) -> bool:
    """Whether every response and every score is on disk."""
    answered = (len(evaluation.recorded(model)) for model in evaluation.models)
    complete = all(count == len(evaluation.prompts) for count in answered)
    return complete and not unscored(evaluation) and not unreranked(evaluation)


class Evaluator:
    """Answers every prompt with every model; `say` hears what goes on."""

    def __init__(self, evaluation: PreparedEvaluation, say: Say) -> None:
        self.evaluation, self.config, self.say = evaluation, evaluation.config, say
        self.rewards = RewardPool(self.config, self.failed)

    def failed(self, name: str, reason: str) -> None:
        self.say(f"{name} ended and is replaced: {reason}")

    async def answer_all(self) -> None:
        """Until every model has answered every prompt."""
        try:
            await self.rewards.start()
            check_comparable(self.config, len(self.evaluation.models), joint=self.rewards.joint)  # a server tells now
            for model in self.evaluation.models:
                there = self.evaluation.recorded(model)
                self._check_reward(model, there.values())
                todo = [prompt for prompt in self.evaluation.prompts if prompt.id not in there]
                if todo:
                    await _Answering(self, model, todo).run()
        finally:
            await self.rewards.stop()

    def _check_reward(self, model: EvaluatedModel, lists: Iterable[CandidateList]) -> None:
        strange = {c.reward_fingerprint for item in lists for c in item.candidates} - {self.rewards.fingerprint}
        if strange:
            raise DataError(
                f"{self.evaluation.samples_of(model)} has rewards of another reward model ({strange.pop()}, now"
                f" {self.rewards.fingerprint}); give another --out folder"
            )


class _Answering:
    """One model at work: its samplers, and what has come of them."""

    def __init__(self, evaluator: Evaluator, model: EvaluatedModel, todo: Sequence[Prompt]) -> None:
        self._owner, self._model, self._todo = evaluator, model, todo
        self._config = evaluator.config
        self._folder = evaluator.evaluation.samples_of(model)
        self._ready: list[CandidateList] = []
        self._written = self._failed_rewards = 0
        self._pool = _sampler_pool(self._config, model, evaluator.failed)

    async def run(self) -> None:
        self._owner.say(f"{self._model.name}: starting; {len(self._todo)} prompts to answer")
        ticker = asyncio.create_task(self._tell())
        try:
            await self._pool.start()
            async with asyncio.TaskGroup() as group:
                for prompt in self._todo:
                    group.create_task(self._answer(prompt))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        finally:
            ticker.cancel()
            try:
                self._write()
            finally:
                await self._pool.stop()
        self._owner.say(f"{self._model.name}: all prompts answered")
        if self._failed_rewards:
            self._owner.say(f"{self._failed_rewards} responses could not be rewarded and got reward.failed_reward")

    async def _answer(self, prompt: Prompt) -> None:
        sweep, groups = self._config.evaluation.sweep, []
        for number, temperature in enumerate(sweep.temperatures):
            greedy = ((GREEDY, 1),) if number == 0 else ()
            groups.append((*greedy, (temperature, sweep.samples)))
        sampled = await asyncio.gather(*(self._pool.sample(self._task(prompt, n, c)) for n, c in enumerate(groups)))
        candidates = [candidate for group in sampled for candidate in group]
        (rewards,) = await self._owner.rewards.rank([(prompt, [candidate.text for candidate in candidates])])
        self._failed_rewards += sum(bool(reward.failure) for reward in rewards)
        fingerprint = self._owner.rewards.fingerprint
        ranked = tuple(
            candidate.replace(reward=reward.value, reward_fingerprint=fingerprint)
            for candidate, reward in zip(candidates, rewards, strict=True)
        )
        token_ids = self._model.token_ids[prompt.id]
        self._ready.append(CandidateList(list_id(0, prompt.id), 0, prompt, token_ids, ranked))
        if len(self._ready) >= self._config.stream.lists_per_part:
            self._write()

    def _task(self, prompt: Prompt, number: int, counts: tuple[tuple[float, int], ...]) -> SampleTask:
        return SampleTask(
            key=f"{self._model.name}/{prompt.id}/{number}",
            iteration=0,
            prompt_token_ids=self._model.token_ids[prompt.id],
            counts=counts,
            max_new_tokens=self._config.sampling.max_new_tokens,
            stop=self._config.sampling.stop,
            stop_token_ids=self._model.stop_token_ids,
        )

    def _write(self) -> None:
        """What is ready becomes a part on disk."""
        ready, self._ready = self._ready, []
        if ready:
            write_part(self._folder, ready, 0, next_part_number(self._folder, 0))
            self._written += len(ready)

    async def _tell(self) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(self._config.telemetry.plain_every_s)
            done, seconds = self._written + len(self._ready), time.monotonic() - started
            self._owner.say(f"{self._model.name}: {done}/{len(self._todo)} prompts answered after {seconds:.0f} s")


def _sampler_pool(config: Config, model: EvaluatedModel, on_failure: Callable[[str, str], None]) -> SamplerPool:
    """Samplers of that model. No weights are ever published to them, so that they have no store."""
    options = EngineOptions.of(config)
    return SamplerPool(
        lambda name: placement.place_sampler(config, options, model.policy, None, name),
        placement.kill,
        config.samplers,
        config.timeouts,
        responses_per_sampler(config.samplers, config.evaluation.sweep.samples + 1),
        on_failure=on_failure,
    )


def run_evaluation(evaluation: PreparedEvaluation, say: Say) -> None:
    """Start or join Ray, answer and score what is missing, and stop Ray again. SIGTERM ends it as Ctrl-C does."""
    if is_done(evaluation):
        return
    import ray

    placement.start_ray(evaluation.config, evaluation.folder.name, placement.evaluation_phases(evaluation.config))
    try:
        asyncio.run(_with_signals(evaluation, say))
    finally:
        with suppress(Exception):
            ray.shutdown()


async def _with_signals(evaluation: PreparedEvaluation, say: Say) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await Evaluator(evaluation, say).answer_all()
    await rerank_all(evaluation, say)
    await score_all(evaluation, say)
