"""Samplers follow the trainer within an iteration: they take each newest publication while prompts are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.cast import Cast

LOOK_S = 1.0  # how long the stream is asked at a time


class Following:
    """What `follow` yields: until when it goes on."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def end(self) -> None:
        """No more weights are taken; an update that has begun is ended."""
        self.over.set()
        if self.task is not None:
            await self.task


@asynccontextmanager
async def follow(cast: Cast, iteration: int) -> AsyncIterator[Following]:
    """Within it, samplers take each of the weights that are published within that iteration (`overlap: async`)."""
    following = Following()
    async with asyncio.TaskGroup() as group:
        if cast.run.config.overlap == "async":
            following.task = group.create_task(_follow(cast, iteration, following.over))
        try:
            yield following
        finally:
            following.over.set()


async def _follow(cast: Cast, iteration: int, over: asyncio.Event) -> None:
    version, limit = 0, LOOK_S + cast.run.config.timeouts.answer_s
    while not over.is_set():
        wait = cast.stream.wait_published
        found = await cast.call(wait, iteration, version, LOOK_S, limit_s=limit, knob="timeouts.answer_s")
        if found is not None:
            version, publication = found
            await cast.samplers.update(version)
            await cast.call(cast.stream.samplers_took, iteration, publication)
