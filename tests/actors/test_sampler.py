"""A sampler that takes new weights while it samples, over an engine that answers when the test says."""

import asyncio
from types import SimpleNamespace

import pytest

from actors.engine import Sample
from actors.sampler import Sampler, SampleTask

TASK = SampleTask("0000/p", 0, (1, 2), ((1.0, 1),), 4)


class Engine:
    """Notes what it is asked for, and answers at the event."""

    def __init__(self):
        self.done, self.said = asyncio.Event(), []

    async def generate(self, request_id, prompt_token_ids, **settings):
        self.said.append(f"begins {request_id}")
        await self.done.wait()
        self.said.append(f"ends {request_id}")
        return [Sample("", (3,), (-1.0,), "stop", ())]

    async def prepare_weights(self, paths, partial):
        self.said.append("prepares")
        return True

    async def swap_weights(self, version):
        self.said.append(f"takes v{version}")
        return 0.0


class Store:
    def __init__(self):
        self.buckets = SimpleNamespace(remote=self._none)

    async def _none(self, version):
        return ()


@pytest.mark.parametrize("finishes", [True, False])
def test_responses_in_progress_end_first_where_they_are_to_and_new_prompts_wait(tmp_path, finishes):
    async def go():
        sampler = Sampler(SimpleNamespace(), SimpleNamespace(path=tmp_path), Store(), finishes)
        sampler._engine = engine = Engine()
        first = asyncio.create_task(sampler.sample(TASK))
        await asyncio.sleep(0)
        update = asyncio.create_task(sampler.update(1))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(sampler.sample(TASK))
        await asyncio.sleep(0.1)
        engine.done.set()
        assert await update == 1
        await asyncio.gather(first, second)
        return engine.said

    said = asyncio.run(go())
    one, two = "0000/p#1.0", "0000/p#2.0"
    if finishes:
        assert said == [f"begins {one}", "prepares", f"ends {one}", "takes v1", f"begins {two}", f"ends {two}"]
    else:
        assert said == [f"begins {one}", "prepares", "takes v1", f"begins {two}", f"ends {one}", f"ends {two}"]
