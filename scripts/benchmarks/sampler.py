"""`sampler`: the pool of sampler actors against bare vLLM on the same prompts, in tokens a second.

Both have the same engine arguments, but for the executor, of which vLLM takes its own, and the same prompts, other ones
in each repetition. Once these are of random tokens and the end of a response is ignored, so that both give the same
number of tokens; and once they are the quickstart's, whose responses end where the model ends them: some after a few
tokens, some at the limit. No seeds are set: vLLM's engine on CPU can die of them, and no token is compared.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
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
PROMPT_ROOM = 192  # tokens of the quickstart's longest prompts
ROOM = 8  # tokens of an engine's limit beyond prompt and response
MORE = 3  # times as many prompts whose responses end where the model ends them: they are shorter


@dataclass(frozen=True)
class Round:
    """Prompts that are sampled together, and when their responses end."""

    prompts: tuple[tuple[int, ...], ...]
    is_fixed: bool  # every response has as many tokens as it may
    ends: tuple[int, ...] = ()  # ids of tokens that end a response, beside the model's own


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
        length = max(self.prompt_tokens, PROMPT_ROOM) + self.response_tokens + ROOM
        return Config.model_validate(
            {
                "policy": {"model": self.policy, "dtype": self.dtype},
                "sampling": {"k": self.responses},
                "samplers": {"max_model_len": length, "enforce_eager": True},
            }
        )

    def rounds(self) -> list[Round]:
        """Those of random tokens first, with their warm-ups."""
        count = self.warm_ups + self.repetitions
        vocabulary = json.loads((Path(self.policy) / "config.json").read_text())["vocab_size"]
        fixed = [tuple(random_prompts(self.prompts, self.prompt_tokens, vocabulary, seed)) for seed in range(count)]
        found, ends = self._found(count * MORE * self.prompts)
        parts = [found[n::count] for n in range(count)]
        return [Round(prompts, True) for prompts in fixed] + [Round(prompts, False, ends) for prompts in parts]

    def _found(self, count: int) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
        """The quickstart's prompts as the policy reads them, and what ends its turn."""
        from larpo.chat import encode_prompt, stop_token_ids
        from larpo.policy import load_tokenizer
        from larpo.prompts import load_prompts
        from larpo.recipe import load_config

        recipe = load_config("quickstart")
        prompts = load_prompts(recipe.prompts.model_copy(update={"train_count": count})).train
        tokenizer = load_tokenizer(Path(self.policy))
        return tuple(encode_prompt(tokenizer, prompt) for prompt in prompts), stop_token_ids(tokenizer)


def run_sampler(policy: str, prompts: int, repetitions: int, shape: tuple[int, int]) -> Result:
    config = settled(Config.model_validate({"policy": {"model": policy}}))
    folder = prepare_policy(config.policy).path
    work = Sampling(str(folder), config.policy.dtype, prompts, repetitions, *shape)
    sides = {label: in_own_process(side, asdict(work)) for label, side in (("larpo", pool_side), ("vLLM", bare_side))}
    return Result("sampler", {**asdict(work), "policy": folder.name}, _rows(work, sides))


def _rows(work: Sampling, sides: Mapping[str, list[tuple[float, int]]]) -> tuple[Comparison, ...]:
    fixed = f"{work.prompts} prompts of {work.responses} responses"
    free = f"{MORE * work.prompts} prompts of the quickstart, responses end where they end"
    half, rows = work.warm_ups + work.repetitions, []
    for what, part in ((fixed, slice(0, half)), (free, slice(half, None))):
        ours, other = (_rates(label, work, found[part], what == fixed) for label, found in sides.items())
        rows.append(Comparison(what, "tokens/s", ours, other, TARGET))
    return tuple(rows)


def _rates(label: str, work: Sampling, found: Sequence[tuple[float, int]], is_fixed: bool) -> Series:
    short = [tokens for _, tokens in found if tokens != work.tokens]
    if is_fixed and short:
        raise BenchmarkError(f"{label} gave {short} tokens in a repetition, where {work.tokens} were asked for")
    return Series(label, tuple(tokens / seconds for seconds, tokens in found[work.warm_ups :]))


def pool_side(settings: Mapping[str, Any]) -> list[tuple[float, int]]:
    """(seconds, tokens) of each round with the pool of one sampler actor, as the annotation uses it."""
    work = Sampling(**settings)
    with ray_for(work.config):
        return asyncio.run(_pool_rounds(work))


async def _pool_rounds(work: Sampling) -> list[tuple[float, int]]:
    found = []
    async with running_pool(work.config) as (pool, _):
        for number, turn in enumerate(work.rounds()):
            started = time.perf_counter()
            tokens = await _sample_all(pool, work, number, turn)
            found.append((time.perf_counter() - started, tokens))
    return found


async def _sample_all(pool: Any, work: Sampling, number: int, turn: Round) -> int:
    """Tokens of all responses; a prompt waits for its slot, as in a run."""
    from actors.sampler import SampleTask

    async def sample(place: int, prompt: tuple[int, ...]) -> int:
        counts, key = ((1.0, work.responses),), f"{number:04d}/{place}"
        try:
            task = SampleTask(
                key, number, prompt, counts, work.response_tokens, stop_token_ids=turn.ends, ignore_eos=turn.is_fixed
            )
            return sum(len(candidate.token_ids) for candidate in await pool.sample(task))
        finally:
            await pool.free_slots(work.responses)

    tasks = []
    async with asyncio.TaskGroup() as group:
        for place, prompt in enumerate(turn.prompts):
            await pool.take_slots(work.responses)
            tasks.append(group.create_task(sample(place, prompt)))
    return sum(task.result() for task in tasks)


def bare_side(settings: Mapping[str, Any]) -> list[tuple[float, int]]:
    """The same with vLLM's own offline interface, which is given all prompts of a round at one time."""
    from actors.engine import EngineOptions, engine_arguments

    work = Sampling(**settings)
    arguments = engine_arguments(Path(work.policy), EngineOptions.of(work.config))  # before vLLM is imported
    from vllm import LLM, SamplingParams

    llm: Any = LLM(**arguments | {"distributed_executor_backend": None})  # as vLLM runs by itself
    found = []
    try:
        for turn in work.rounds():
            params = SamplingParams(
                n=work.responses,
                temperature=1.0,
                max_tokens=work.response_tokens,
                stop_token_ids=list(turn.ends),
                ignore_eos=turn.is_fixed,
                logprobs=0,
            )
            started = time.perf_counter()
            outputs = llm.generate([{"prompt_token_ids": list(ids)} for ids in turn.prompts], params, use_tqdm=False)
            seconds = time.perf_counter() - started
            found.append((seconds, sum(len(each.token_ids) for output in outputs for each in output.outputs)))
    finally:
        llm.llm_engine.engine_core.shutdown()
    return found
