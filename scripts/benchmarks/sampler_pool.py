"""A pool of real sampler actors on a Ray of its own, for the benchmarks that measure samplers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from actors.pool import SamplerPool, responses_per_sampler
from larpo.config import Config
from larpo.policy import prepare_policy
from scripts.benchmarks.measuring import BenchmarkError


@contextmanager
def ray_for(config: Config) -> Iterator[None]:
    """Ray with room for the samplers of `config`."""
    import ray

    from actors.capacity import Bundle
    from actors.placement import start_ray

    start_ray(config, "bench", [[Bundle("sampler", config.samplers.resources)] * config.samplers.count])
    try:
        yield
    finally:
        ray.shutdown()


@asynccontextmanager
async def running_pool(config: Config) -> AsyncIterator[tuple[SamplerPool, Any]]:
    """A pool whose samplers are ready, and the store that they take weights from; Ray is there already.

    A sampler that dies voids the measurement: BenchmarkError.
    """
    from actors.engine import EngineOptions
    from actors.placement import kill, place_sampler, place_store

    policy, store, options = prepare_policy(config.policy), place_store(), EngineOptions.of(config)
    failures: list[str] = []
    pool = SamplerPool(
        lambda name: place_sampler(config, options, policy, store, name),
        kill,
        config.samplers,
        config.timeouts,
        responses_per_sampler(config.samplers, config.sampling.k),
        on_failure=lambda name, reason: failures.append(f"{name}: {reason}"),
    )
    try:
        await pool.start()
        yield pool, store
    finally:
        await pool.stop()
        kill(store)
    if failures:
        raise BenchmarkError("samplers were replaced while they were measured: " + "; ".join(failures))


def random_prompts(count: int, tokens: int, vocabulary: int, seed: int) -> list[tuple[int, ...]]:
    """Token ids of prompts that have nothing in common; the same for the same seed."""
    draw = random.Random(seed)
    return [tuple(draw.randrange(vocabulary) for _ in range(tokens)) for _ in range(count)]
