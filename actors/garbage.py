"""Python's garbage collector in the processes that every list goes through."""

from __future__ import annotations

import gc

NEW_OBJECTS = 10_000  # between two looks; of the thousands that a batch of lists makes, almost all stay


def collect_less_often() -> None:
    """By Python's 700 it looks through them again and again: a quarter of what lists cost (`scripts.bench control`)."""
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])
