"""Which process an actor is, and what memory it holds: what is known of it when it has died."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

_EVERY_S = 5.0  # looking at every child process takes some milliseconds


@dataclass(frozen=True)
class Vitals:
    """Of one actor: the id of its process, and the bytes that it and its children hold alone (0: not known)."""

    process: int
    memory_bytes: int


NOT_KNOWN = Vitals(0, 0)
_known: tuple[float, Vitals] | None = None


def vitals() -> Vitals:
    """This process's, not older than a few seconds."""
    global _known
    if _known is None or time.monotonic() - _known[0] > _EVERY_S:
        _known = (time.monotonic(), Vitals(os.getpid(), memory_of_this_process()))
    return _known[1]


def memory_of_this_process() -> int:
    """Bytes that this process and its children hold, without what they share with others; 0: not known."""
    import psutil

    own = psutil.Process()
    return sum(_alone(process) for process in (own, *own.children(recursive=True)))


def _alone(process: Any) -> int:
    import psutil

    try:
        memory = process.memory_info()
    except psutil.Error:  # it has ended
        return 0
    return max(0, memory.rss - getattr(memory, "shared", 0))
