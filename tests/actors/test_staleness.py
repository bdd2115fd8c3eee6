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
from actors.work import IterationEnd, Journal, RunEnd, Work
from larpo.config_checks import check_config
from larpo.errors import ConfigError
from larpo.recipe import load_config
from larpo.staleness import Staleness
from tests.actors.test_stream import make_config, make_list

PROMPTS, ITERATIONS = 60, 3


class Queue(ListQueue):
    """With its disk in memory."""

    def __init__(self, config, folder):
        self.disk = []
        super().__init__(config, folder)

    def _recorded(self, iteration):
        return [item for item in self.disk if item.iteration == iteration]


class Simulation:
    """A run with its events in order of time: (time, number, what, arguments)."""

    def __init__(self, folder, seed: int, *, most: int, every: int, per_step: int, crashes: float, remembered: int):
        self.draw, self.crashes = random.Random(seed), crashes
        config = make_config(
            overlap="async",
            max_staleness=most,
            weights={"every_steps": every},
            training={"iterations": ITERATIONS, "prompts_per_iteration": PROMPTS, "lists_per_step": per_step},
            stream={"capacity": self.draw.choice([per_step, 1000])},
        )
        self.bound = Staleness(every, per_step, most)
        self.queue = Queue(config, folder)
        self.events, self.numbers, self.now = [], itertools.count(), 0.0
        self.remembered = remembered  # lists of nothing but remembered candidates, offered at the end
        self.with_samplers = 0
        self.journal, self.saved = Journal(), [Journal(), Journal()]
        self.at_work, self.group, self.over = False, 0, False
        self.iteration = 0  # of which the conductor waits for the end
        self.published = (0, 0, 0)  # version, iteration, publication
        self.taking, self.taken = 0, 0  # versions
        self.asked_at = {}  # (iteration, prompt id) -> iteration and publication that the samplers had
        self.trained_at = {}  # (iteration, prompt id) -> publication of the step within the iteration
        self.early = 0  # prompts that were asked for before their iteration

    def after(self, mean: float, what, *arguments) -> None:
        """Most delays are short, and one in ten is thirty times as long."""
        late = 30 if self.draw.random() < 0.1 else 1
        moment = self.now + self.draw.expovariate(1 / mean) * late
        heapq.heappush(self.events, (moment, next(self.numbers), what, arguments))

    def run(self) -> None:
        self.open(0)
        self.queue.restore(self.journal)
        self.look()
        while not self.over:
            assert self.events, f"everybody waits: {len(self.left)} prompts left, {self.with_samplers} with samplers"
            self.now, _, what, arguments = heapq.heappop(self.events)
            what(*arguments)
            self.look()

    def open(self, iteration: int) -> None:
        self.opened, self.left = iteration, list(range(PROMPTS))
        self.queue.open(iteration)

    def look(self) -> None:
        """Who waits looks whether it may go on."""
        while self.left and self.with_samplers < 12 and self.queue.may_ask():
            number = self.left.pop(0)
            publication = self.queue.ask(f"p{number}")
            self.asked_at[self.opened, f"p{number}"] = self.queue.samplers_at
            self.early += publication < 0
            self.with_samplers += 1
            self.after(1.0, self.answered, number, publication)
        version, iteration, publication = self.published
        if self.taking == self.taken != version and iteration == self.iteration:  # one update after another
            self.taking = version
            self.after(0.3, self.took, iteration, publication)
        if not self.at_work and self.queue.is_ready():
            work, lists = self.queue.form(self.journal.position)
            self.over = isinstance(work, RunEnd)
            if not self.over:
                self.at_work = True
                step = self.bound.steps(len(self.journal.used(work.iteration, 0)))
                assert isinstance(work, IterationEnd) or work.publication == self.bound.publication(step)
                self.after(0.5, self.trained, work, lists, self.group)

    def answered(self, number: int, publication: int) -> None:
        self.with_samplers -= 1
        rewards = (1.0, 1.0) if self.draw.random() < 0.2 else (1.0, 0.0)  # a fifth of the lists has no signal
        self.offer(make_list(self.opened, number, rewards).replace(publication=publication))
        if not self.left and not self.with_samplers:
            for number in range(PROMPTS, PROMPTS + self.remembered):
                item = make_list(self.opened, number)
                old = tuple(candidate.replace(origin="remembered") for candidate in item.candidates)
                self.offer(item.replace(candidates=old))
            self.queue.close(self.opened)
            self.open_next()

    def open_next(self) -> None:
        """When all lists of an iteration are there, and the one before is trained and handed over."""
        done = not self.left and not self.with_samplers
        if done and self.opened == self.iteration and self.opened + 1 < ITERATIONS:
            self.open(self.opened + 1)

    def offer(self, item) -> None:
        self.queue.disk.append(item)
        trainable = self.queue.trainable([item])
        self.queue.place([item])
        self.queue.append(trainable)

    def trained(self, work: Work, lists, group: int) -> None:
        if group != self.group:
            return  # by a group that has died since
        self.at_work = False
        if self.draw.random() < self.crashes:
            return self.crash()
        self.journal = self.journal.after(work)
        if self.draw.random() < 0.5 or isinstance(work, IterationEnd):
            self.saved = [self.saved[-1], self.journal]
        if isinstance(work, IterationEnd):
            self.publish(0)
            self.after(0.2, self.handed_over, work.iteration + 1)
            return
        for item in lists:
            if item.is_fresh:
                self.trained_at[item.iteration, item.prompt.id] = work.publication
                assert work.publication - item.publication <= self.bound.most
        if work.publishes:
            self.publish(work.publication + 1)

    def handed_over(self, iteration: int) -> None:
        """The samplers have what an iteration begins with, once."""
        if iteration == self.iteration + 1:
            self.iteration = iteration
            self.queue.took(iteration, 0)
            self.open_next()

    def crash(self) -> None:
        """The group starts again from its checkpoint, or the one before, and publishes again what is newest there."""
        self.group += 1
        self.journal = self.saved[self.draw.random() < 0.9]
        self.saved = [self.saved[0], self.journal]
        self.queue.restore(self.journal)
        iteration = self.journal.iteration
        publication = self.bound.publication(self.bound.steps(len(self.journal.used(iteration, 0))))
        if publication or (self.published[1] == iteration and self.published[2]):  # of steps that are rolled back
            self.publish(publication)

    def publish(self, publication: int) -> None:
        self.published = (self.published[0] + 1, self.journal.iteration, publication)

    def took(self, iteration: int, publication: int) -> None:
        self.taken = self.taking
        self.queue.took(iteration, publication)

    def staleness(self, key) -> int:
        """Of a list, by what was trained: publications from the samplers' weights to those that trained on it."""
        (iteration, publication), at = self.asked_at[key], self.trained_at[key]
        for before in range(iteration, key[0]):  # what its steps published, and its end
            at += (self.bound.steps(len(self.journal.used(before, 0))) - 1) // self.bound.every_steps + 1
        return at - publication


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
    assert max(simulation.staleness(key) for key in simulation.trained_at) <= knobs["most"]
    for iteration in range(ITERATIONS):
        disk = [item for item in simulation.queue.disk if item.iteration == iteration]
        expected = [item.prompt.id for item in simulation.queue.trainable(disk)]
        assert Counter(simulation.journal.used(iteration, 0)) == Counter(expected)


