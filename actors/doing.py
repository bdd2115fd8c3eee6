"""Which actors are at work, as the driver sees it: spans that are there before the work ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

KEPT = 10_000  # spans that wait to be taken; older ones go


class Doing:
    """Keeps spans (actor, start, end), in unix seconds, until someone takes them; an actor does one thing at a time."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._spans: deque[tuple[str, float, float]] = deque(maxlen=KEPT)

    @contextmanager
    def at_work(self, actor: str) -> Iterator[None]:
        self._since[actor] = time.time()
        try:
            yield
        finally:
            self._spans.append((actor, self._since.pop(actor), time.time()))

    def take(self) -> list[tuple[str, float, float]]:
        """What was done since the last call; work that goes on is told up to now."""
        now = time.time()
        self._spans.extend((actor, since, now) for actor, since in self._since.items())
        self._since = dict.fromkeys(self._since, now)
        spans = list(self._spans)
        self._spans.clear()
        return spans
