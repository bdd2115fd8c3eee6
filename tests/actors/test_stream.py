"""The stream without Ray: order, back-pressure, shares of ranks, exactly once, rollback."""

import asyncio
import time

import pytest

from actors.stream import ListStream
from actors.work import Failure, IterationEnd, Journal, RunEnd, StepWork
from larpo.config import Config
from larpo.errors import PhaseTimeout, TrainingError
from larpo.records import read_lists
from larpo.types import Candidate, CandidateList, Message, Prompt, VersionSpan, list_id


def make_config(**changes) -> Config:
    values = {
        "overlap": "stream",
        "training": {"iterations": 2, "prompts_per_iteration": 8, "epochs": 1, "lists_per_step": 4},
        "lists": {"selection": {"policy": "all"}},
        "stream": {"capacity": 4},
        "timeouts": {"stream_idle_s": 5.0},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return Config.model_validate(values)


def make_list(iteration: int, number: int, rewards=(1.0, 0.0)) -> CandidateList:
    prompt = Prompt(f"p{number}", (Message("user", f"question {number}"),))
    candidates = tuple(
        Candidate(
            id=f"{list_id(iteration, prompt.id)}/{index}",
            text=f"answer {number} {index} " + "word " * number,
            token_ids=tuple(range(1, 3 + number + index)),
            log_probs=(-0.5,) * (2 + number + index),
            finish_reason="stop",
            temperature=1.0,
            origin="sampled",
            iteration=iteration,
            versions=(VersionSpan(0, 2 + number + index, 0),),
            reward=reward,
        )
        for index, reward in enumerate(rewards)
    )
    return CandidateList(list_id(iteration, prompt.id), iteration, prompt, (1, 2, 3), candidates)


async def take(stream, position, rank=0, ranks=1):
    return await stream.next_work(rank, ranks, position)


def journal_of(*works) -> Journal:
    journal = Journal()
    for work in works:
        journal = journal.after(work)
    return journal


def ids(work: StepWork) -> list[str]:
    return [item.prompt.id for item in work.lists]


def test_steps_iteration_ends_and_the_run_end_in_order(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await stream.restore(Journal())
        seen = []
        for iteration in range(2):
            await stream.open_iteration(iteration)
            for number in range(0, 6, 2):
                offered = asyncio.create_task(
                    stream.offer([make_list(iteration, number), make_list(iteration, number + 1)])
                )
                if number == 2:
                    seen.append(await take(stream, len(seen)))
                await offered
            await stream.close_iteration(iteration)
            seen.append(await take(stream, len(seen)))
            seen.append(await take(stream, len(seen)))
        seen.append(await take(stream, len(seen)))
        return seen

    seen = asyncio.run(go())
    assert [type(work) for work in seen] == [StepWork, StepWork, IterationEnd] * 2 + [RunEnd]
    assert ids(seen[0]) == ["p0", "p1", "p2", "p3"]
    assert ids(seen[1]) == ["p4", "p5"]
    assert seen[1].list_count == 2
    assert journal_of(*seen[:-1]).consumed == {
        "0/0": tuple(f"p{n}" for n in range(6)),
        "1/0": tuple(f"p{n}" for n in range(6)),
    }


def test_a_full_stream_holds_the_producer_back(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, n) for n in range(4)])
        late = asyncio.create_task(stream.offer([make_list(0, 4)]))
        await asyncio.sleep(0.05)
        held = not late.done()
        await take(stream, 0)
        await late
        return held

    assert asyncio.run(go())


def test_offers_that_come_together_are_trained_in_their_order_however_much_room_each_needs(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        groups = [[0, 1, 2], [3, 4, 5], [6], [7]]  # the second has no room, which the third and fourth would have
        offers = [asyncio.create_task(stream.offer([make_list(0, n) for n in group])) for group in groups]
        await asyncio.sleep(0.1)
        held = [offer.done() for offer in offers]
        first = await take(stream, 0)
        second = await take(stream, 1)
        await asyncio.gather(*offers)
        return held, ids(first), ids(second)

    held, first, second = asyncio.run(go())
    assert (first, second) == (["p0", "p1", "p2", "p3"], ["p4", "p5", "p6", "p7"])
    assert held[2:] == [False, False]
    assert [item.prompt.id for item in read_lists(tmp_path / "lists")] == [f"p{n}" for n in range(8)]


def test_a_wait_counts_while_it_goes_on(tmp_path):
    async def seen(stream, what):
        async with asyncio.timeout(10):
            while getattr(status := await stream.status(), what) < 0.15:
                await asyncio.sleep(0.02)
        return status

    async def go():
        stream = ListStream(make_config(), str(tmp_path))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        asking = asyncio.create_task(stream.next_work(0, 1, 0))
        consumer = (await seen(stream, "consumer_wait_seconds")).consumer_wait_seconds
        for first in (0, 4):
            await stream.offer([make_list(0, number) for number in range(first, first + 4)])
        await asking
        held = asyncio.create_task(stream.offer([make_list(0, number) for number in range(8, 12)]))
        before = await seen(stream, "producer_wait_seconds")
        await stream.next_work(0, 1, 1)
        await held
        return consumer, before, await stream.status()

    consumer, before, after = asyncio.run(go())
    assert before.consumer_wait_seconds >= consumer
    assert after.producer_wait_seconds >= before.producer_wait_seconds


def test_lists_without_signal_are_recorded_and_not_trained(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, 0, (1.0, 1.0)), make_list(0, 1)])
        await stream.close_iteration(0)
        return await take(stream, 0), await stream.open_iteration(0)

    work, recorded = asyncio.run(go())
    assert ids(work) == ["p1"]
    assert recorded == ("p0", "p1")


