"""What flows through a run: every few seconds one record of the whole, and one of each sampler.

Rates and busy shares are of the last minute, as a dashboard shows them. The spans behind the shares are those of the
report's timeline, before they are joined; of the trainer, which tells a step when it is over, the step in progress
is known from its silence.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any

from actors.members import Member
from actors.progress import Progress
from actors.sampler import SamplerStats
from actors.work import StreamStatus
from larpo.busy import Span, busy_metrics, busy_shares, within

TELL_S = 10.0  # Ray's own metrics are as coarse
TELL_EACH_S = 0.1  # more for each sampler: hundreds of them are told less often
WINDOW_S = 60.0
NOUNS = ("prompts", "samples", "tokens")
POOL_COUNTS = ("restarts", "requeued", "handed_back")


class Flow:
    """Takes what is seen of stream, samplers and spans, and tells it when it is time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._began = self._told = time.time()
        self._newest: dict[str, SamplerStats] = {}
        self._counted: dict[str, Counter[str]] = {}  # by sampler, since the start
        self._logged: dict[str, float] = {}  # of what is counted, what earlier records hold
        self._history: deque[tuple[float, dict[str, Counter[str]]]] = deque([(self._told, {})])
        self._spans: deque[Span] = deque()
        self._gone: list[Member] = []  # left the pool since the last records

    @property
    def tokens(self) -> int:
        """Response tokens of all samplers so far."""
        return sum(counts["tokens"] for counts in self._counted.values())

    def take(self, sampler: str, stats: SamplerStats) -> None:
        """What a sampler says that it did; one that took another's place counts from zero."""
        before, counts = self._newest.get(sampler), self._counted.setdefault(sampler, Counter())
        if before is None or any(getattr(stats, noun) < getattr(before, noun) for noun in NOUNS):
            before = None
        for noun in NOUNS:
            counts[noun] += getattr(stats, noun) - (getattr(before, noun) if before else 0)
        self._newest[sampler] = stats

    def left(self, member: Member) -> None:
        """A sampler has left: who comes in its place counts from zero, and what it did is told once more."""
        if self._newest.pop(member.name, None) is not None:
            self._gone.append(member)

    def span(self, actor: str, kind: str, start: float, end: float) -> None:
        self._spans.append(Span(actor, kind, start, end))
        self._progress.span(actor, kind, start, end)

    def tell(self, status: StreamStatus, pool: Any | None, *, last: bool = False) -> None:
        """Log the records, if it is time; `pool` is None where nothing is sampled."""
        now, members = time.time(), [] if pool is None else pool.members
        if not last and now - self._told < TELL_S + TELL_EACH_S * len(members):
            return
        seconds = min(WINDOW_S, max(1e-3, now - self._began))
        spans = self._recent(status, now - seconds, now)
        shares = busy_shares(spans, seconds)
        rates = self._rates(now)
        for member in members:
            self._tell_sampler(member, rates.get(member.name, {}), shares.get(member.name, 0.0))
        here = {member.name for member in members}
        for member in {member.name: member for member in self._gone if member.name not in here}.values():
            self._tell_sampler(member, {}, 0.0)  # or its last rates would stand for ever
        self._gone = []
        numbers = {
            **self._stream(status),
            **self._progress.place(),
            **busy_metrics(spans, seconds),
            **({} if pool is None else self._pool(pool, rates)),
        }
        self._progress.log("flow", numbers, iteration=self._progress.iteration)
        self._history.append((now, {name: counts.copy() for name, counts in self._counted.items()}))
        self._told = now

    def _recent(self, status: StreamStatus, start: float, end: float) -> list[Span]:
        """Spans of the window, with the trainer's step in progress."""
        while self._spans and self._spans[0].end <= start:
            self._spans.popleft()
        ranks = {span.actor for span in self._spans if span.actor.startswith("trainer")} or {"trainer-0"}
        training = status.trainer_started and status.trained_iterations < self._progress.iterations
        since = end - (status.trainer_silent_s if training else 0.0)
        at_work = [Span(rank, "train", since, end) for rank in ranks]
        return within([*self._spans, *at_work], start, end)

    def _rates(self, now: float) -> dict[str, dict[str, float]]:
        """By sampler: what it did a second over the window."""
        while len(self._history) > 1 and self._history[1][0] <= now - WINDOW_S:
            self._history.popleft()
        then, before = self._history[0]
        seconds = max(1e-3, now - then)
        return {
            name: {noun: (counts[noun] - before.get(name, Counter())[noun]) / seconds for noun in NOUNS}
            for name, counts in self._counted.items()
        }

    def _tell_sampler(self, member: Member, rates: dict[str, float], share: float) -> None:
        name, stats = member.name, self._newest.get(member.name)
        counts = self._counted.get(name, Counter())
        numbers = {f"sampler/{noun}": self._new(f"{name}/{noun}", counts[noun]) for noun in NOUNS}
        numbers |= {f"sampler/{noun}_per_second": rates.get(noun, 0.0) for noun in NOUNS}
        numbers |= {
            "sampler/in_flight": float(stats.in_flight) if stats else 0.0,
            "sampler/weight_version": float(member.version),
            "sampler/busy": share,
            "sampler/places_filled": stats.places_filled if stats else 0.0,
            "sampler/first_token_seconds": stats.first_token_seconds if stats else 0.0,
        }
        self._progress.log("sampler", numbers, sampler=name)

    def _stream(self, status: StreamStatus) -> dict[str, float]:
        waits = {
            "stream/producer_wait_seconds": status.producer_wait_seconds,
            "stream/consumer_wait_seconds": status.consumer_wait_seconds,
        }
        return {
            "stream/lists": float(status.waiting),
            **{name: self._new(name, value) for name, value in waits.items()},
        }

    def _pool(self, pool: Any, rates: dict[str, dict[str, float]]) -> dict[str, float]:
        return {
            **{f"pool/{noun}_per_second": sum(each[noun] for each in rates.values()) for noun in NOUNS},
            "pool/samplers": float(sum(member.ready.is_set() for member in pool.members)),
            "pool/wanted": float(pool.wanted),
            "pool/pending": float(pool.coming),
            **{f"pool/{what}": self._new(f"pool/{what}", getattr(pool, what)) for what in POOL_COUNTS},
        }

    def _new(self, name: str, total: float) -> float:
        """What a total has grown by since the record before; one that fell began anew."""
        before, self._logged[name] = self._logged.get(name, 0.0), float(total)
        return float(total - before if total >= before else total)
