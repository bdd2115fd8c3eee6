"""Seconds that each side of the stream has waited, those of a wait that goes on among them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Waits:
    """Of one wait a side at a time; one that fails does not count."""

    def __init__(self) -> None:
        self._over: dict[str, float] = defaultdict(float)
        self._since: dict[str, float] = {}

    @contextmanager
    def of(self, side: str) -> Iterator[None]:
        started = self._since[side] = time.monotonic()
        try:
            yield
            self._over[side] += time.monotonic() - started
        finally:
            if self._since.get(side) == started:  # else another has taken its place
                del self._since[side]

    def seconds(self, side: str) -> float:
        now = time.monotonic()
        return self._over[side] + now - self._since.get(side, now)