def test_ranks_get_disjoint_shares_of_one_batch(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, n) for n in range(4)])
        return await asyncio.gather(*(take(stream, 0, rank, 3) for rank in range(3)))

    works = asyncio.run(go())
    assert sorted(prompt for work in works for prompt in ids(work)) == ["p0", "p1", "p2", "p3"]
    assert {work.list_count for work in works} == {4}


def test_phase_by_phase_waits_for_the_last_list(tmp_path):
    async def go():
        stream = ListStream(make_config(overlap="none", timeouts={"stream_idle_s": 0.2}), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        for n in range(6):
            await stream.offer([make_list(0, n)])  # more than the capacity: nothing is held back
        with pytest.raises(PhaseTimeout, match=r"waited for lists, and nothing moved for 0.2 s"):
            await take(stream, 0)
        await stream.close_iteration(0)
        return await take(stream, 0)

    assert ids(asyncio.run(go())) == ["p0", "p1", "p2", "p3"]


def test_later_epochs_take_every_list_again_in_seeded_order(tmp_path):
    async def go(folder):
        stream = ListStream(make_config(training={"epochs": 2}), str(folder))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, n) for n in range(4)])
        await stream.close_iteration(0)
        return [await take(stream, position) for position in range(3)]

    first, second, end = asyncio.run(go(tmp_path / "a"))
    again = asyncio.run(go(tmp_path / "b"))
    assert (first.epoch, second.epoch) == (0, 1)
    assert sorted(ids(second)) == sorted(ids(first))
    assert ids(again[1]) == ids(second)
    assert isinstance(end, IterationEnd)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("crash_at", [1, 2, 3])
def test_a_rollback_loses_no_list_and_repeats_none(tmp_path, epochs, crash_at):
    """The trainer dies after `crash_at` works and goes on from the checkpoint one work before."""

    async def go():
        config = make_config(training={"epochs": epochs}, stream={"capacity": 100})
        stream = ListStream(config, str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, n) for n in range(7)])
        journals, lineage, position = [Journal()], [], 0
        while position < crash_at:
            work = await take(stream, position)
            journals.append(journals[-1].after(work))
            lineage.append(work)
            position += 1
            if position == 1:
                await stream.offer([make_list(0, 7)])
                await stream.close_iteration(0)
        back = journals[crash_at - 1]
        await stream.restore(back)
        lineage = lineage[: back.position]
        if crash_at == 1:
            await stream.close_iteration(0)
        position = back.position
        while True:
            work = await take(stream, position)
            if isinstance(work, IterationEnd):
                return [*lineage, work]
            lineage.append(work)
            position += 1

    lineage = asyncio.run(go())
    trained = [(work.epoch, prompt) for work in lineage if isinstance(work, StepWork) for prompt in ids(work)]
    assert sorted(trained) == sorted((epoch, f"p{n}") for epoch in range(epochs) for n in range(8))
    assert {key: sorted(value) for key, value in journal_of(*lineage).consumed.items()} == {
        f"0/{epoch}": [f"p{n}" for n in range(8)] for epoch in range(epochs)
    }


