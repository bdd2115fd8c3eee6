"""How many samplers the pool should have: a pure function of what was seen of late.

Two shares of the time say when it should change: that in which the trainer waited for lists (it is starved), and that
in which samplers stood still because the stream is full. By how much, two rates say that no full or empty stream
distorts: lists a second that the trainer takes while it does not wait, and prompts a second that a sampler answers
while its places for prompts are filled. Their ratio is how many samplers the trainer needs.

    grow    when the trainer waited for at least STARVED of the patience, to MARGIN times the needed ones
    shrink  when samplers stood still for at least HELD of SLOWER times that, to the same

It does not flap, for where it goes is far from where it turns: with MARGIN d samplers, d being needed, the trainer does
not wait, and samplers stand still for 1 - 1 / MARGIN of the time, less than HELD. Changes by less than MARGIN are left,
and the rates are remembered for longer than either window, so that a chance of some minutes moves nothing. What that
assumes: samplers are alike, and the trainer's pace changes slowly.

It does not grow where that would come too late: for the last prompts of an iteration, which samplers have already, or
when the prompts left in the run take less time than a sampler takes to come and to be at work for as long. Nor where
samplers are not what is missing: a slow reward model starves the trainer too, but leaves samplers without prompts.
Samplers that have had nothing to do for as long as new ones take to come are let go (as in renting skis: at most twice
the cost of knowing better), so that the end of an iteration that is short keeps them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STARVED = 0.2  # share of the time in which the trainer waits that is worth samplers
HELD = 0.3  # share of the time in which samplers stand still that is worth letting some go
MARGIN = 1.15  # samplers to have, over those that the trainer needs
SLOWER = 5  # times the patience before some are let go: one too many costs less than a trainer that waits
STEPS = 2  # cycles of the trainer in the patience, each a wait and an optimizer step
AT_ONCE = 4  # times the ready samplers at most after one decision, or as many as there once were: rates are estimates


@dataclass(frozen=True)
class Range:
    """The pool's bounds, and the seconds over which shares are taken."""

    least: int
    most: int
    patience_s: float


@dataclass(frozen=True)
class Shares:
    """Of a window, which is of one iteration's sampling and of one size of the pool."""

    window_s: float = 0.0  # its length so far
    cycles: float = 0.0  # of the trainer in it; infinite where it waits for the whole iteration by design
    starved: float = 0.0  # in which the trainer waited for lists
    held: float = 0.0  # in which lists had no room in the stream
    busy: float = 0.0  # of the places for prompts in the samplers that were filled


@dataclass(frozen=True)
class Rates:
    """Over a longer while."""

    lists: float = 0.0  # a second that the trainer takes while it does not wait; infinite as above
    prompts: float = 0.0  # a second that one sampler answers while its places are filled
    signal: float = 1.0  # share of the prompts whose lists are trained on

    @property
    def needed(self) -> float:
        """Samplers with which the trainer would just not wait; 0 while that is not known."""
        one = self.prompts * self.signal
        return self.lists / one if one > 0 else 0.0


@dataclass(frozen=True)
class Seen:
    """What was seen of pool and trainer; both shares are empty when nothing is sampled for training."""

    shares: Shares  # over the patience
    slow: Shares  # over SLOWER times that
    rates: Rates
    ready: int  # samplers, now
    coming: int  # asked for, not at work yet
    waiting: int  # prompts of this iteration that no sampler has yet
    later: int  # prompts of later iterations
    peak: int  # the most that were ready at one time in this run
    leases: int  # prompts that one sampler has at most, those that wait there among them
    idle_s: float  # since there was last anything to do
    start_s: float  # from asking for a sampler until it works, of late

    @property
    def size(self) -> int:
        return self.ready + self.coming

    @property
    def is_ending(self) -> bool:
        """Samplers have, or will have at once, all that is left of the iteration."""
        return self.waiting <= self.size * self.leases


@dataclass(frozen=True)
class Decision:
    """How many samplers the pool should have, and why it should change; no reason: it stays."""

    wanted: int
    reason: str = ""


def decide(limits: Range, seen: Seen) -> Decision:
    """The pool's size from now on, within its bounds."""
    size, stays = seen.size, Decision(seen.size)
    if size < limits.least:
        return Decision(limits.least, "so many it has at least")
    if seen.waiting == 0 and seen.idle_s >= max(limits.patience_s, seen.start_s) and size > limits.least:
        return Decision(limits.least, f"there was nothing to do for {seen.idle_s:.0f} s")
    target = _target(limits, seen)
    if target >= MARGIN * size and _is_starved(limits, seen) and _pays(seen):
        return Decision(target, f"the trainer waited for {_of(seen.shares.starved, seen.shares)}")
    if MARGIN * target <= size and _stands_still(limits, seen):
        return Decision(target, f"samplers stood still for {_of(_still(seen.slow, seen), seen.slow)}")
    return stays


def _is_starved(limits: Range, seen: Seen) -> bool:
    fast = seen.shares
    enough = fast.window_s >= limits.patience_s and fast.cycles >= STEPS
    return enough and fast.starved >= STARVED and _still(fast, seen) < HELD


def _stands_still(limits: Range, seen: Seen) -> bool:
    slow = seen.slow
    enough = slow.window_s >= SLOWER * limits.patience_s and slow.cycles >= SLOWER * STEPS
    return enough and slow.starved < STARVED and _still(slow, seen) >= HELD


def _target(limits: Range, seen: Seen) -> int:
    """A margin over what the trainer needs, as far as one decision may go, within the bounds."""
    wanted = min(MARGIN * seen.rates.needed, max(AT_ONCE * max(1, seen.ready), seen.peak))
    return min(limits.most, max(limits.least, math.ceil(wanted - 1e-9)))


def _still(shares: Shares, seen: Seen) -> float:
    """Share of the samplers' time that was not used. Places empty for want of prompts say nothing of it."""
    return shares.held if seen.is_ending else max(shares.held, 1 - shares.busy)


def _pays(seen: Seen) -> bool:
    """Whether one more sampler comes in time, and is at work for as long as it takes to come."""
    if seen.is_ending or seen.rates.prompts <= 0:
        return False
    left_s = (seen.waiting + seen.later) / (seen.rates.prompts * max(1, seen.size))
    return left_s >= 2 * seen.start_s


def _of(share: float, shares: Shares) -> str:
    return f"{share:.0%} of the last {shares.window_s:.0f} s"
