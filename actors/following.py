"""Samplers follow the trainer within an iteration: they take each newest publication while prompts are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.cast import Cast

LOOK_S = 1.0  # how long the stream is asked at a time


@asynccontextmanager
async def follow(cast: Cast) -> AsyncIterator[None]:
    """Within it, every sampler takes the weights that the trainer publishes; an update that has begun is ended."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(_follow(cast, over))
        try:
            yield
        finally:
            over.set()


async def _follow(cast: Cast, over: asyncio.Event) -> None:
    version, limit = 0, LOOK_S + cast.run.config.timeouts.answer_s
    while not over.is_set():
        found = await cast.call(cast.stream.wait_published, version, LOOK_S, limit_s=limit, knob="timeouts.answer_s")
        if found is not None:
            version, publication = found
            await cast.samplers.update(version)
            await cast.call(cast.stream.samplers_took, publication)