@pytest.mark.parametrize("trainer_first", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_resumed_run_may_open_its_iteration_before_or_after_the_trainer_is_back(tmp_path, steps, trainer_first):
    """In the first epoch and in the second; whoever of the two starts faster."""
    config = make_config(training={"epochs": 2}, stream={"capacity": 100})

    async def go():
        stream = ListStream(config, str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, n) for n in range(8)])
        await stream.close_iteration(0)
        before = [await take(stream, position) for position in range(steps)]

        stream, journal = ListStream(config, str(tmp_path / "lists")), journal_of(*before)
        if trainer_first:
            await stream.restore(journal)
        assert len(await stream.open_iteration(0)) == 8
        if not trainer_first:
            await stream.restore(journal)
        await stream.close_iteration(0)
        return [*before, *[await take(stream, position) for position in range(steps, 5)]]

    lineage = asyncio.run(go())
    assert [type(work) for work in lineage] == [StepWork] * 4 + [IterationEnd]
    assert {key: sorted(value) for key, value in journal_of(*lineage).consumed.items()} == {
        f"0/{epoch}": [f"p{n}" for n in range(8)] for epoch in range(2)
    }
    assert [work.planned_share for work in lineage[:4]] == pytest.approx([1 / 8, 1 / 4, 3 / 8, 1 / 2])


def test_a_new_stream_on_the_same_folder_offers_what_was_not_consumed(tmp_path):
    async def before():
        stream = ListStream(make_config(stream={"capacity": 100}), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, n) for n in range(6)])
        return journal_of(await take(stream, 0))

    async def after(journal):
        stream = ListStream(make_config(stream={"capacity": 100}), str(tmp_path / "lists"))
        recorded = await stream.open_iteration(0)
        await stream.restore(journal)
        await stream.offer([make_list(0, n) for n in (6, 7)])
        await stream.close_iteration(0)
        return recorded, await take(stream, 1)

    recorded, work = asyncio.run(after(asyncio.run(before())))
    assert sorted(recorded) == [f"p{n}" for n in range(6)]
    assert ids(work) == ["p4", "p5", "p6", "p7"]


def test_a_failed_conductor_wakes_the_ranks_with_the_cause(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await stream.restore(Journal())
        waiting = asyncio.create_task(take(stream, 0))
        await asyncio.sleep(0.01)
        await stream.fail("the samplers are gone")
        await waiting

    with pytest.raises(TrainingError, match="the samplers are gone"):
        asyncio.run(go())


def test_reference_log_probabilities_survive_a_restart(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await stream.report({"rank": 0, "spans": []}, {"0000/p0/0": (-1.5, "ref")})
        await stream.trained(0)
        return await ListStream(make_config(), str(tmp_path / "lists")).references()

    assert asyncio.run(go()) == {"0000/p0/0": (-1.5, "ref")}


def test_patience_begins_anew_with_every_list(tmp_path):
    async def go():
        stream = ListStream(make_config(overlap="none", timeouts={"stream_idle_s": 2.0}), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        waiting = asyncio.create_task(take(stream, 0))
        for n in range(5):  # longer than the limit in all
            await asyncio.sleep(0.5)
            await stream.offer([make_list(0, n)])
        await stream.close_iteration(0)
        return await waiting

    assert ids(asyncio.run(go())) == ["p0", "p1", "p2", "p3"]


def test_stream_and_trainer_never_wait_for_each_other(tmp_path):
    """A part that does not fit beside what waits, which is less than a step: it is let in."""

    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))  # a capacity and a step of 4
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, n) for n in range(3)])
        await asyncio.wait_for(stream.offer([make_list(0, n) for n in range(3, 6)]), 2)
        step = await take(stream, 0)
        held_back = asyncio.create_task(stream.offer([make_list(0, n) for n in range(6, 8)]))
        await asyncio.wait_for(held_back, 2)  # 2 wait, 2 come
        more = asyncio.create_task(stream.offer([make_list(0, 8)]))
        await asyncio.sleep(0.2)
        assert not more.done()
        await take(stream, 1)
        await asyncio.wait_for(more, 2)
        return step

    assert ids(asyncio.run(go())) == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize("overlap", ["none", "stream"])
def test_the_schedule_counts_dropped_lists_when_the_trainer_passes_them(tmp_path, overlap):
    """Of 8 lists every second is flat, and a restart changes nothing."""

    def lists():
        return [make_list(0, n, (1.0, 0.0) if n % 2 == 0 else (1.0, 1.0)) for n in range(8)]

    async def go(folder, *, restart):
        config = make_config(
            overlap=overlap, training={"iterations": 1, "epochs": 2, "lists_per_step": 2}, stream={"capacity": 100}
        )
        stream = ListStream(config, str(folder))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer(lists())
        await stream.close_iteration(0)
        shares, journal = [], Journal()
        for position in range(4):
            if restart and position in (1, 3):
                await stream.restore(journal)
            work = await take(stream, position)
            shares.append(work.planned_share)
            journal = journal.after(work)
        return shares

    expected = [3 / 16, 7 / 16, 0.75, 1.0]  # the 3rd and 7th of 8 lists, then halves of the second pass
    assert asyncio.run(go(tmp_path / "a", restart=False)) == pytest.approx(expected)
    assert asyncio.run(go(tmp_path / "b", restart=True)) == pytest.approx(expected)


