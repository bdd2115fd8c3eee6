"""The pool of samplers: leases, replacement and its limit with doubles, then with real engines that are killed."""

import asyncio
import os
import signal

import psutil
import pytest
from ray.exceptions import RayActorError

from actors.engine import EngineOptions
from actors.placement import kill, place_sampler, place_store
from actors.pool import SamplerPool
from actors.sampler import SampleTask
from larpo.config import Config
from larpo.errors import CheckpointError, PhaseTimeout, SamplerError
from larpo.policy import prepare_policy
from tests.pool_doubles import Double, House, dies, hangs, settled


def test_prompts_go_to_the_sampler_with_least_to_do():
    async def go():
        a, b = Double("a"), Double("b")
        house = House(a, b, count=2, per_sampler=2)
        await house.pool.start()
        assert house.pool.slots == 4
        answers = await house.sample("1", "2", "3", "4", "5", "6")
        assert sorted(answer[0][0] for answer in answers) == list("123456")
        assert len(a.tasks) == len(b.tasks) == 3

    asyncio.run(go())


def held(*sizes: int) -> list[SampleTask]:
    """Prompts of so many responses, named by their place."""
    return [SampleTask(str(number), 0, (1,), ((1.0, size),), 4) for number, size in enumerate(sizes)]


def test_prompts_of_any_size_get_their_turn_in_order():
    """What a large one leaves is for as many small ones as fit; none of them passes a large one that came before."""

    async def go():
        events, begun = {}, []

        async def waits(task):
            begun.append(task.key)
            await events.setdefault(task.key, asyncio.Event()).wait()
            return []

        house = House(Double("a", sample=waits), per_sampler=4)
        await house.pool.start()
        answers = [asyncio.create_task(house.pool.sample(task)) for task in held(4, 1, 1, 4, 1, 9)]
        await settled()
        assert begun == ["0"]
        events["0"].set()
        await settled()
        assert begun == ["0", "1", "2"], "the second large one waits for both, and the last small one behind it"
        for key in ("1", "2", "3", "4", "5"):
            events.setdefault(key, asyncio.Event()).set()
            await settled()
        await asyncio.wait_for(asyncio.gather(*answers), 5)
        assert begun == list("012345")

    asyncio.run(go())


def test_slots_are_given_in_order_and_a_prompt_larger_than_the_pool_goes_by_itself():
    async def go():
        house = House(Double("a"), per_sampler=4)
        await house.pool.start()
        await house.pool.take_slots(2)
        large, small = (asyncio.create_task(house.pool.take_slots(size)) for size in (9, 1))
        await settled()
        assert not large.done()
        assert not small.done()
        await house.pool.free_slots(2)
        await asyncio.wait_for(large, 5)
        await settled()
        assert not small.done()
        await house.pool.free_slots(9)
        await asyncio.wait_for(small, 5)

    asyncio.run(go())


def test_a_lease_is_new_with_every_answer_of_its_sampler():
    """A prompt may wait in a sampler at work; one that answers nothing any more is hung."""

    async def go():
        late = asyncio.Event()

        async def answers(task):
            if task.key == "0":
                await late.wait()
            else:
                await asyncio.sleep(0.05 * int(task.key))
            return [task.key]

        house = House(Double("slow", sample=answers), lease_s=0.12, per_sampler=8)
        await house.pool.start()
        tasks = [asyncio.create_task(house.pool.sample(task)) for task in held(*(1,) * 6)]
        await asyncio.gather(*tasks[1:])
        late.set()
        assert await tasks[0] == ["0"]
        assert house.failures == []

    asyncio.run(go())


def test_a_sampler_that_dies_in_its_sleep_is_started_again_when_all_wake():
    """Its engine would take memory that is the trainer's meanwhile."""

    async def go():
        asleep, fresh = Double("asleep", sleep=dies), Double("fresh")
        house = House(asleep, fresh)
        await house.pool.start()
        await house.pool.sleep()
        await settled()
        assert asleep.killed
        assert house.pool.members[0].is_coming
        await house.pool.wake()
        assert await house.sample("1") == [["1 by fresh"]]
        assert fresh.turns == []

    asyncio.run(go())


