"""Samplers follow the trainer within an iteration: they take each newest publication while prompts are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.cast import Cast

LOOK_S = 1.0  # how long the stream is asked at a time


class Following:
    """What `follow` yields: samplers take each newest publication of an iteration, until it is ended."""

    def __init__(self, cast: Cast, iteration: int) -> None:
        self._cast, self._iteration = cast, iteration
        self._taking = asyncio.Lock()
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        stream, version = self._cast.stream, 0
        limit, knob = LOOK_S + self._cast.run.config.timeouts.answer_s, "timeouts.answer_s"
        while True:
            asked = (self._iteration, version, LOOK_S)
            found = await self._cast.call(stream.wait_published, *asked, limit_s=limit, knob=knob)
            if found is not None:
                version, publication = found
                async with self._taking:
                    await self._cast.samplers.update(version)
                    await self._cast.call(stream.samplers_took, self._iteration, publication)

    async def end(self) -> None:
        """No more weights are taken; an update that has begun is ended."""
        async with self._taking:
            if self.task is not None:
                self.task.cancel()


@asynccontextmanager
async def follow(cast: Cast, iteration: int) -> AsyncIterator[Following]:
    """Within it, samplers take each of the weights that are published within that iteration (`overlap: async`)."""
    following = Following(cast, iteration)
    async with asyncio.TaskGroup() as group:
        if cast.run.config.overlap == "async":
            following.task = group.create_task(following.run())
        yield following
        await following.end()
