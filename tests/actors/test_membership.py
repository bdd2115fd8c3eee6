"""Samplers that join the pool and leave it, over doubles: nothing is lost, and nobody is blamed."""

import asyncio
import threading

import pytest

from larpo.errors import NotPlaced, SamplerError
from tests.pool_doubles import Double, House, dies, hangs, settled


class Gate:
    """A call that returns what it was given, or 0, once it is opened."""

    def __init__(self):
        self.opened = asyncio.Event()

    async def __call__(self, *given):
        await self.opened.wait()
        return given[0] if given else 0


def statuses(pool):
    return {member.name: member.status for member in pool.members}


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_joining_sampler_has_the_newest_weights_before_its_first_prompt():
    async def go():
        node, calls = Gate(), []

        async def takes(version):
            calls.append(version)
            return version

        async def answers(task):
            calls.append(task.key)
            return [task.key]

        joiner = Double("joiner", placed=node, update=takes, sample=answers)
        house = House(Double("first"), joiner, per_sampler=1, max_count=2)
        await house.pool.start()
        house.pool.resize(2)
        await house.pool.update(3)
        await house.pool.update(5)  # 3 may be gone from the store by the time that a node is there
        node.opened.set()
        await until(lambda: house.pool.ready == 2)
        await house.sample("a", "b")
        assert calls[0] == 5
        assert len(calls) == 2

    asyncio.run(go())


def test_a_sampler_without_a_node_is_pending_which_is_no_failure_and_takes_nothing_of_the_engines_time():
    async def go():
        node = Gate()
        joiner = Double("joiner", placed=node)
        house = House(Double("first"), joiner, max_count=2, timeouts={"engine_start_s": 0.05})
        await house.pool.start()
        house.pool.resize(2)
        await asyncio.sleep(0.1)
        assert (house.pool.ready, house.pool.coming, house.pool.wanted) == (1, 1, 2)
        assert statuses(house.pool) == {"sampler-0": "ready", "sampler-1": "pending"}
        assert await house.sample("1") == [["1 by first"]]
        node.opened.set()
        await until(lambda: house.pool.ready == 2)
        assert (house.failures, house.pool.restarts, house.pool.take_alarms()) == ([], 0, [])

    asyncio.run(go())


def test_a_sampler_that_no_node_has_room_for_is_withdrawn_with_an_alarm():
    async def go():
        joiner = Double("joiner", placed=hangs)
        house = House(Double("first"), joiner, max_count=2, timeouts={"placement_s": 0.05})
        await house.pool.start()
        house.pool.resize(2)
        await until(lambda: joiner.killed)
        assert (house.pool.ready, house.pool.coming, house.pool.wanted) == (1, 0, 1)
        (alarm,) = house.pool.take_alarms()
        assert "no node had room for it within 0.05 s (timeouts.placement_s)" in alarm
        assert await house.sample("1") == [["1 by first"]]
        assert (house.failures, house.pool.restarts) == ([], 0)

    asyncio.run(go())


def test_without_nodes_for_the_least_the_pool_ends():
    async def go():
        house = House(Double("only", placed=hangs), timeouts={"placement_s": 0.05})
        with pytest.raises(NotPlaced, match="sampler-0 was asked for, and no node had room"):
            await house.pool.start()

    asyncio.run(go())


def test_a_run_begins_with_the_least_and_the_others_join_as_they_come():
    async def go():
        node = Gate()
        house = House(Double("a"), Double("b", placed=node), Double("c", placed=node), count=3, min_count=1)
        await asyncio.wait_for(house.pool.start(), 5)
        assert await house.sample("1") == [["1 by a"]]
        node.opened.set()
        await until(lambda: house.pool.ready == 3)

    asyncio.run(go())