def test_a_sampler_that_starts_is_ready_before_it_sleeps():
    """Else its engine would load beside the trainer, and stay there."""

    async def go():
        may_start = asyncio.Event()

        async def slowly():
            await may_start.wait()
            return 0

        fresh = Double("fresh", start=slowly)
        house = House(Double("dead", sample=dies), fresh)
        await house.pool.start()
        asked = house.sample("1")
        await settled()
        asleep = asyncio.create_task(house.pool.sleep())
        await settled()
        assert not asleep.done()
        may_start.set()
        await asyncio.wait_for(asleep, 5)
        assert fresh.turns == ["sleep"]
        await house.pool.wake()
        assert await asked == [["1 by fresh"]]

    asyncio.run(go())


def test_a_start_that_fails_holds_no_sleep_back():
    async def go():
        may_start = asyncio.Event()

        async def fails():
            await may_start.wait()
            await dies()

        last = Double("last")
        house = House(Double("dead", sleep=dies), Double("bad", start=fails), last)
        await house.pool.start()
        await house.pool.sleep()
        await house.pool.wake()  # now the bad one starts
        await settled()
        asleep = asyncio.create_task(house.pool.sleep())
        await settled()
        assert not asleep.done()
        may_start.set()
        await asyncio.wait_for(asleep, 5)
        await settled()
        assert house.pool.ready == 0
        assert not last.turns
        await house.pool.wake()
        assert await house.sample("1") == [["1 by last"]]

    asyncio.run(go())


def test_samplers_sleep_and_wake_together():
    async def go():
        a, b = Double("a"), Double("b")
        house = House(a, b, count=2)
        await house.pool.start()
        await house.pool.sleep()
        assert {member.status for member in house.pool.members} == {"asleep"}
        await house.pool.wake()
        assert {member.status for member in house.pool.members} == {"ready"}
        assert a.turns == b.turns == ["sleep", "wake"]

    asyncio.run(go())


def test_a_dead_sampler_is_replaced_and_its_prompts_are_sampled_again():
    async def go():
        dead, fresh = Double("dead", sample=dies), Double("fresh")
        house = House(dead, fresh)
        await house.pool.start()
        assert await house.sample("1", "2", "3") == [["1 by fresh"], ["2 by fresh"], ["3 by fresh"]]
        assert dead.killed
        assert not fresh.killed
        assert house.pool.restarts == 1
        ((name, reason),) = house.failures
        assert name == "sampler-0"
        assert "the node went away" in reason

    asyncio.run(go())


def test_prompts_of_a_dead_sampler_do_not_wait_for_its_replacement():
    async def go():
        house = House(Double("dead", sample=dies), Double("alive"), Double("slow", start=hangs), count=2)
        await house.pool.start()
        answers = await asyncio.wait_for(house.sample("1", "2", "3", "4"), 5)
        assert answers == [[f"{key} by alive"] for key in "1234"]
        assert [member.status for member in house.pool.members] == ["restarting", "ready"]
        await asyncio.wait_for(house.pool.poll(), 5)

    asyncio.run(go())


def test_a_lease_that_expires_sends_the_prompt_elsewhere():
    async def go():
        stuck, fresh = Double("stuck", sample=hangs), Double("fresh")
        house = House(stuck, fresh, lease_s=0.05)
        await house.pool.start()
        assert await house.sample("1") == [["1 by fresh"]]
        assert stuck.killed
        assert house.failures == [("sampler-0", "no answer within the lease of 0.05 s (samplers.lease_s)")]

    asyncio.run(go())


def test_an_error_of_a_healthy_sampler_costs_the_prompt_an_attempt_and_not_the_sampler():
    async def go():
        async def fails_once(task):
            if len(shaky.tasks) == 1:
                raise ValueError("cut off")
            return ["second try"]

        shaky = Double("shaky", sample=fails_once)
        house = House(shaky)
        await house.pool.start()
        assert await house.sample("1") == [["second try"]]
        assert house.failures == []

    asyncio.run(go())


def test_a_prompt_that_fails_everywhere_ends_with_all_its_reasons():
    async def go():
        async def fails(task):
            raise ValueError(f"attempt {len(picky.tasks)}")

        picky = Double("picky", sample=fails)
        house = House(picky)
        await house.pool.start()
        (error,) = await house.sample("0003/p7")
        assert isinstance(error, SamplerError)
        for part in ("prompt 0003/p7 failed 3 times", "attempt 1", "attempt 2", "attempt 3"):
            assert part in str(error)

    asyncio.run(go())


