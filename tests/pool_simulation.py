"""A run of hundreds of samplers in no time: what `decide` is asked and what comes of it, event by event.

Samplers answer prompts in random times and may die; nodes take random times to come. The trainer takes steps of
`step_lists` lists, of random length; the stream is bounded, as the real one; the reward model ranks a list at a time.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise

from actors.scaling import Range, Seen, decide
from actors.scaling_window import Look, Memory, Totals, windows

LOOK_S = 5.0


@dataclass(frozen=True)
class World:
    """Times in seconds. The trainer needs `needed` samplers to never wait."""

    needed: float
    least: int = 1
    most: int = 300
    first: int = 1  # samplers at the start
    patience_s: float = 60.0
    places: int = 4  # prompts that a sampler works on at a time
    answer_s: float = 20.0  # mean time of a prompt
    step_lists: int = 64
    capacity: int = 256
    prompts: int = 20_000  # of an iteration
    iterations: int = 1
    tail_s: float = 0.0  # from an iteration's last step until the next begins: publishing, evaluation
    node_s: float = 180.0  # median time of a node and an engine to come
    rank_s: float = 0.0  # the reward model's time for a list
    spread: float = 0.4  # of the random times, sigma of their logarithm
    seed: int = 0

    @property
    def step_s(self) -> float:
        """Mean time of a step, such that `needed` samplers just feed the trainer."""
        return self.step_lists * self.answer_s / (self.places * self.needed)


@dataclass
class History:
    """What a simulated run came to."""

    sizes: list[tuple[float, int, int]] = field(default_factory=list)  # (when, ready, coming), at each look
    changes: list[tuple[float, int, int, str]] = field(default_factory=list)  # (when, from, to, why)
    steps: list[tuple[float, float]] = field(default_factory=list)  # (when a step began, how long it waited for lists)
    sampled: float = 0.0  # when the last prompt was answered
    ended: float = 0.0
    answered: int = 0
    again: int = 0  # prompts that were answered by another sampler than the first

    def ready_at(self, when: float) -> int:
        return next(ready for at, ready, _ in reversed(self.sizes) if at <= when)

    def starved(self, since: float, until: float) -> float:
        """Share of that time in which the trainer waited."""
        waits = [(max(since, at - waited), min(until, at)) for at, waited in self.steps]
        return sum(max(0.0, end - start) for start, end in waits) / (until - since)

    @property
    def turns(self) -> int:
        """How often the pool grew after it had shrunk or shrank after it had grown, while there was work."""
        signs = [after > before for _, before, after, why in self.changes if "nothing to do" not in why]
        return sum(one != other for one, other in pairwise(signs))


class Simulation:
    """`events`: (when, what to do with the simulation), besides what it does by itself."""

    def __init__(self, world: World, events: tuple[tuple[float, Callable[[Simulation], None]], ...] = ()) -> None:
        self.world, self.random, self.history = world, random.Random(world.seed), History()
        self.now, self._order = 0.0, count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self.needed = world.needed
        self.ready: dict[int, set[int]] = {}  # sampler -> prompts that it has
        self._room: dict[int, None] = {}  # samplers that can take a prompt
        self._leaving: dict[int, set[int]] = {}
        self._coming: dict[int, float] = {}  # sampler -> when it was asked for
        self._names, self._prompts, self._starts = count(), count(), [world.node_s]
        self._back: list[int] = []  # prompts that came back
        self._iteration, self._left, self._answered, self._trained = 0, world.prompts, 0, 0
        self._blocked, self._unranked, self._stream, self._slots = 0, 0, 0, 0
        self._ranking = self._training = False
        self._waited = self._held = 0.0
        self._waits_since: float | None = 0.0
        self._held_since: float | None = None
        self._windows = windows(world.patience_s, world.places, phased=False)
        self._memory = Memory(world.patience_s, world.places, world.step_lists, phased=False)
        self._worked, self._steps = 0.0, 0
        self._ranked = self._peak = 0
        for _ in range(world.first):
            self._add(next(self._names))
        for when, event in events:
            self._at(when, lambda event=event: event(self))
        self._at(0.0, self._look)
        self._hand_out()

    def run(self, limit_s: float = 10 * 3600.0) -> History:
        while self._queue and self._iteration < self.world.iterations and self.now < limit_s:
            self.now, _, event = heapq.heappop(self._queue)
            event()
        self.history.ended = self.now
        return self.history

    def kill(self, share: float) -> None:
        """That share of the ready samplers dies at once, and with them what they are at."""
        for name in sorted(self.ready)[: round(share * len(self.ready))]:
            self._room.pop(name, None)
            self._give_back(self.ready.pop(name))
        self._hand_out()

    def _add(self, name: int) -> None:
        self.ready[name], self._room[name] = set(), None

    def _at(self, delay: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), event))

    def _time(self, median: float) -> float:
        return median * math.exp(self.random.gauss(0.0, self.world.spread))

    # Samplers.

    def _hand_out(self) -> None:
        world = self.world
        while self._slots < len(self.ready) * world.places and (self._back or self._left):
            if not self._room:
                return
            name = next(iter(self._room))
            if self._back:
                prompt = self._back.pop()
            else:
                prompt, self._left = next(self._prompts), self._left - 1
            self._slots += 1
            self.ready[name].add(prompt)
            if len(self.ready[name]) == world.places:
                del self._room[name]
            mean = world.answer_s / math.exp(world.spread**2 / 2)
            self._at(self._time(mean), lambda name=name, prompt=prompt: self._answer(name, prompt))

    def _answer(self, name: int, prompt: int) -> None:
        having = self.ready.get(name, self._leaving.get(name, set()))
        if prompt not in having:
            return  # it was handed back meanwhile
        having.discard(prompt)
        if name in self.ready:
            self._room[name] = None
        self._answered += 1
        self.history.answered += 1
        self.history.sampled = self.now
        self._unranked += 1
        self._rank()
        self._hand_out()

    def _give_back(self, prompts: set[int]) -> None:
        self._slots -= len(prompts)
        self.history.again += len(prompts)
        self._back += sorted(prompts)

    def _rank(self) -> None:
        """One list at a time; a full stream holds it back, and with it those that wait for it."""
        if self._ranking or not self._unranked:
            return
        self._ranking, self._unranked = True, self._unranked - 1
        self._at(self.world.rank_s, self._offer)

    def _offer(self) -> None:
        if self._stream >= max(self.world.capacity, self.world.step_lists):
            self._held_since = self.now if self._held_since is None else self._held_since
            return
        if self._held_since is not None:
            self._held, self._held_since = self._held + self.now - self._held_since, None
        self._stream += 1
        self._ranked += 1
        self._slots -= 1
        self._ranking = False
        self._step()
        self._rank()
        self._hand_out()

    # Trainer.

    def _step(self) -> None:
        last = self._trained + self._stream == self.world.prompts
        if self._training or not (self._stream >= self.world.step_lists or (last and self._stream)):
            return
        waited = self.now - (self.now if self._waits_since is None else self._waits_since)
        self.history.steps.append((self.now, waited))
        self._waited, self._waits_since = self._waited + waited, None
        lists = min(self.world.step_lists, self._stream)
        self._stream -= lists
        self._trained += lists
        self._training = True
        mean = self.world.step_s * self.world.needed / self.needed
        self._at(self._time(mean / math.exp(self.world.spread**2 / 2)), self._stepped)
        if self._ranking and self._held_since is not None:
            self._offer()

    def _stepped(self) -> None:
        self._training, self._steps, self._waits_since = False, self._steps + 1, self.now
        if self._trained < self.world.prompts:
            return self._step()
        self._at(self.world.tail_s, self._next_iteration)

    def _next_iteration(self) -> None:
        self._iteration += 1
        self._left, self._answered, self._trained = self.world.prompts, 0, 0
        self._clear()
        self._hand_out()

    # The pool.

    def _look(self) -> None:
        self._at(LOOK_S, self._look)
        sampling = self._answered < self.world.prompts
        if any(self.ready.values()) or not self.ready:
            self._worked = self.now
        if not sampling:
            self._clear()
            self._memory.pause()
        elif self._trained > self.world.step_lists or (self._trained and not self._training):
            for seer in (*self._windows, self._memory):
                seer.add(self._seen_now())
        seen = self._seen(sampling)
        self._peak = max(self._peak, len(self.ready))
        self.history.sizes.append((self.now, len(self.ready), len(self._coming)))
        decision = decide(Range(self.world.least, self.world.most, self.world.patience_s), seen)
        if decision.reason:
            self.history.changes.append((self.now, seen.size, decision.wanted, decision.reason))
            self._resize(decision.wanted - seen.size)
            self._clear()
            self._worked = self.now

    def _clear(self) -> None:
        for window in self._windows:
            window.clear()

    def _seen_now(self) -> Look:
        waits = 0.0 if self._waits_since is None else self.now - self._waits_since
        held = 0.0 if self._held_since is None else self.now - self._held_since
        at_work = sum(map(len, self.ready.values()))
        total = self.world.prompts * self._iteration + self._answered
        totals = Totals(self._waited + waits, self._held + held, total, self._ranked, self._steps)
        return Look(self.now, totals, len(self.ready), at_work, self._stream)

    def _seen(self, sampling: bool) -> Seen:
        later = (self.world.iterations - self._iteration - 1) * self.world.prompts
        recent = self._starts[-8:]
        fast, slow = (window.shares() for window in self._windows)
        return Seen(
            shares=fast,
            slow=slow,
            rates=self._memory.rates(),
            ready=len(self.ready),
            coming=len(self._coming),
            waiting=self._left + len(self._back) if sampling else 0,
            later=later,
            peak=self._peak,
            leases=self.world.places,
            idle_s=self.now - self._worked,
            start_s=sum(recent) / len(recent),
        )

    def _resize(self, change: int) -> None:
        for _ in range(change):
            name = next(self._names)
            self._coming[name] = self.now
            self._at(self._time(self.world.node_s), lambda name=name: self._join(name))
        for _ in range(-change):
            if self._coming:
                self._coming.popitem()
                continue
            name = min(self.ready, key=lambda name: len(self.ready[name]))
            self._room.pop(name, None)
            self._leaving[name] = self.ready.pop(name)
            self._at(60.0, lambda name=name: self._gone(name))

    def _join(self, name: int) -> None:
        asked = self._coming.pop(name, None)
        if asked is not None:
            self._starts.append(self.now - asked)
            self._add(name)
            self._hand_out()

    def _gone(self, name: int) -> None:
        self._give_back(self._leaving.pop(name))
        self._hand_out()