def test_a_leaving_sampler_takes_no_prompt_answers_what_it_has_and_ends():
    async def go():
        gate = Gate()
        leaving = Double("leaving", sample=gate)
        house = House(leaving, Double("stays", sample=hangs), count=2, min_count=1, per_sampler=1)
        await house.pool.start()
        first = house.sample("1", "2")
        await settled()
        house.pool.let_go(house.pool.members[0])
        assert statuses(house.pool) == {"sampler-0": "leaving", "sampler-1": "ready"}
        waiting = house.sample("3")
        await settled()
        assert leaving.tasks == ["1"]
        assert not leaving.killed
        gate.opened.set()
        await until(lambda: leaving.killed)
        assert [member.name for member in house.pool.members] == ["sampler-1"]
        assert (house.pool.handed_back, house.pool.requeued) == (0, 0)
        first.cancel(), waiting.cancel()

    asyncio.run(go())


def test_what_a_leaving_sampler_does_not_answer_in_time_is_answered_elsewhere_and_counts_against_nobody():
    async def go():
        leaving = Double("leaving", sample=hangs)
        house = House(leaving, Double("next"), max_count=2, drain_s=0.05, per_sampler=3)
        await house.pool.start()
        answers = house.sample("1", "2", "3", "4")
        await settled()
        house.pool.resize(2)
        await until(lambda: house.pool.ready == 2)
        house.pool.let_go(house.pool.members[0])
        assert await asyncio.wait_for(answers, 5) == [[f"{key} by next"] for key in "1234"]
        await until(lambda: leaving.killed)
        assert house.pool.handed_back == 3
        assert (house.pool.requeued, house.pool.restarts, house.failures) == (0, 0, [])
        assert [member.name for member in house.pool.departed] == ["sampler-0"]

    asyncio.run(go())


def test_samplers_whose_node_is_told_to_go_leave_in_order_and_others_come():
    async def go():
        gate = Gate()
        going, stays = Double("going", node="spot", sample=gate), Double("stays", node="kept")
        house = House(going, stays, Double("next", node="another"), count=2, per_sampler=1)
        await house.pool.start()
        first = house.sample("1")
        await settled()
        house.draining = {"spot", "one that has none of ours"}
        await house.pool.poll()
        assert statuses(house.pool)["sampler-0"] == "leaving"
        await house.pool.poll()  # it has been told already
        await until(lambda: house.pool.ready == 2)
        assert [actor.name for actor in house.placed] == ["going", "stays", "next"]
        assert not going.killed
        gate.opened.set()
        (answer,) = await asyncio.wait_for(first, 5)  # a gate gives back what it was given
        assert answer.key == "1"
        await until(lambda: going.killed)
        assert [member.name for member in house.pool.members] == ["sampler-1", "sampler-2"]
        assert (house.pool.restarts, house.pool.requeued, house.failures) == (0, 0, [])
        assert house.pool.take_alarms() == ["sampler-0 leaves its node, which is told to go: another is asked for"]

    asyncio.run(go())


def test_the_only_sampler_may_leave_a_node_that_is_told_to_go():
    """Prompts wait until the next one is ready."""

    async def go():
        node = Gate()
        house = House(Double("going", node="spot"), Double("next", node="another", start=node))
        await house.pool.start()
        house.draining = {"spot"}
        await house.pool.poll()
        waiting = house.sample("1")
        await settled()
        assert (house.pool.ready, house.pool.coming) == (0, 1)
        node.opened.set()
        assert await asyncio.wait_for(waiting, 5) == [["1 by next"]]

    asyncio.run(go())


def test_a_look_at_the_nodes_that_takes_too_long_holds_nothing_up():
    async def go():
        house = House(Double("a", node="spot"), timeouts={"answer_s": 0.05})
        await house.pool.start()
        answered = threading.Event()
        house.pool._draining = lambda: answered.wait(30) and {"spot"}
        await house.pool.poll()
        assert not answered.is_set()
        answered.set()
        assert statuses(house.pool) == {"sampler-0": "ready"}

    asyncio.run(go())


