"""How a run hears that it is to stop."""

import asyncio
import os
import signal

import pytest

from actors.session import _with_signals


def test_a_second_sigterm_does_not_break_the_orderly_stop():
    ended = []

    async def conductor(run):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(30)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.1)
            ended.append(run)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_with_signals("run", conductor))
    assert ended == ["run"]
