"""The stream while new weights come within an iteration: who may ask, what a step waits for, what outlives a death."""

import asyncio

from actors.stream import ListStream
from actors.work import Journal
from larpo.config import Config
from tests.actors.test_stream import Notes, ids, make_config, make_list, take


def make_async(**changes) -> Config:
    return make_config(overlap="async", weights={"every_steps": 1}, stream={"capacity": 100}, **changes)


def test_prompts_are_held_back_until_their_lists_can_be_trained_in_time(tmp_path):
    """Steps of four lists, each published, at most one publication behind: eight prompts, then one step at a time."""

    async def go():
        stream = ListStream(make_async(), str(tmp_path / "lists"), Notes())
        await stream.restore(Journal())
        await stream.open_iteration(0)
        first = [await stream.ask(f"p{n}") for n in range(8)]
        late = asyncio.create_task(stream.ask("p8"))
        await stream.offer([make_list(0, n) for n in range(3)])
        await stream.offer([make_list(0, 3, rewards=(1.0, 1.0))])  # carries no signal: there is room for another
        ninth = await late
        assert await stream.wait_published(0, 0.01) is None
        await stream.offer([make_list(0, 4)])
        work = await take(stream, 0)
        await stream.published(0, 7, 1)
        blocked = asyncio.create_task(stream.ask("p9"))
        await asyncio.sleep(0.05)
        held = not blocked.done()
        published = await stream.wait_published(0, 1.0)
        await stream.samplers_took(published[1])
        return first, ninth, work, held, published, await blocked

    first, ninth, work, held, published, tenth = asyncio.run(go())
    assert (first, ninth) == ([0] * 8, 0)
    assert (ids(work), work.publication, work.publishes) == (["p0", "p1", "p2", "p4"], 0, True)
    assert held
    assert published == (7, 1)
    assert tenth == 1


def test_nothing_is_published_within_an_iteration_that_no_prompt_is_left_of(tmp_path):
    """Nobody would sample with it: the next iteration begins with the weights of this one's end."""

    async def go():
        stream = ListStream(make_async(), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        for number in range(8):
            await stream.ask(f"p{number}")
        await stream.offer([make_list(0, number) for number in range(8)])
        await stream.close_iteration(0)
        return [await take(stream, position) for position in range(2)]

    assert [(work.list_count, work.publishes) for work in asyncio.run(go())] == [(4, False), (4, False)]


def test_a_step_waits_for_a_list_that_would_be_too_stale_after_it(tmp_path):
    """With no staleness allowed and one step between publications, whoever was asked first must be in it."""

    async def go():
        stream = ListStream(make_async(max_staleness=0), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        for number in range(4):
            await stream.ask(f"p{number}")
        await stream.offer([make_list(0, number) for number in (1, 2, 3)])
        asking = asyncio.create_task(take(stream, 0))
        await asyncio.sleep(0.05)
        waited = not asking.done()
        await stream.offer([make_list(0, 0)])
        return waited, await asking

    waited, work = asyncio.run(go())
    assert waited
    assert sorted(ids(work)) == ["p0", "p1", "p2", "p3"]


def test_a_stream_that_is_started_again_knows_which_prompts_are_with_samplers(tmp_path):
    async def go():
        folder, notes, config = str(tmp_path / "lists"), Notes(), make_async()
        first = ListStream(config, folder, notes)
        await first.restore(Journal())
        await first.open_iteration(0)
        for number in range(8):
            await first.ask(f"p{number}")
        await first.offer([make_list(0, 0)])
        again = ListStream(config, folder, notes)
        await again.restore(Journal())
        assert await again.ask("p3") == 0  # Ray repeats a call
        blocked = asyncio.create_task(again.ask("p8"))
        await asyncio.sleep(0.05)
        held = not blocked.done()
        blocked.cancel()
        return held

    assert asyncio.run(go())


def test_what_was_published_before_the_iteration_is_opened_is_heard_of_in_it_and_in_no_other(tmp_path):
    """A trainer that resumes within an iteration publishes before the conductor has come so far."""

    async def go():
        stream = ListStream(make_async(), str(tmp_path / "lists"))
        await stream.published(1, 5, 2)
        await stream.open_iteration(1)
        found = await stream.wait_published(0, 0.01), await stream.wait_published(5, 0.01)
        await stream.open_iteration(2)
        return *found, await stream.wait_published(0, 0.01)

    assert asyncio.run(go()) == ((5, 2), None, None)