def test_reference_log_probabilities_come_back_with_the_lists_of_a_later_epoch(tmp_path):
    async def go():
        stream = ListStream(make_config(training={"epochs": 2}), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, n) for n in range(4)])
        await stream.close_iteration(0)
        first = await take(stream, 0)
        known = {c.id: (-9.0, "base") for item in first.lists for c in item.candidates}
        await stream.report({"rank": 0}, known)
        return await take(stream, 1)

    found = {
        (c.reference_log_prob, c.reference_fingerprint) for item in asyncio.run(go()).lists for c in item.candidates
    }
    assert found == {(-9.0, "base")}


def test_a_run_that_ends_early_lets_every_rank_end_after_the_same_step(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, n) for n in range(4)])
        first = await take(stream, 0, 0, 2)
        waiting = asyncio.create_task(take(stream, 1, 0, 2))
        await asyncio.sleep(0.01)
        await stream.end_run()
        return first, await take(stream, 0, 1, 2), await waiting, await take(stream, 1, 1, 2)

    first, other, *ends = asyncio.run(go())
    assert isinstance(first, StepWork)
    assert sorted(ids(first) + ids(other)) == ["p0", "p1", "p2", "p3"]
    assert ends == [RunEnd(1), RunEnd(1)]


@pytest.mark.parametrize(("objective", "taken"), [("sft", [1, 1, 1]), ("lambdarank", [2])])
def test_the_objective_says_whether_one_response_is_enough(tmp_path, objective, taken):
    """Fine-tuning takes lists of one, and the best of lists of two; what compares drops the former."""

    async def go():
        stream = ListStream(make_config(objective={"name": objective}), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, 0, (1.0,)), make_list(0, 1, (1.0,)), make_list(0, 2, (0.0, 1.0))])
        await stream.close_iteration(0)
        return await take(stream, 0)

    work = asyncio.run(go())
    assert [len(item.candidates) for item in work.lists] == taken
    assert all(item.candidates[0].reward == 1.0 for item in work.lists)


class Notes:
    """A memo that is a variable: what Ray's key-value store keeps for an actor that it starts again."""

    def __init__(self):
        self.facts = {}

    def read(self):
        return self.facts

    def write(self, facts):
        self.facts = facts


def test_a_stream_that_is_started_again_goes_on_where_it_was(tmp_path):
    """The calls that were lost with its process come again; the group that was at work has to restore."""

    async def go():
        config, folder, notes = make_config(stream={"capacity": 100}), str(tmp_path / "lists"), Notes()
        first = ListStream(config, folder, notes)
        await first.restore(Journal())
        await first.open_iteration(0)
        await first.offer([make_list(0, n) for n in range(4)])
        await take(first, 0)
        again = ListStream(config, folder, notes)
        await again.offer([make_list(0, n) for n in (2, 3, 4)])  # Ray repeats a call, part of which was on disk
        with pytest.raises(RuntimeError, match="rank 0 asked a stream that was started again"):
            await take(again, 1)
        await again.close_iteration(0)
        third = ListStream(config, folder, notes)
        await third.restore(Journal())
        works = [await take(third, position) for position in range(3)]
        await third.trained(0)
        assert await ListStream(config, folder, notes).wait_trained(0, 0.1)
        await third.end_run()
        last = ListStream(config, folder, notes)
        await last.restore(journal_of(*works))
        return works, await take(last, 3)

    works, end = asyncio.run(go())
    assert [ids(work) for work in works[:2]] == [["p0", "p1", "p2", "p3"], ["p4"]]
    assert isinstance(works[2], IterationEnd)
    assert isinstance(end, RunEnd)
    written = [item.prompt.id for item in read_lists(tmp_path / "lists")]
    assert written == ["p0", "p1", "p2", "p3", "p4"]


def test_the_first_process_of_a_stream_knows_nothing(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"), Notes())
        await stream.restore(Journal())
        return await stream.open_iteration(0), await stream.status()

    recorded, status = asyncio.run(go())
    assert recorded == ()
    assert status.trained_iterations == 0


def test_a_call_that_ray_repeats_ends_with_the_first_one(tmp_path):
    """Else the conductor would close an iteration whose lists have not been queued."""

    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(0, n) for n in range(4)])
        first = asyncio.create_task(stream.offer([make_list(0, 4)]))
        again = asyncio.create_task(stream.offer([make_list(0, 4)]))
        await asyncio.sleep(0.3)
        assert not first.done()
        assert not again.done()
        works = [await take(stream, 0)]
        await asyncio.wait_for(asyncio.gather(first, again), 5)
        await stream.close_iteration(0)
        return [*works, await take(stream, 1), await take(stream, 2)]

    works = asyncio.run(go())
    assert [ids(work) for work in works[:2]] == [["p0", "p1", "p2", "p3"], ["p4"]]
    assert isinstance(works[2], IterationEnd)