def test_a_prompt_may_be_handed_back_any_number_of_times():
    async def go():
        doubles = [Double(f"{number}", sample=hangs) for number in range(6)]
        house = House(*doubles, Double("last"), max_count=2, drain_s=0.01, per_sampler=1)
        await house.pool.start()
        answer = house.sample("1")
        for double in doubles:
            await until(lambda double=double: double.tasks)
            house.pool.resize(2)
            await until(lambda: house.pool.ready == 2)
            house.pool.let_go(next(m for m in house.pool.members if m.actor is double))
            await until(lambda double=double: double.killed)
        assert await asyncio.wait_for(answer, 5) == [["1 by last"]]
        assert house.pool.handed_back == 6

    asyncio.run(go())


def test_a_sampler_that_dies_while_it_leaves_is_not_replaced():
    async def go():
        gate = Gate()

        async def dies_later(task):
            await gate()
            await dies()

        leaving, stays = Double("leaving", sample=dies_later), Double("stays")
        house = House(leaving, stays, max_count=2)
        await house.pool.start()
        answer = house.sample("1")
        await settled()
        house.pool.resize(2)
        await until(lambda: house.pool.ready == 2)
        house.pool.let_go(house.pool.members[0])
        gate.opened.set()
        assert await asyncio.wait_for(answer, 5) == [["1 by stays"]]
        await until(lambda: leaving.killed)
        assert (house.failures, house.pool.restarts, len(house.placed)) == ([], 0, 2)

    asyncio.run(go())


def test_weights_that_change_reach_a_sampler_that_still_answers_before_it_leaves():
    """Else its last prompts would be of another policy; one that cannot take them hands the prompts back at once."""

    async def go():
        taken = []

        async def takes(version):
            taken.append(version)
            return version

        for update, handed_back in ((takes, 0), (dies, 1)):
            gate = Gate()
            leaving = Double("leaving", sample=gate, update=update)
            house = House(leaving, Double("stays"), count=2, min_count=1)
            await house.pool.start()
            answer = house.sample("1")
            await settled()
            house.pool.let_go(house.pool.members[0])
            await asyncio.wait_for(house.pool.update(4), 5)
            await settled()
            assert house.pool.handed_back == handed_back
            gate.opened.set()
            await asyncio.wait_for(answer, 5)
        assert taken == [4]

    asyncio.run(go())


def test_those_go_first_who_are_missed_least():
    async def go():
        house = House(
            Double("works", sample=hangs),
            Double("idle"),
            Double("starts", start=hangs),
            Double("pending", placed=hangs),
            min_count=1,
            count=4,
        )
        await house.pool.start()
        busy = house.sample("1")
        await settled()
        gone = []
        for size in (3, 2, 1):
            before = {member.name for member in house.pool.members}
            house.pool.resize(size)
            await until(lambda size=size: len(house.pool.members) == size)
            gone += before - {member.name for member in house.pool.members}
        assert gone == ["sampler-3", "sampler-2", "sampler-1"]
        assert [actor.killed for actor in house.placed] == [False, True, True, True]
        busy.cancel()

    asyncio.run(go())


def test_those_go_first_whose_node_can_go_with_them():
    """Not from the node that the run itself is on, and from one with others on it only when no node is left alone."""

    async def go():
        nodes = ("own", "two", "two", "one")
        house = House(*(Double(node, node=node) for node in nodes), count=4, min_count=1)
        await house.pool.start()
        await until(lambda: house.pool.ready == 4)
        gone = []
        for size in (3, 2, 1):
            before = {member.name: member.node for member in house.pool.members}
            house.pool.resize(size)
            await until(lambda size=size: len(house.pool.members) == size)
            left = {member.name for member in house.pool.members}
            gone += [node for name, node in before.items() if name not in left]
        assert gone == ["one", "two", "two"]

    asyncio.run(go())