def test_prompts_of_the_next_iteration_are_asked_for_early_where_the_bound_allows_any(tmp_path):
    knobs = {"every": 2, "per_step": 3, "crashes": 0.0, "remembered": 0}

    def early(most):
        found = 0
        for seed in range(10):
            simulation = Simulation(tmp_path, seed, most=most, **knobs)
            simulation.run()
            found += simulation.early
        return found

    none, some, more = (early(most) for most in range(3))
    assert none == 0 < some < more


def test_the_bound_is_used_and_a_queue_without_it_breaks_it(tmp_path, monkeypatch):
    """Else the property above would say nothing: staleness reaches it, and too late a list stops all that follows."""
    knobs = {"every": 1, "per_step": 2, "crashes": 0.0, "remembered": 0}

    def stalest(most):
        found = []
        for seed in range(20):
            simulation = Simulation(tmp_path, seed, most=most, **knobs)
            simulation.run()
            found.append(max(simulation.staleness(key) for key in simulation.trained_at))
        return max(found)

    assert [stalest(most) for most in range(3)] == [0, 1, 2]
    monkeypatch.setattr(Queue, "_leaves_time", lambda self: True)
    with pytest.raises(AssertionError, match=r"everybody waits|<= 2"):  # for lists too late, or with them
        stalest(2)


def test_early_lists_are_known_to_a_trainer_that_fell_back_behind_the_iteration_before(tmp_path):
    """A damaged checkpoint: the trainer is two iterations behind, ends one of them again, and is one behind."""
    config = make_config(
        overlap="async",
        max_staleness=1,
        weights={"every_steps": 2},
        training={"iterations": 3, "prompts_per_iteration": 20, "lists_per_step": 2},
        stream={"capacity": 100},
    )
    queue, journals = Queue(config, tmp_path), [Journal()]
    queue.restore(Journal())

    def offer(iteration, numbers, publication=0):
        lists = [make_list(iteration, number).replace(publication=publication) for number in numbers]
        queue.disk += lists
        queue.place(lists)
        queue.append(lists)

    def train():
        work, _ = queue.form(journals[-1].position)
        journals.append(journals[-1].after(work))

    for iteration in (0, 1):
        queue.open(iteration)
        queue.took(iteration, 0)
        offer(iteration, range(4))
        queue.close(iteration)
        if iteration == 0:
            for _ in range(3):
                train()
    queue.open(2)
    asked = [number for number in range(20) if queue.may_ask() and queue.ask(f"p{number}") == -1]
    assert asked == [0, 1, 2, 3]  # two steps of two lists until the publication after the next
    offer(2, asked, publication=-1)
    assert not queue.may_ask()
    queue.restore(journals[1])
    assert not queue.may_ask()  # two behind
    del journals[2:]
    train()
    train()
    assert journals[-1].iteration == 1
    queue.took(1, 0)
    assert not queue.may_ask()


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
