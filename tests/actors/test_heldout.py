"""What is evaluated, in which order and with which weights, with doubles for samplers and reward model."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from actors.heldout import (
    drop_evaluated,
    ending,
    evaluate,
    evaluate_missing,
    evaluate_snapshots,
    values,
    why_stopped,
)
from actors.policies import evaluated_points, is_written, result_file, snapshots, weights_folder
from actors.published import PublishedFolder
from larpo.best_policy import BASE, Point
from larpo.config import Config
from larpo.home import Home
from larpo.rewards import Reward
from larpo.types import Candidate, Message, Prompt, VersionSpan


class House:
    """A run of 3 iterations whose policy answers with its weight version; `rewards` gives each version its reward."""

    def __init__(self, folder, rewards=(), **evaluation):
        settings = {"samples": 2, "every_steps": 3, "best_metric": "reward", **evaluation}
        config = Config.model_validate(
            {"evaluation": settings, "training": {"iterations": 3}, "checkpoints": {"keep": 1}}
        )
        prompt = Prompt("p0", (Message("user", "question"),))
        run = SimpleNamespace(
            config=config,
            folder=folder,
            home=Home(folder),
            heldout=(prompt,),
            token_ids={"p0": (1,)},
            stop_token_ids=(),
        )
        self.slots = 0
        self.rewards, self.held, self.records, self.phases = dict(rewards), 0, [], []
        self.cast = SimpleNamespace(
            run=run,
            samplers=SimpleNamespace(sample=self._sample, take_slots=self._take_slots, free_slots=self._free_slots),
            rewards=SimpleNamespace(rank=self._rank, take_hits=lambda: 0),
            lend=self._lend,
        )
        self.run, self.sampled, self.ranked = run, 0, 0

    async def _lend(self, version, folder):
        assert is_written(self.run.folder, point_of(folder))
        self.held = version

    async def _take_slots(self, responses):
        self.slots += responses

    async def _free_slots(self, responses):
        self.slots -= responses

    async def _sample(self, task):
        assert self.slots == 3  # two samples and the greedy response
        spans = (VersionSpan(0, 1, self.held),)
        return [
            Candidate(f"{task.key}/{n}", str(self.held), (7,), (-1.0,), "stop", 1.0, "sampled", 0, spans)
            for n in range(3)
        ]

    async def _rank(self, requests):
        return [[Reward(self.rewards.get(int(text), 0.0)) for text in texts] for _, texts in requests]

    # What `Progress` is asked.

    def begin(self, phase, iteration, total):
        self.phases.append((phase, iteration))

    def log(self, event, metrics, **fields):
        self.records.append((fields["label"], fields["iteration"], fields.get("step"), self.held))


def point_of(folder):
    kind, iteration, *step = folder.name.split("-")
    return Point(int(iteration), int(step[1]) if kind == "snapshot" else 0)


def write(folder, version, *points):
    for number, point in enumerate(points):
        PublishedFolder(weights_folder(folder, point), version + number).close()


def test_snapshots_are_evaluated_in_order_with_their_own_weights_and_dropped(tmp_path):
    house = House(tmp_path, {3: 0.5, 4: 0.2}, best_metric=None)
    write(tmp_path, 3, Point(1, 9), Point(1, 12), Point(2, 18))
    asyncio.run(evaluate_snapshots(house.cast, house, 1))
    assert house.records == [("step 9", 1, 9, 3), ("step 12", 1, 12, 4)]
    assert snapshots(tmp_path) == [Point(2, 18)]
    asyncio.run(evaluate_snapshots(house.cast, house, 1))
    assert len(house.records) == 2


def test_the_best_snapshot_stays_until_a_better_one_comes(tmp_path):
    house = House(tmp_path, {0: 0.1, 3: 0.5, 4: 0.2, 5: 0.6})
    write(tmp_path, 3, Point(1, 9), Point(1, 12))
    asyncio.run(evaluate_snapshots(house.cast, house, 1))
    assert snapshots(tmp_path) == [Point(1, 9)]
    assert values(house.run) == {Point(1, 9): 0.5, Point(1, 12): 0.2}
    write(tmp_path, 5, Point(2))
    house.held = 5
    asyncio.run(evaluate(house.cast, house, Point(2)))
    drop_evaluated(house.run, 2)
    assert snapshots(tmp_path) == []
    assert is_written(tmp_path, Point(2))


def test_what_a_kill_left_out_is_evaluated_first_and_in_order(tmp_path):
    """Killed in the third iteration: the base policy, the second iteration's end and a snapshot have no result."""
    house = House(tmp_path)
    write(tmp_path, 1, Point(0, 3), Point(1), Point(1, 9), Point(2), Point(2, 15))
    for point in (Point(0, 3), Point(1, 9)):
        asyncio.run(evaluate(house.cast, house, point))
    house.records.clear()
    before = result_file(tmp_path, Point(1, 9)).read_text()
    asyncio.run(evaluate_missing(house.cast, house, 2))
    assert house.records == [("base policy", 0, None, 0), ("after iteration 1", 1, None, 2)]
    assert result_file(tmp_path, Point(1, 9)).read_text() == before
    assert evaluated_points(tmp_path) == [BASE, Point(0, 3), Point(1), Point(1, 9)]  # the rest after its annotation
    assert is_written(tmp_path, Point(2, 15))


def test_a_policy_whose_weights_are_gone_is_passed_over(tmp_path):
    house = House(tmp_path)
    asyncio.run(evaluate_missing(house.cast, house, 2))
    assert evaluated_points(tmp_path) == [BASE]


def test_a_snapshot_that_is_rolled_back_while_it_is_evaluated_has_no_result(tmp_path):
    house = House(tmp_path)
    assert asyncio.run(evaluate(house.cast, house, Point(0, 3))) is None
    assert evaluated_points(tmp_path) == []
    assert house.records == []


@pytest.mark.parametrize(("patience", "evaluated"), [(2, [9, 12]), (None, [9, 12, 15])])
def test_patience_ends_the_run_between_two_snapshots(tmp_path, patience, evaluated):
    house = House(tmp_path, {0: 0.5, 3: 0.4, 4: 0.5, 5: 0.9}, patience=patience)
    asyncio.run(evaluate(house.cast, house, BASE))
    write(tmp_path, 3, Point(1, 9), Point(1, 12), Point(1, 15))
    asyncio.run(evaluate_snapshots(house.cast, house, 1))
    assert [point.step for point in evaluated_points(tmp_path)] == [0, *evaluated]
    if patience is None:
        assert why_stopped(house.run) is None
        assert (ending(house.run).taken, ending(house.run).last) == (Point(1, 15), Point(3))
    else:
        assert "2 evaluations in a row" in why_stopped(house.run)
        assert (ending(house.run).taken, ending(house.run).last) == (Point(1, 12), Point(1, 12))
        assert ending(house.run).stopped == why_stopped(house.run)
        assert is_written(tmp_path, Point(1, 12))


def test_a_run_that_came_to_its_end_has_not_stopped_early(tmp_path):
    house = House(tmp_path, {0: 0.5}, patience=1)
    for point in (BASE, Point(3)):
        house.held = point.iteration
        asyncio.run(evaluate(house.cast, house, point))
    assert why_stopped(house.run) is None
    assert ending(house.run).stopped is None


def test_without_held_out_prompts_the_last_policy_is_left(tmp_path):
    house = House(tmp_path, best_metric=None, every_steps=None)
    house.run.heldout = ()
    assert asyncio.run(evaluate(house.cast, house, BASE)) is None
    assert ending(house.run).taken == Point(3)
    assert json.dumps(values(house.run)) == "{}"