def test_the_bounds_hold_and_free_names_are_given_again():
    async def go():
        house = House(*(Double(str(number)) for number in range(8)), count=2, min_count=1, max_count=3)
        await house.pool.start()
        house.pool.resize(99)
        await until(lambda: house.pool.ready == 3)
        house.pool.resize(0)
        await until(lambda: len(house.pool.members) == 1)
        house.pool.resize(2)
        await until(lambda: house.pool.ready == 2)
        assert sorted(member.name for member in house.pool.members) in (
            ["sampler-0", "sampler-1"],
            ["sampler-0", "sampler-2"],
        )

    asyncio.run(go())


def test_slots_follow_the_pool():
    async def go():
        house = House(Double("a"), Double("b"), max_count=2, per_sampler=2)
        await house.pool.start()
        await house.pool.take_slots(1)
        await house.pool.take_slots(1)
        third = asyncio.create_task(house.pool.take_slots(1))
        await settled()
        assert not third.done()
        house.pool.resize(2)
        await asyncio.wait_for(third, 5)
        await house.pool.take_slots(1)
        house.pool.resize(1)
        await until(lambda: len(house.pool.members) == 1)
        again = asyncio.create_task(house.pool.take_slots(1))
        for _ in range(2):
            await house.pool.free_slots(1)
            await settled()
            assert not again.done()
        await house.pool.free_slots(1)
        await asyncio.wait_for(again, 5)

    asyncio.run(go())


def test_a_joining_sampler_that_cannot_start_is_done_without_and_too_many_of_them_end_the_growth():
    async def go():
        house = House(Double("good"), *(Double("bad", start=dies) for _ in range(2)), max_count=2, max_restarts=1)
        await house.pool.start()
        assert house.pool.may_grow
        for count in (1, 2):
            house.pool.resize(2)
            await until(lambda count=count: len(house.failures) == count)
            assert await house.sample("1") == [["1 by good"]]
        assert not house.pool.may_grow
        (alarm,) = house.pool.take_alarms()
        assert "2 samplers that were to join could not start, over the limit of 1" in alarm
        assert house.pool.restarts == 0

    asyncio.run(go())


def test_past_the_limit_of_restarts_a_dead_sampler_that_can_be_spared_is_given_up():
    async def go():
        house = House(Double("dead", sample=dies), Double("alive"), count=2, min_count=1, max_restarts=0)
        await house.pool.start()
        assert await house.sample("1", "2") == [["1 by alive"], ["2 by alive"]]
        assert [member.actor.name for member in house.pool.members] == ["alive"]
        house = House(Double("dead", sample=dies), Double("alive", sample=dies), count=2, min_count=1, max_restarts=0)
        await house.pool.start()
        errors = await asyncio.wait_for(house.sample("1", "2"), 5)
        assert any(isinstance(error, SamplerError) and "over the limit of 0" in str(error) for error in errors)

    asyncio.run(go())


def test_the_replacement_of_a_dead_sampler_may_wait_for_a_node_and_is_withdrawn_when_there_is_none():
    async def go():
        house = House(
            Double("dead", sample=dies),
            Double("alive"),
            Double("nowhere", placed=hangs),
            count=2,
            min_count=1,
            timeouts={"placement_s": 0.05},
        )
        await house.pool.start()
        assert await house.sample("1", "2") == [["1 by alive"], ["2 by alive"]]
        await until(lambda: len(house.pool.members) == 1)
        assert house.pool.restarts == 1
        assert "sampler-0 was asked for" in house.pool.take_alarms()[0]

    asyncio.run(go())


@pytest.mark.parametrize(("share", "at_a_time"), [(1.0, 2), (0.4, 1)])
def test_engines_that_may_share_a_gpu_start_one_by_one(share, at_a_time):
    """Each measures what is free there while it starts."""

    async def go():
        starting, most = set(), []

        def starts(name):
            async def start():
                starting.add(name)
                most.append(len(starting))
                await settled()
                starting.discard(name)
                return 0

            return start

        doubles = [Double(name, start=starts(name)) for name in ("a", "b")]
        house = House(*doubles, count=2, resources={"GPU": share}, memory_fraction=0.35)
        await house.pool.start()
        assert max(most) == at_a_time

    asyncio.run(go())
