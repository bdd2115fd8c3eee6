"""Seconds in which somebody waited on each side of the stream, those of a wait that goes on among them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Waits:
    """Of several waits of one side at a time, each second counts once."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._since: dict[str, float] = {}
        self._over: dict[str, float] = defaultdict(float)

    @contextmanager
    def of(self, side: str) -> Iterator[None]:
        if not self._waiting[side]:
            self._since[side] = time.monotonic()
        self._waiting[side] += 1
        try:
            yield
        finally:
            self._waiting[side] -= 1
            if not self._waiting[side]:
                self._over[side] += time.monotonic() - self._since[side]

    def seconds(self, side: str) -> float:
        since_then = time.monotonic() - self._since[side] if self._waiting[side] else 0.0
        return self._over[side] + since_then