def test_a_sampler_whose_engine_is_gone_is_replaced_though_its_actor_lives():
    async def go():
        async def engine_dead(*_):
            raise RuntimeError("EngineCore encountered an issue")

        hollow, fresh = Double("hollow", sample=engine_dead, stats=engine_dead), Double("fresh")
        house = House(hollow, fresh)
        await house.pool.start()
        assert await house.sample("1") == [["1 by fresh"]]
        assert hollow.killed

        idle = House(Double("hollow", stats=engine_dead), Double("fresh"))
        await idle.pool.start()
        await idle.pool.poll()
        await settled()
        assert [actor.name for actor in idle.placed] == ["hollow", "fresh"]

    asyncio.run(go())


def test_too_many_deaths_end_everyone_who_waits_with_the_cause():
    async def go():
        house = House(*(Double(f"dead {n}", sample=dies) for n in range(3)), per_sampler=2, max_restarts=2)
        await house.pool.start()
        errors = await asyncio.wait_for(house.sample(*"1234567"), 5)
        assert all(isinstance(error, SamplerError) for error in errors)
        told = [error for error in errors if "over the limit of 2 (samplers.max_restarts)" in str(error)]
        assert len(told) >= 5  # all who waited; those in their third attempt name three deaths of their own
        assert all("the node went away" in str(error) for error in errors)
        assert len(house.placed) == 3
        with pytest.raises(SamplerError, match="samplers died 3 times"):
            await house.pool.poll()

    asyncio.run(go())


def test_lost_nodes_count_against_no_limit():
    async def lost(*_):
        raise RayActorError(error_msg="The actor died because its node has died. Node Id: 07f4")

    async def go():
        gone = [Double(f"gone {number}", sample=lost) for number in range(2)]
        house = House(*gone, Double("never there", start=lost), Double("last"), max_restarts=0)
        await house.pool.start()
        assert await asyncio.wait_for(house.sample("1"), 5) == [["1 by last"]]
        assert house.pool.restarts == len(house.failures) == 3

    asyncio.run(go())


def test_a_replacement_that_cannot_start_counts_against_the_limit():
    async def go():
        house = House(Double("dead", sample=dies), Double("stillborn", start=dies), Double("fresh"), max_restarts=2)
        await house.pool.start()
        assert await house.sample("1") == [["1 by fresh"]]
        assert house.pool.restarts == 2
        assert "could not start its engine: the node went away" in house.failures[1][1].replace("\n", " ")

    asyncio.run(go())


def test_an_engine_that_does_not_start_ends_the_run():
    async def go():
        with pytest.raises(PhaseTimeout, match=r"sampler-0 did not start its engine within 0.05 s"):
            await House(Double("slow", start=hangs), timeouts={"engine_start_s": 0.05}).pool.start()
        with pytest.raises(SamplerError, match="sampler-1 could not start its engine"):
            await House(Double("good"), Double("bad", start=dies), count=2).pool.start()

    asyncio.run(go())


@pytest.mark.parametrize("refusal", [CheckpointError("bucket 0 arrived damaged"), None])
def test_a_sampler_that_does_not_take_new_weights_is_replaced(refusal):
    async def go():
        async def refuses(*_):
            if refusal is None:
                await hangs()
            raise refusal

        house = House(
            Double("takes"),
            Double("refuses", update=refuses),
            Double("fresh"),
            count=2,
            timeouts={"weights_s": 0.05},
        )
        await house.pool.start()
        await house.pool.update(7)
        await settled()
        assert [actor.name for actor in house.placed] == ["takes", "refuses", "fresh"]
        assert [(m.version, m.status) for m in house.pool.members] == [(7, "ready"), (7, "ready")]
        ((name, reason),) = house.failures
        assert name == "sampler-1"
        assert reason == (str(refusal) if refusal else "no weight update within 0.05 s (timeouts.weights_s)")

    asyncio.run(go())


