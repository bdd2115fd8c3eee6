"""The bound on staleness, over a simulated clock: whatever comes late, no list is trained too late, and none waits.

Prompts are asked for, answered, ranked and dropped, steps are made, weights published and taken, all with delays drawn
at random, some of them very long; the trainer may die at a step and go on from an older checkpoint.
"""

import heapq
import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.list_queue import ListQueue
from actors.work import IterationEnd, Journal, StepWork
from larpo.config_checks import check_config
from larpo.errors import ConfigError
from larpo.recipe import load_config
from larpo.staleness import Staleness
from tests.actors.test_stream import make_config, make_list

PROMPTS = 60


class Queue(ListQueue):
    """With its disk in memory."""

    def __init__(self, config, folder):
        self.disk = []
        super().__init__(config, folder)

    def _recorded(self, iteration):
        return [item for item in self.disk if item.iteration == iteration]


class Simulation:
    """One iteration with its events in order of time: (time, number, what, argument)."""

    def __init__(self, folder, seed: int, *, most: int, every: int, per_step: int, crashes: float, remembered: int):
        self.draw, self.crashes = random.Random(seed), crashes
        config = make_config(
            overlap="async",
            max_staleness=most,
            weights={"every_steps": every},
            training={"iterations": 1, "prompts_per_iteration": PROMPTS, "lists_per_step": per_step},
            stream={"capacity": self.draw.choice([per_step, 1000])},
        )
        self.bound = Staleness(every, per_step, most)
        self.queue = Queue(config, folder)
        self.events, self.numbers, self.now = [], itertools.count(), 0.0
        self.left = list(range(PROMPTS))
        self.remembered = remembered  # lists of nothing but remembered candidates, offered at the end
        self.with_samplers = 0
        self.journal, self.saved = Journal(), Journal()
        self.at_work, self.group, self.over = False, 0, False
        self.published = self.taking = self.taken = (0, 0)  # version, publication
        self.stalest, self.waited = 0, Counter()

    def after(self, mean: float, what, *arguments) -> None:
        """Most delays are short, and one in ten is thirty times as long."""
        late = 30 if self.draw.random() < 0.1 else 1
        moment = self.now + self.draw.expovariate(1 / mean) * late
        heapq.heappush(self.events, (moment, next(self.numbers), what, arguments))

    def run(self) -> None:
        self.queue.open(0)
        self.queue.restore(self.journal)
        self.look()
        while not self.over:
            assert self.events, f"everybody waits: {len(self.left)} prompts left, {self.with_samplers} with samplers"
            self.now, _, what, arguments = heapq.heappop(self.events)
            what(*arguments)
            self.look()

    def look(self) -> None:
        """Who waits looks whether it may go on."""
        while self.left and self.with_samplers < 12 and self.queue.may_ask():
            number = self.left.pop(0)
            publication = self.queue.ask(f"p{number}")
            assert publication <= self.queue.samplers_at
            self.with_samplers += 1
            self.after(1.0, self.answered, number, publication)
        if self.taking == self.taken != self.published:  # one update after another, to what is newest then
            self.taking = self.published
            self.after(0.3, self.took)
        if not self.at_work and self.queue.is_ready():
            work, lists = self.queue.form(self.journal.position)
            self.at_work = True
            if isinstance(work, StepWork):
                self.check(work, lists)
                self.after(0.5, self.trained, work, self.group)
            else:
                assert isinstance(work, IterationEnd)
                self.journal, self.over = self.journal.after(work), True

    def check(self, work: StepWork, lists) -> None:
        step = self.bound.steps(len(self.journal.used(0, 0)))
        assert work.publication == self.bound.publication(step)
        for item in lists:
            if item.is_fresh:
                self.stalest = max(self.stalest, work.publication - item.publication)

    def answered(self, number: int, publication: int) -> None:
        self.with_samplers -= 1
        rewards = (1.0, 1.0) if self.draw.random() < 0.2 else (1.0, 0.0)  # a fifth of the lists has no signal
        self.offer(make_list(0, number, rewards).replace(publication=publication))
        if not self.left and not self.with_samplers:
            for number in range(PROMPTS, PROMPTS + self.remembered):
                item = make_list(0, number)
                old = tuple(candidate.replace(origin="remembered") for candidate in item.candidates)
                self.offer(item.replace(candidates=old))
            self.queue.close(0)

    def offer(self, item) -> None:
        self.queue.disk.append(item)
        trainable = self.queue.trainable([item])
        self.queue.place([item])
        self.queue.append(trainable)

    def trained(self, work: StepWork, group: int) -> None:
        if group != self.group:
            return  # by a group that has died since
        self.at_work = False
        if self.draw.random() < self.crashes:
            return self.crash()
        self.journal = self.journal.after(work)
        if self.draw.random() < 0.5:
            self.saved = self.journal
        if work.publishes:
            self.publish(work.publication + 1)

    def crash(self) -> None:
        """The group starts again from its checkpoint, and publishes once more what is newest there."""
        self.group += 1
        self.journal = self.saved
        self.queue.restore(self.journal)
        publication = self.bound.publication(self.bound.steps(len(self.journal.used(0, 0))))
        if publication or self.published[1]:  # of steps that are rolled back
            self.publish(publication)

    def publish(self, publication: int) -> None:
        self.published = (self.published[0] + 1, publication)

    def took(self) -> None:
        self.taken = self.taking
        self.queue.samplers_at = self.taken[1]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    most=st.integers(0, 3),
    every=st.integers(1, 4),
    per_step=st.integers(1, 7),
    crashes=st.sampled_from([0.0, 0.2]),
    remembered=st.sampled_from([0, 9]),
)
def test_no_list_is_staler_than_the_bound_and_every_one_is_trained_once(tmp_path_factory, seed, **knobs):
    simulation = Simulation(tmp_path_factory.getbasetemp(), seed, **knobs)
    simulation.run()
    assert simulation.stalest <= knobs["most"]
    expected = [item.prompt.id for item in simulation.queue.trainable(simulation.queue.disk)]
    assert Counter(simulation.journal.used(0, 0)) == Counter(expected)


def test_the_bound_is_used_and_a_queue_without_it_breaks_it(tmp_path, monkeypatch):
    """Else the property above would say nothing: staleness reaches it, and too late a list stops all that follows."""
    knobs = {"every": 1, "per_step": 2, "crashes": 0.0, "remembered": 0}

    def stalest(most):
        found = []
        for seed in range(20):
            simulation = Simulation(tmp_path, seed, most=most, **knobs)
            simulation.run()
            found.append(simulation.stalest)
        return max(found)

    assert [stalest(most) for most in range(3)] == [0, 1, 2]
    monkeypatch.setattr(Queue, "_leaves_time", lambda self: True)
    with pytest.raises(AssertionError, match="everybody waits"):  # for lists that are too late already
        stalest(2)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.epochs=2", "training.epochs = 2: a later pass trains lists again that are older"),
        ("lists.negatives=related", "lists.negatives = 'related': a list would wait for those of other prompts"),
        ("samplers.sleep=true", "samplers.sleep = True with overlap = 'async'"),
    ],
)
def test_what_cannot_be_with_weights_in_flight_is_refused(override, says):
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        check_config(load_config("quickstart", ["overlap=async", "training.epochs=1", override]))
