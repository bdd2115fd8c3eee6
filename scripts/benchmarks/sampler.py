"""`sampler`: the pool of sampler actors against bare vLLM on the same prompts, in tokens a second.

Both have the same engine arguments, but for the executor, of which vLLM takes its own; the same prompts of random
tokens, other ones in each repetition; and ignore the end of a response, so that both give the same number of tokens. No
seeds are set: vLLM's engine on CPU can die of them, and no token is compared.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from larpo.compute_type import settled
from larpo.config import Config
from larpo.policy import prepare_policy
from scripts.benchmarks.measuring import BenchmarkError, Comparison, Result, Series, in_own_process
from scripts.benchmarks.sampler_pool import random_prompts, ray_for, running_pool

TARGET = ">= 0.97"
RESPONSES = 8  # a prompt
ROOM = 8  # tokens of an engine's limit beyond prompt and response


@dataclass(frozen=True)
class Sampling:
    """What both sides are asked for, `warm_ups` times before those that count."""

    policy: str  # folder
    dtype: str
    prompts: int
    repetitions: int
    prompt_tokens: int
    response_tokens: int
    responses: int = RESPONSES
    warm_ups: int = 1

    @property
    def tokens(self) -> int:
        return self.prompts * self.responses * self.response_tokens

    @property
    def config(self) -> Config:
        length = self.prompt_tokens + self.response_tokens + ROOM
        return Config.model_validate(
            {
                "policy": {"model": self.policy, "dtype": self.dtype},
                "sampling": {"k": self.responses},
                "samplers": {"max_model_len": length, "enforce_eager": True},
            }
        )

    def rounds(self) -> list[list[tuple[int, ...]]]:
        vocabulary = json.loads((Path(self.policy) / "config.json").read_text())["vocab_size"]
        count = self.warm_ups + self.repetitions
        return [random_prompts(self.prompts, self.prompt_tokens, vocabulary, seed) for seed in range(count)]


def run_sampler(policy: str, prompts: int, repetitions: int, shape: tuple[int, int]) -> Result:
    config = settled(Config.model_validate({"policy": {"model": policy}}))
    folder = prepare_policy(config.policy).path
    work = Sampling(str(folder), config.policy.dtype, prompts, repetitions, *shape)
    sides = {label: in_own_process(side, asdict(work)) for label, side in (("larpo", pool_side), ("vLLM", bare_side))}
    ours, other = (_rates(label, work, found) for label, found in sides.items())
    row = Comparison(f"{prompts} prompts of {work.responses} responses", "tokens/s", ours, other, TARGET)
    return Result("sampler", {**asdict(work), "policy": folder.name}, (row,))


def _rates(label: str, work: Sampling, found: list[tuple[float, int]]) -> Series:
    short = [tokens for _, tokens in found if tokens != work.tokens]
    if short:
        raise BenchmarkError(f"{label} gave {short} tokens in a repetition, where {work.tokens} were asked for")
    return Series(label, tuple(tokens / seconds for seconds, tokens in found[work.warm_ups :]))


def pool_side(settings: Mapping[str, Any]) -> list[tuple[float, int]]:
    """(seconds, tokens) of each round with the pool of one sampler actor, as the annotation uses it."""
    work = Sampling(**settings)
    with ray_for(work.config):
        return asyncio.run(_pool_rounds(work))


async def _pool_rounds(work: Sampling) -> list[tuple[float, int]]:
    from actors.cast import prompts_per_sampler

    found = []
    async with running_pool(work.config, prompts_per_sampler(work.config)) as (pool, _):
        for number, prompts in enumerate(work.rounds()):
            started = time.perf_counter()
            tokens = await _sample_all(pool, work, number, prompts)
            found.append((time.perf_counter() - started, tokens))
    return found


async def _sample_all(pool: Any, work: Sampling, number: int, prompts: list[tuple[int, ...]]) -> int:
    """Tokens of all responses; a prompt waits for its slot, as in a run."""
    from actors.sampler import SampleTask

    async def sample(place: int, prompt: tuple[int, ...]) -> int:
        counts, key = ((1.0, work.responses),), f"{number:04d}/{place}"
        try:
            task = SampleTask(key, number, prompt, counts, work.response_tokens, ignore_eos=True)
            return sum(len(candidate.token_ids) for candidate in await pool.sample(task))
        finally:
            await pool.free_slot()

    tasks = []
    async with asyncio.TaskGroup() as group:
        for place, prompt in enumerate(prompts):
            await pool.take_slot()
            tasks.append(group.create_task(sample(place, prompt)))
    return sum(task.result() for task in tasks)


def bare_side(settings: Mapping[str, Any]) -> list[tuple[float, int]]:
    """The same with vLLM's own offline interface, which is given all prompts of a round at one time."""
    from actors.engine import EngineOptions, engine_arguments

    work = Sampling(**settings)
    arguments = engine_arguments(Path(work.policy), EngineOptions.of(work.config))  # before vLLM is imported
    from vllm import LLM, SamplingParams

    params = SamplingParams(
        n=work.responses, temperature=1.0, max_tokens=work.response_tokens, ignore_eos=True, logprobs=0
    )
    llm: Any = LLM(**arguments | {"distributed_executor_backend": None})  # as vLLM runs by itself
    found = []
    try:
        for prompts in work.rounds():
            started = time.perf_counter()
            outputs = llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
            seconds = time.perf_counter() - started
            found.append((seconds, sum(len(each.token_ids) for output in outputs for each in output.outputs)))
    finally:
        llm.llm_engine.engine_core.shutdown()
    return found
