"""What the driver pushes to the run's home beside what begins to count: the log every so often, the rest at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from actors.telemetry import METRICS_FILE
from larpo.errors import StorageError
from larpo.home import Home
from larpo.home_sessions import push_rest

EVERY_S = 10.0  # the log
_SHARE = 20  # of the time, what pushing a long log may take


@contextmanager
def kept(home: Home) -> Iterator[None]:
    """Around a run: its log goes to the home while it grows, and what is left when the run ends, well or badly.

    Raises StorageError when what is left cannot be pushed at a good end; at a bad end what ended the run is raised.
    """
    if not home.elsewhere:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_push_log, args=(replace(home, limit_s=EVERY_S), over), name="push-log")
    thread.start()
    try:
        try:
            yield
        finally:
            over.set()
            thread.join()  # an older log must not come after the last one
    except BaseException:
        try:
            push_rest(home)
        except StorageError as error:  # what ended the run is what the user should read
            print(f"alarm: {error}", file=sys.stderr)
        raise
    push_rest(home)


def _push_log(home: Home, over: threading.Event) -> None:
    """Until the run is over. What fails is tried again in the next round: pushes that count tell of lasting causes."""
    pause = EVERY_S
    while not over.wait(pause):
        started = time.monotonic()
        try:
            home.push_copy(home.folder / METRICS_FILE)
        except StorageError as error:
            print(f"alarm: the log could not be pushed: {error}", file=sys.stderr)
        pause = max(EVERY_S, _SHARE * (time.monotonic() - started))