def test_a_call_that_ray_repeats_fails_with_the_first_one(tmp_path):
    async def go():
        (tmp_path / "lists").write_text("a file in the folder's place")
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        calls = [stream.offer([make_list(0, 0)]) for _ in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, again = asyncio.run(go())
    assert isinstance(first, TrainingError)
    assert again is first


def test_it_answers_while_it_reads_the_lists_and_reads_them_once(tmp_path, monkeypatch):
    """An iteration of thousands of lists takes minutes to read."""
    parts = []

    def slowly(part):
        parts.append(part)
        time.sleep(0.4)
        return read_lists(part)

    async def while_reading(stream, coroutine) -> float:
        """Seconds until the stream answers while it works on this."""
        work = asyncio.create_task(coroutine)
        await asyncio.sleep(0.1)
        asked = time.monotonic()
        await stream.status()
        answered = time.monotonic() - asked
        assert not work.done()
        await work
        return answered

    async def go():
        config, folder = make_config(training={"epochs": 2}, stream={"capacity": 8}), str(tmp_path / "lists")
        before = ListStream(config, folder)
        await before.offer([make_list(0, n) for n in range(4)])
        stream = ListStream(config, folder)
        monkeypatch.setattr("actors.list_queue.read_lists", slowly)
        await stream.restore(Journal())
        waited = [await while_reading(stream, stream.open_iteration(0))]
        waited.append(await while_reading(stream, stream.restore(Journal())))
        await stream.close_iteration(0)
        works = [await take(stream, 0)]
        waited.append(await while_reading(stream, take(stream, 1)))  # the second epoch
        return works, waited

    works, waited = asyncio.run(go())
    assert ids(works[0]) == ["p0", "p1", "p2", "p3"]
    assert max(waited) < 0.2
    assert len(parts) == 3


def test_a_trainer_that_waits_for_its_turn_is_not_silent(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await asyncio.sleep(0.2)
        silent = (await stream.status()).trainer_silent_s
        await stream.waits_for_turn()
        return silent, (await stream.status()).trainer_silent_s

    silent, after = asyncio.run(go())
    assert silent >= 0.2 > after


def test_a_group_that_starts_again_is_not_taken_for_one_in_a_step(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await stream.open_iteration(0)
        seen = [await stream.status()]
        await stream.restore(Journal())
        seen.append(await stream.status())
        await asyncio.sleep(0.2)
        await stream.group_failed([Failure(0, "killed", None)])
        seen.append(await stream.status())
        await stream.restore(Journal())
        return [*seen, await stream.status()]

    seen = asyncio.run(go())
    assert [status.trainer_started for status in seen] == [False, True, False, True]
    assert seen[2].trainer_silent_s < 0.2  # the limit of its start begins with the failure
    assert [len(status.failures) for status in seen] == [0, 0, 1, 0]


def test_a_trainer_that_waits_for_its_turn_hears_that_the_run_failed(tmp_path):
    async def go():
        stream = ListStream(make_config(), str(tmp_path / "lists"))
        await stream.fail("the samplers failed")
        await stream.waits_for_turn()

    with pytest.raises(TrainingError, match="the samplers failed"):
        asyncio.run(go())


def test_a_limited_wait_ends_in_time_while_the_stream_reads(tmp_path, monkeypatch):
    """Its lock is held meanwhile: the conductor asks again, as often as it takes."""

    def slowly(part):
        time.sleep(0.8)
        return read_lists(part)

    async def go():
        config, folder = make_config(), str(tmp_path / "lists")
        await ListStream(config, folder).offer([make_list(0, 0)])
        stream = ListStream(config, folder)
        monkeypatch.setattr("actors.list_queue.read_lists", slowly)
        before = asyncio.create_task(stream.wait_trained(0, 0.2))
        reading = asyncio.create_task(stream.open_iteration(0))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        assert not await stream.wait_trained(0, 0.2)
        assert not await before
        assert time.monotonic() - started < 0.5
        assert not reading.done()
        await reading
        await stream.trained(0)
        assert await stream.wait_trained(0, 5.0)

    asyncio.run(go())