@pytest.mark.parametrize("begun", ["before the update", "after it was begun"])
def test_new_weights_may_wait_for_responses_beyond_the_limit_of_an_update(begun):
    async def go():
        answered, limit = asyncio.Event(), 0.05

        async def answers(task):
            await answered.wait()
            return [task.key]

        async def takes(version):
            await answered.wait()
            return version

        house = House(Double("patient", sample=answers, update=takes), timeouts={"weights_s": limit})
        await house.pool.start()
        if begun == "before the update":
            asked = house.sample("1")
            await settled()
        update = asyncio.create_task(house.pool.update(7))
        await settled()
        if begun == "after it was begun":
            asked = house.sample("1")
        await asyncio.sleep(3 * limit)
        answered.set()
        await asyncio.wait_for(update, 5)
        assert await asked == [["1"]]
        assert not house.failures
        assert house.pool.members[0].version == 7

    asyncio.run(go())


def test_a_replacement_that_starts_while_weights_change_comes_with_the_new_ones():
    async def go():
        started, updates = asyncio.Event(), []

        async def starts():
            await started.wait()
            return 0

        async def takes(version):
            updates.append(version)
            return version

        fresh = Double("fresh", start=starts, update=takes)
        house = House(Double("dead", sample=dies), fresh)
        await house.pool.start(3)
        waiting = asyncio.create_task(house.pool.sample(SampleTask("1", 0, (1,), ((1.0, 1),), 4)))
        await settled()
        await asyncio.wait_for(house.pool.update(4), 2)  # does not wait for the one that starts
        started.set()
        assert await asyncio.wait_for(waiting, 2) == ["1 by fresh"]
        assert updates == [4]  # and never 3, which the store may have dropped
        assert house.pool.members[0].version == 4

    asyncio.run(go())


# --- Real samplers


def the_actor(pid):
    return pid


def its_engine(pid):
    (engine,) = (p.pid for p in psutil.Process(pid).children() if "EngineCore" in " ".join(p.cmdline()))
    return engine


@pytest.mark.parametrize("victim", [the_actor, pytest.param(its_engine, marks=pytest.mark.slow)])
def test_a_real_sampler_is_killed_and_every_prompt_is_answered(local_ray, tiny_policy, victim):
    """kill -9 of the actor, or of the engine's process under it, in the middle of sampling."""
    config = Config.model_validate(
        {
            "policy": {"model": str(tiny_policy), "dtype": "float32"},
            "samplers": {
                "resources": {"CPU": 0},
                "max_model_len": 512,
                "max_num_seqs": 16,
                "enforce_eager": True,
            },
        }
    )
    store, failures = place_store(), []
    pool = SamplerPool(
        lambda name: place_sampler(config, EngineOptions.of(config), prepare_policy(config.policy), store),
        kill,
        config.samplers,
        config.timeouts,
        responses_per_sampler=32,
        on_failure=lambda name, reason: failures.append(name),
    )
    tasks = [SampleTask(f"0000/{n}", 0, (40, 41, 42), ((1.0, 8),), 300) for n in range(12)]

    async def go():
        await pool.start()
        killed = pool.members[0].actor
        pid = await killed.pid.remote()
        family = psutil.Process(pid).children(recursive=True)
        assert family
        running = [asyncio.create_task(pool.sample(task)) for task in tasks]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        assert not all(task.done() for task in running)
        os.kill(victim(pid), signal.SIGKILL)
        answers = await asyncio.gather(*running)

        ids = [candidate.id for answer in answers for candidate in answer]
        assert len(ids) == len(set(ids)) == 12 * 8
        assert failures == ["sampler-0"]
        assert pool.members[0].actor is not killed
        _, left = psutil.wait_procs(family, timeout=60)
        assert not left  # no engine outlives its actor
        kill(pool.members[0].actor)

    asyncio.run(go())


def test_a_cancelled_wait_leaves_its_place_to_the_next():
    """One is told of a place and cancelled before it takes it: the other one that waits must not sleep on."""

    async def go():
        answer = asyncio.Event()
        house = House(Double("one", sample=lambda task: answer.wait()), per_sampler=1)
        await house.pool.start()
        first, second, third = (asyncio.create_task(house.pool.sample(task_of(key))) for key in "abc")
        await settled()
        answer.set()
        told = house.pool._vacant._waiters[0]
        while not told.done():
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait_for(third, 5)
        await first
        return second.cancelled(), len(house.pool.members), house.pool.members[0].in_flight

    assert asyncio.run(go()) == (True, 1, 0)


def task_of(key: str) -> SampleTask:
    return SampleTask(key, 0, (1,), ((1.0, 1),), 4)
