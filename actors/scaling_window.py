"""What the monitor saw of pool and trainer, as the shares and rates that `scaling.decide` wants."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import astuple, dataclass
from itertools import pairwise

from actors.scaling import SLOWER, STEPS, Rates, Shares

MEMORY = 2 * SLOWER  # times the patience, or
CYCLES = 2 * SLOWER * STEPS  # cycles of the trainer, whichever is longer: how far back the rates remember


@dataclass(frozen=True)
class Totals:
    """What only grows, counted from wherever it likes."""

    trainer_waited: float  # seconds
    held: float  # seconds in which lists had no room in the stream
    answered: int  # prompts
    ranked: int  # prompts
    step: int  # optimizer steps


@dataclass(frozen=True)
class Look:
    """One look, while prompts are sampled for training."""

    at: float  # seconds
    totals: Totals
    ready: int  # samplers
    at_work: int  # prompts that samplers have
    lists: int  # that wait in the stream

    def is_after(self, earlier: Look) -> bool:
        """False where a total fell: it began anew, for an actor was started again."""
        pairs = zip(astuple(earlier.totals), astuple(self.totals), strict=True)
        return all(before <= after for before, after in pairs)


class Window:
    """The looks of the last so many seconds, and further back as long as they hold too few cycles of the trainer.

    `phased`: the trainer waits for the whole iteration, and takes no step meanwhile.
    """

    def __init__(self, seconds: float, cycles: int, places: int, *, phased: bool) -> None:
        self._seconds, self._least_cycles, self._places, self._phased = seconds, cycles, places, phased
        self._looks: deque[Look] = deque()

    def clear(self) -> None:
        self._looks.clear()

    def add(self, look: Look) -> None:
        if self._looks and not look.is_after(self._looks[-1]):
            self.clear()
        self._looks.append(look)
        while len(self._looks) > 2 and self._is_enough(self._looks[1]):
            self._looks.popleft()

    def _is_enough(self, first: Look) -> bool:
        return self._looks[-1].at - first.at >= self._seconds and self._cycles(first) >= self._least_cycles

    def _cycles(self, first: Look) -> float:
        return math.inf if self._phased else self._looks[-1].totals.step - first.totals.step

    def shares(self) -> Shares:
        if len(self._looks) < 2:
            return Shares()
        first, last = self._looks[0], self._looks[-1]
        window = max(1e-6, last.at - first.at)
        spans = [(before, after.at - before.at) for before, after in pairwise(self._looks)]
        places = self._places * sum(look.ready * seconds for look, seconds in spans)
        filled = sum(look.at_work * seconds for look, seconds in spans)
        return Shares(
            window_s=window,
            cycles=self._cycles(first),
            starved=min(1.0, (last.totals.trainer_waited - first.totals.trainer_waited) / window),
            held=min(1.0, (last.totals.held - first.totals.held) / window),
            busy=min(1.0, filled / max(1e-6, places)),
        )


def windows(patience_s: float, places: int, *, phased: bool) -> tuple[Window, Window]:
    """That by which the pool grows, and the longer one by which it shrinks."""
    return (
        Window(patience_s, STEPS, places, phased=phased),
        Window(SLOWER * patience_s, SLOWER * STEPS, places, phased=phased),
    )


class Memory:
    """Rates over all looks, older ones counting less. `pause` goes between two stretches of sampling."""

    def __init__(self, patience_s: float, places: int, lists_per_step: int, *, phased: bool) -> None:
        self._memory, self._places, self._lists_per_step = MEMORY * patience_s, places, lists_per_step
        self._phased = phased
        self._look: Look | None = None  # the newest
        self._mark: Look | None = None  # the newest that was first to see a step
        self._taken = self._training = 0.0  # lists, and seconds in which the trainer did not wait
        self._answered = self._filled = 0.0  # prompts, and seconds times places that they filled
        self._came = self._ranked = 0.0  # lists that came to the stream, and prompts that were ranked

    def pause(self) -> None:
        self._look = self._mark = None

    def add(self, look: Look) -> None:
        before = self._look
        if before is not None and not look.is_after(before):
            self.pause()
        elif before is not None:
            self._add_samplers(before, look)
            if look.totals.step > before.totals.step:
                self._add_steps(look)
        self._look = look

    def _add_samplers(self, before: Look, look: Look) -> None:
        """Prompts that are with a sampler count as half answered: those of one that has just come are all new."""
        seconds = look.at - before.at
        kept = math.exp(-seconds / self._memory)
        answered = look.totals.answered - before.totals.answered + (look.at_work - before.at_work) / 2
        taken = (look.totals.step - before.totals.step) * self._lists_per_step
        self._answered = kept * self._answered + answered
        self._filled = kept * self._filled + before.at_work * seconds
        self._came = kept * self._came + taken + look.lists - before.lists
        self._ranked = kept * self._ranked + look.totals.ranked - before.totals.ranked

    def _add_steps(self, look: Look) -> None:
        """From the end of one step to that of another, without the waits between."""
        mark, self._mark = self._mark, look
        if mark is None:
            return
        waited = look.totals.trainer_waited - mark.totals.trainer_waited
        steps = look.totals.step - mark.totals.step
        kept = math.exp(-min((look.at - mark.at) / self._memory, steps / CYCLES))
        self._taken = kept * self._taken + steps * self._lists_per_step
        self._training = kept * self._training + max(0.0, look.at - mark.at - waited)

    def rates(self) -> Rates:
        lists = self._taken / max(1e-6, self._training)
        return Rates(
            lists=math.inf if self._phased else lists,
            prompts=max(0.0, self._answered) * self._places / max(1e-6, self._filled),
            signal=1.0 if self._phased else min(1.0, max(0.05, self._came / max(1e-6, self._ranked))),
        )
