"""Sizes the pool of samplers while a run goes on: looks with the monitor, and asks `scaling.decide`."""

from __future__ import annotations

import time
from collections.abc import Callable

from actors.pool import SamplerPool
from actors.progress import SAMPLING, Progress
from actors.scaling import Range, Seen, decide
from actors.scaling_window import Look, Memory, Totals, windows
from actors.work import StreamStatus
from larpo.config import Config


class Scaler:
    """Resizes `pool`, and says so. An iteration is looked at from its first step on: every trainer waits for that."""

    def __init__(
        self, config: Config, pool: SamplerPool, progress: Progress, clock: Callable[[], float] = time.monotonic
    ) -> None:
        samplers = config.samplers
        self._pool, self._progress, self._clock = pool, progress, clock
        self._training = config.training
        self._limits = Range(samplers.least, samplers.most, samplers.patience_s)
        phased = config.overlap == "none"
        k = config.sampling.k
        self._places = -(-samplers.max_num_seqs // k)  # prompts that fill a sampler's engine
        self._leases = max(1, pool.per_sampler // k)  # prompts that it has at most, those that wait there among them
        self._windows = windows(samplers.patience_s, self._places, phased=phased)
        self._memory = Memory(samplers.patience_s, self._places, config.training.lists_per_step, phased=phased)
        self._place: tuple[str, int] = ("", 0)  # phase and iteration of the looks
        self._first = 0  # optimizer steps before the iteration's
        self._phased = phased
        self._peak = 0  # samplers that were ready at one time
        self._worked = clock()  # when a sampler last had anything to do

    def look(self, status: StreamStatus) -> None:
        """Once at each look of the monitor."""
        pool, now = self._pool, self._clock()
        if pool.active or not pool.ready:
            self._worked = now
        self._peak = max(self._peak, pool.ready)
        self._see(status, now)
        seen = self._seen(now)
        decision = decide(self._limits, seen)
        if not decision.reason or (decision.wanted > seen.size and not pool.may_grow):
            return
        pool.resize(decision.wanted)
        self._clear()  # what comes of it is seen first
        self._worked = now
        self._progress.log("pool", wanted=decision.wanted, reason=decision.reason)
        self._progress.say(f"samplers: {seen.size} -> {decision.wanted}: {decision.reason}")

    def _see(self, status: StreamStatus, now: float) -> None:
        progress = self._progress
        if (progress.phase, progress.iteration) != self._place:
            self._place, self._first = (progress.phase, progress.iteration), progress.step
            self._clear()
            self._memory.pause()
        if progress.phase == SAMPLING and (self._phased or progress.step > self._first):
            totals = Totals(
                trainer_waited=status.consumer_wait_seconds,
                held=status.producer_wait_seconds,
                answered=progress.sampled,
                ranked=progress.ranked,
                step=progress.step,
            )
            at_work = min(len(self._pool.pending), self._pool.ready * self._places)
            look = Look(now, totals, self._pool.ready, at_work, status.waiting)
            for seer in (*self._windows, self._memory):
                seer.add(look)

    def _clear(self) -> None:
        for window in self._windows:
            window.clear()

    def _seen(self, now: float) -> Seen:
        pool, progress, training = self._pool, self._progress, self._training
        sampling = progress.phase == SAMPLING
        iterations = max(0, training.iterations - progress.iteration - 1)
        fast, slow = (window.shares() for window in self._windows)
        return Seen(
            shares=fast,
            slow=slow,
            rates=self._memory.rates(),
            ready=pool.ready,
            coming=pool.coming,
            waiting=progress.total - progress.sampled - len(pool.pending) if sampling else 0,
            later=iterations * training.prompts_per_iteration,
            peak=self._peak,
            leases=self._leases,
            idle_s=now - self._worked,
            start_s=sum(pool.start_seconds) / max(1, len(pool.start_seconds)),
        )
