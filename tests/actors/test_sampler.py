"""A sampler that takes new weights while it samples, over an engine that answers when the test says."""

import asyncio
import dataclasses
from types import SimpleNamespace

import pytest

from actors.engine import Sample
from actors.sampler import Sampler, SampleTask
from larpo.errors import SamplerError

TASK = SampleTask("0000/p", 0, (1, 2), ((1.0, 1),), 4)


class Engine:
    """Notes what it is asked for, and answers at the event."""

    def __init__(self):
        self.done, self.said = asyncio.Event(), []

    async def generate(self, request_id, prompt_token_ids, **settings):
        self.said.append(f"begins {request_id}")
        await self.done.wait()
        self.said.append(f"ends {request_id}")
        return Sample("", (3,), (-1.0,), "stop", ())

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
        sampler = Sampler(SimpleNamespace(max_num_seqs=8), SimpleNamespace(path=tmp_path), Store(), finishes)
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


class Places:
    """An engine whose responses end one by one, when the test says which."""

    first_token_at = None

    def __init__(self):
        self.running: dict[str, asyncio.Future] = {}

    async def generate(self, request_id, prompt_token_ids, **settings):
        self.running[request_id] = asyncio.get_running_loop().create_future()
        try:
            return await self.running[request_id]
        finally:
            del self.running[request_id]

    async def end(self, request_id):
        self.running[request_id].set_result(Sample("", (3,), (-1.0,), "stop", ()))
        for _ in range(5):
            await asyncio.sleep(0)

    async def check_health(self):
        pass


def test_a_prompt_begins_in_the_places_that_shorter_responses_leave(tmp_path):
    """Four places, prompts of two responses: one place is enough to begin, and one prompt at most waits in vLLM."""

    async def go():
        sampler = Sampler(SimpleNamespace(max_num_seqs=4), SimpleNamespace(path=tmp_path), Store())
        sampler._engine = engine = Places()
        pair = dataclasses.replace(TASK, counts=((0.5, 1), (1.0, 1)))
        prompts = [asyncio.create_task(sampler.sample(dataclasses.replace(pair, key=str(n)))) for n in range(4)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        seen = [set(engine.running)]
        for ends in ("0#1.0", "1#2.0", "0#1.1", "1#2.1"):
            await engine.end(ends)
            seen.append(set(engine.running))
        assert [len(each) for each in seen] == [4, 5, 4, 5, 4]
        assert seen[1] - seen[0] == {"2#3.0", "2#3.1"}  # before the first prompt is answered
        assert (await sampler.stats()).in_flight == 2
        for request in sorted(engine.running):
            await engine.end(request)
        answers = await asyncio.gather(*prompts)
        assert [[each.id for each in answer] for answer in answers] == [[f"{n}/0", f"{n}/1"] for n in range(4)]
        assert [candidate.temperature for candidate in answers[3]] == [0.5, 1.0]
        stats = await sampler.stats()
        assert (stats.in_flight, stats.prompts, stats.samples) == (0, 4, 8)

    asyncio.run(go())


def test_the_share_of_filled_places_is_of_the_time_at_work(tmp_path):
    async def go():
        sampler = Sampler(SimpleNamespace(max_num_seqs=4), SimpleNamespace(path=tmp_path), Store())
        sampler._engine = engine = Places()
        prompt = asyncio.create_task(sampler.sample(dataclasses.replace(TASK, counts=((1.0, 2),))))
        await asyncio.sleep(0.2)
        await engine.end("0000/p#1.0")
        await asyncio.sleep(0.2)
        await engine.end("0000/p#1.1")
        await prompt
        await asyncio.sleep(0.2)  # idle: not counted
        return await sampler.stats()

    stats = asyncio.run(go())
    assert stats.busy_seconds == pytest.approx(0.4, rel=0.2)
    assert stats.places_filled == pytest.approx(1.5 / 4, rel=0.05)


def test_a_prompt_that_waits_for_a_place_has_not_begun_when_new_weights_come(tmp_path):
    async def go():
        sampler = Sampler(SimpleNamespace(max_num_seqs=1), SimpleNamespace(path=tmp_path), Store())
        sampler._engine = engine = Engine()
        prompts = [asyncio.create_task(sampler.sample(TASK)) for _ in range(2)]
        await asyncio.sleep(0)
        update = asyncio.create_task(sampler.update(1))
        await asyncio.sleep(0.1)
        engine.done.set()
        await asyncio.gather(update, *prompts)
        return engine.said

    one, two = "0000/p#1.0", "0000/p#2.0"
    said = asyncio.run(go())
    assert said == [f"begins {one}", "prepares", f"ends {one}", "takes v1", f"begins {two}", f"ends {two}"]


def test_what_waits_in_a_sampler_that_leaves_is_not_begun(tmp_path):
    async def go():
        sampler = Sampler(SimpleNamespace(max_num_seqs=1), SimpleNamespace(path=tmp_path), Store())
        sampler._engine = engine = Engine()
        first, second = (asyncio.create_task(sampler.sample(TASK)) for _ in range(2))
        await asyncio.sleep(0.05)
        await sampler.leave()
        with pytest.raises(SamplerError, match="leaves"):
            await asyncio.wait_for(second, 5)
        with pytest.raises(SamplerError, match="leaves"):
            await sampler.sample(TASK)
        engine.done.set()
        await first
        return engine.said

    assert asyncio.run(go()) == ["begins 0000/p#1.0", "ends 0000/p#1.0"]
