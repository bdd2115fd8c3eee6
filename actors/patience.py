"""Who waits at the stream, for what, and until when: as long as something moves, or the trainer is at work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from larpo.errors import PhaseTimeout, TrainingError


class Patience:
    """The condition that everybody waits on, and what has moved since when. `limit_s` is timeouts.stream_idle_s.

    `at_work()` tells whether the trainer does what it was given: whether that takes too long is the monitor's to tell.
    """

    def __init__(self, limit_s: float, at_work: Callable[[], bool]) -> None:
        self.changed = asyncio.Condition()
        self.heard = time.monotonic()  # from any rank
        self.error: str | None = None
        self._limit, self._at_work = limit_s, at_work
        self._progressed = time.monotonic()  # lists came, or work was formed

    def moved(self) -> None:
        """Something is under way, if only elsewhere."""
        self._progressed = time.monotonic()

    def progress(self) -> None:
        """Something moved: whoever waits looks again, and its patience begins anew. With `changed` held."""
        self.moved()
        self.changed.notify_all()

    async def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Until `ready`, with `changed` held. PhaseTimeout when nothing moves, TrainingError when the run failed."""
        started = time.monotonic()
        while True:
            moved = max(started, self._progressed, self.heard)
            try:
                left = max(0.05, moved + self._limit - time.monotonic())
                async with asyncio.timeout(left):
                    await self.changed.wait_for(lambda: self.error is not None or ready())
                return self.raise_error()
            except TimeoutError as error:
                if not self._at_work() and max(self._progressed, self.heard) <= moved:
                    message = f"waited for {what}, and nothing moved for {self._limit:g} s (timeouts.stream_idle_s)"
                    raise PhaseTimeout(message) from error

    async def wait_for(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it is so, waiting for it at most `timeout_s`; TrainingError when the run has failed.

        In a task of its own: whoever gives up waiting for a condition needs its lock, which may be held for long.
        """
        waiting = asyncio.create_task(self._until(ready))
        try:
            if not (await asyncio.wait({waiting}, timeout=timeout_s))[0]:
                return False
            await waiting
        finally:
            waiting.cancel()
        self.raise_error()
        return True

    async def _until(self, ready: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.error is not None or ready())

    def raise_error(self) -> None:
        if self.error is not None:
            raise TrainingError(self.error)
