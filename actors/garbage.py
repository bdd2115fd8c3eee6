"""Python's garbage collector in the processes that every list goes through."""

from __future__ import annotations

import gc

NEW_OBJECTS = 10_000  # between two looks; of the thousands that a batch of lists makes, almost all stay


def collect_less_often() -> None:
    """Of the whole process. By Python's own 700 it looks again and again through lists that are there to stay."""
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])
