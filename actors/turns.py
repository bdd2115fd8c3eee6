"""Turns on one GPU: the sampler's engine sleeps while the trainer works, whose state leaves the GPU while that samples.

`samplers.sleep`. In one iteration: the sampler answers all prompts, sleeps, and the turn is the trainer's; the trainer
comes back to the GPU, trains, publishes, leaves, and says so; the sampler wakes and takes the new weights. A trainer
that starts anew waits for its turn before it touches the GPU, and so does the engine of a sampler that is replaced.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from larpo.errors import PhaseTimeout

if TYPE_CHECKING:
    from actors.cast import Cast
    from actors.zero_engine import ZeroEngine
    from larpo.config import Timeouts

LOOK_S = 5.0  # how long one question waits for an answer before it is asked again


class Turns:
    """Wrapped by `ray.remote` where it is placed: whose turn it is, and whether the trainer is on the GPU."""

    def __init__(self) -> None:
        self._turn: Literal["trainer", "samplers"] = "trainer"
        self._is_there = True  # the trainer, which comes first
        self._changed = asyncio.Condition()

    async def to_trainer(self) -> None:
        """It is the trainer's turn: the samplers sleep."""
        async with self._changed:
            self._turn = "trainer"
            self._changed.notify_all()

    async def to_samplers(self, wait_s: float) -> bool:
        """It is the samplers' turn from the moment when the trainer is away; waits a little; returns whether it is."""
        async with self._changed:
            if not await self._wait(lambda: not self._is_there, wait_s):
                return False
            self._turn = "samplers"
            return True

    async def enter(self, wait_s: float) -> bool:
        """The trainer comes to the GPU if it is its turn, waiting a little for that; returns whether it is."""
        async with self._changed:
            if not await self._wait(lambda: self._turn == "trainer", wait_s):
                return False
            self._is_there = True
            return True

    async def leave(self) -> None:
        """The trainer has left the GPU."""
        async with self._changed:
            self._is_there = False
            self._changed.notify_all()

    async def _wait(self, ready: Any, wait_s: float) -> bool:
        try:
            await asyncio.wait_for(self._changed.wait_for(ready), wait_s)
        except TimeoutError:
            return False
        return True


class Visits:
    """The trainer's side, in its rank. Without turns (`turns` of None) it is on the GPU for good.

    `give_sign` is called every few seconds while it waits: it may have started anew within the samplers' turn.
    """

    def __init__(self, turns: Any, timeouts: Timeouts, give_sign: Callable[[], object]) -> None:
        self._turns, self._limit, self._give_sign = turns, timeouts.answer_s, give_sign
        self._is_there = turns is None

    def enter(self, engine: ZeroEngine | None = None) -> None:
        """Until it is the trainer's turn; then the engine, if there is one already, comes back to the GPU.

        Without a limit: what the samplers do in their turn has limits of its own, which end the run.
        """
        import ray

        if self._is_there:
            return
        while not ray.get(self._turns.enter.remote(LOOK_S), timeout=LOOK_S + self._limit):
            self._give_sign()
        self._is_there = True
        if engine is not None:
            engine.come_back()

    def leave(self, engine: ZeroEngine) -> None:
        import ray

        if self._turns is None:
            return
        engine.leave()
        self._is_there = False
        ray.get(self._turns.leave.remote(), timeout=self._limit)


async def begin_training(cast: Cast) -> None:
    """The conductor gives the turn to the trainer: the samplers have answered all prompts, and sleep."""
    if cast.turns is None:
        return
    await cast.samplers.sleep()
    await cast.call(cast.turns.to_trainer)


async def begin_sampling(cast: Cast, knob: str) -> None:
    """The conductor gives the turn to the samplers, when the trainer has left; PhaseTimeout after `timeouts.<knob>`."""
    if cast.turns is None:
        return
    limit, started = getattr(cast.run.config.timeouts, knob), time.monotonic()
    while not await cast.call(cast.turns.to_samplers, LOOK_S):
        if time.monotonic() - started > limit:
            raise PhaseTimeout(f"the trainer did not leave the GPU within {limit:g} s (timeouts.{knob})")
    await cast.samplers.wake()
