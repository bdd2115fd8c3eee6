"""The stream while new weights come within an iteration: who may ask, what a step waits for, what outlives a death."""

import asyncio

from actors.stream import ListStream
from actors.work import IterationEnd, Journal
from larpo.config import Config
from tests.actors.test_stream import Notes, ids, journal_of, make_config, make_list, take


def make_async(every_steps: int = 1, **changes) -> Config:
    return make_config(overlap="async", weights={"every_steps": every_steps}, stream={"capacity": 100}, **changes)


async def annotate(stream, iteration) -> None:
    """Eight lists, all of them."""
    await stream.open_iteration(iteration)
    for number in range(8):
        await stream.ask(f"p{number}")
    await stream.offer([make_list(iteration, number) for number in range(8)])
    await stream.close_iteration(iteration)


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
        assert await stream.wait_published(0, 0, 0.01) is None
        await stream.offer([make_list(0, 4)])
        work = await take(stream, 0)
        await stream.published(0, 7, 1)
        blocked = asyncio.create_task(stream.ask("p9"))
        await asyncio.sleep(0.05)
        held = not blocked.done()
        published = await stream.wait_published(0, 0, 1.0)
        await stream.samplers_took(0, published[1])
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
        await annotate(stream, 0)
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


def test_what_is_published_is_heard_of_in_its_iteration_and_in_no_other(tmp_path):
    """A trainer that resumes within an iteration publishes before the conductor has come so far."""

    async def go():
        stream = ListStream(make_async(), str(tmp_path / "lists"))
        await stream.published(1, 5, 2)
        return [await stream.wait_published(*asked, 0.01) for asked in ((1, 0), (1, 5), (0, 0), (2, 0))]

    assert asyncio.run(go()) == [(5, 2), None, None, None]


def test_prompts_of_the_next_iteration_go_out_while_the_trainer_ends_the_one_before(tmp_path):
    """Steps of four lists, a publication after two, one behind at most: eight lists with the last publication's weights
    can be trained before the next."""

    async def go():
        config, notes = make_async(every_steps=2), Notes()
        stream = ListStream(config, str(tmp_path / "lists"), notes)
        await stream.restore(Journal())
        await annotate(stream, 0)
        await stream.open_iteration(1)
        early = [await stream.ask(f"p{number}") for number in range(8)]
        late = asyncio.create_task(stream.ask("p8"))
        await stream.offer([make_list(1, number).replace(publication=-1) for number in range(2)])
        works = [await take(stream, position) for position in range(3)]
        held = not late.done()
        await stream.samplers_took(1, 0)
        ninth = await late
        again = ListStream(config, str(tmp_path / "lists"), notes)  # its place is in the checkpoint
        await again.restore(journal_of(*works[:2]))
        known = await again.ask("p7"), await again.ask("p8")
        await again.restore(journal_of(*works))
        await again.offer([make_list(1, number).replace(publication=-1) for number in range(2, 8)])
        return early, works, held, ninth, known, [await take(again, position) for position in (3, 4)]

    early, works, held, ninth, known, after = asyncio.run(go())
    assert early == [-1] * 8
    assert [work.publishes for work in works[:2]] == [False, False]  # the iteration's end publishes
    assert works[2] == IterationEnd(2, 0)
    assert held
    assert ninth == 0
    assert known == (-1, 0)
    assert [sorted(ids(work)) for work in after] == [["p0", "p1", "p2", "p3"], ["p4", "p5", "p6", "p7"]]
    assert [work.publishes for work in after] == [False, True]


def test_a_remembered_candidate_has_the_reference_that_came_since_it_was_looked_up(tmp_path):
    """The memory of an iteration is read while the trainer is still in the one before."""

    async def go():
        stream = ListStream(make_async(), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await annotate(stream, 0)
        [known] = [item.candidates[0].id for item in (await take(stream, 0)).lists if item.prompt.id == "p0"]
        await stream.report({}, {known: (-3.0, "reference")})
        await take(stream, 1)
        assert isinstance(await take(stream, 2), IterationEnd)
        lists = [make_list(1, number) for number in range(4)]
        first = lists[0].candidates[0].replace(id=known, origin="remembered")
        lists[0] = lists[0].replace(candidates=(first, *lists[0].candidates[1:]))
        await stream.open_iteration(1)
        await stream.offer(lists)
        return {c.id: c.reference_log_prob for item in (await take(stream, 3)).lists for c in item.candidates}, known

    found, known = asyncio.run(go())
    assert found.pop(known) == -3.0
    assert set(found.values()) == {None}
