"""The pool sized while a run goes on, over doubles of the pool and of what the monitor sees."""

from types import SimpleNamespace

import pytest

from actors.progress import SAMPLING, TRAINING
from actors.scaler import Scaler
from larpo.config import Config


class Run:
    """A trainer that needs 4 samplers, which answer 0.2 prompts a second each; a second passes at each look."""

    def __init__(self, overlap="stream", waited=0.75, held=0.0, **knobs):
        training = {"lists_per_step": 8, "prompts_per_iteration": 1000, "iterations": 2}
        self.config = Config.model_validate(
            {"overlap": overlap, "training": training, "samplers": {"patience_s": 30.0, "max_num_seqs": 32, **knobs}}
        )
        self.now, self.said, self.logged, self.sizes = 0.0, [], [], []
        self.pool = SimpleNamespace(
            ready=1, coming=0, active=4, pending=dict.fromkeys("abcd"), per_sampler=32, start_seconds=[20.0]
        )
        self.pool.may_grow, self.pool.resize = True, self.sizes.append
        self.progress = SimpleNamespace(phase=SAMPLING, iteration=0, sampled=0, ranked=0, step=0, total=1000)
        self.progress.say, self.progress.log = self.said.append, lambda event, **fields: self.logged.append(fields)
        self.waits, self.status = (waited, held), SimpleNamespace(waiting=0)
        self.scaler = Scaler(self.config, self.pool, self.progress, clock=lambda: self.now)

    def go(self, seconds):
        for _ in range(seconds):
            self.now += 1
            if self.progress.phase == SAMPLING:
                self.progress.sampled = self.progress.ranked = int(0.2 * self.now)
                self.progress.step = int(0.2 * self.now) // 8
            self.status.consumer_wait_seconds = self.waits[0] * self.now
            self.status.producer_wait_seconds = self.waits[1] * self.now
            self.scaler.look(self.status)


def test_the_pool_grows_and_it_is_said_why():
    run = Run(max_count=10)
    run.go(100)
    assert run.sizes == []  # a step takes 40 s: two cycles after the first are over at 120 s
    run.go(30)
    assert run.sizes == [4]  # not yet to 4 and a margin: four times as many as are ready
    (record,) = run.logged
    assert record == {"wanted": 4, "reason": record["reason"]}
    assert run.said == [f"samplers: 1 -> 4: {record['reason']}"]
    assert "the trainer waited for 75% of the last" in record["reason"]


def test_prompts_that_wait_in_a_sampler_are_no_work_of_its():
    """Else a sampler would seem to answer a prompt in half the time, and half as many to be enough."""
    plain, queued = Run(max_count=10), Run(max_count=10)
    queued.pool.pending = dict.fromkeys("abcdefgh")
    for run in (plain, queued):
        run.go(130)
    assert queued.scaler._seen(130.0).rates == plain.scaler._seen(130.0).rates
    assert queued.sizes == plain.sizes == [4]


def test_where_phases_take_turns_it_grows_without_a_step():
    run = Run(overlap="none", waited=1.0, max_count=10)
    run.go(40)
    assert run.sizes == [4]


@pytest.mark.parametrize("why", ["max_count", "joins", "phase", "last prompts"])
def test_the_pool_does_not_grow(why):
    run = Run(max_count=1 if why == "max_count" else 10)
    run.pool.may_grow = why != "joins"
    if why == "phase":
        run.progress.phase = TRAINING
    if why == "last prompts":
        run.progress.total = 30
    run.go(300)
    assert run.sizes == []


def test_a_pool_with_nothing_to_do_is_let_go_in_the_end_and_not_while_prompts_are_evaluated():
    run = Run(min_count=1, count=3, max_count=3)
    run.pool.ready, run.progress.phase = 3, TRAINING
    run.go(60)
    assert run.sizes == []  # held-out prompts are with the samplers
    run.pool.active = 0
    run.go(29)
    assert run.sizes == []
    run.go(2)
    assert run.sizes == [1]
    assert "nothing to do" in run.said[0]


def test_a_new_iteration_is_looked_at_afresh():
    run = Run(max_count=10)
    run.go(90)
    run.progress.iteration = 1
    run.go(60)
    assert run.sizes == []
    run.go(60)
    assert run.sizes == [4]
