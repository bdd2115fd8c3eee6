"""How a run hears that it is to stop."""

import asyncio
import os
import signal
from types import SimpleNamespace

import pytest

from actors.monitor import last_words
from actors.session import _with_signals
from larpo.config import Config


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


def told(call):
    """What is logged and said of a stopped run whose stream is asked by `call`."""
    logged, said = [], []
    progress = SimpleNamespace(step=1, loss=2.0, log=lambda *told, **fields: logged.append((told, fields)))
    progress.say = said.append
    cast = SimpleNamespace(run=SimpleNamespace(config=Config()), stream=SimpleNamespace(status="status"), call=call)
    asyncio.run(last_words(cast, progress))
    return logged, said, progress.step


def test_the_step_that_ends_as_a_run_is_stopped_is_told():
    async def call(method, **_):
        step = {"rank": 0, "spans": (), "step": 2, "iteration": 0, "epoch": 1, "metrics": {"train/loss": 1.0}}
        return SimpleNamespace(reports=({"rank": 1, "spans": ()}, step, {"rank": 0, "spans": ()}))

    logged, said, step = told(call)
    assert logged == [(("step", {"train/loss": 1.0}), {"step": 2, "iteration": 0, "epoch": 1})]
    assert (said, step) == ([], 2)


def test_a_stream_that_is_gone_keeps_no_run_from_being_stopped():
    async def call(method, **_):
        raise RuntimeError("nobody there")

    logged, (said,), _ = told(call)
    assert logged == []
    assert said == "the trainer's last steps are not told (RuntimeError: nobody there)"
