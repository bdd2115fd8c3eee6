"""Who worked when: what is computed from the spans of a run's actors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

IDLE_KINDS = ("wait", "start", "sleep")  # in which an actor does no work


@dataclass(frozen=True)
class Span:
    """What an actor did from `start` to `end`, in unix seconds."""

    actor: str
    kind: str
    start: float
    end: float


def merged(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The union of intervals, as disjoint ones in order.

    >>> merged([(3, 4), (0, 2), (1, 2.5)])
    [(0, 2.5), (3, 4)]
    """
    union: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end))
        else:
            union.append((start, end))
    return union


def within(spans: Iterable[Span], start: float, end: float) -> list[Span]:
    """What of the spans lies between `start` and `end`.

    >>> within([Span("a", "rank", 0.0, 4.0), Span("a", "rank", 5.0, 6.0)], 1.0, 5.0)
    [Span(actor='a', kind='rank', start=1.0, end=4.0)]
    """
    cut = (Span(span.actor, span.kind, max(span.start, start), min(span.end, end)) for span in spans)
    return [span for span in cut if span.start < span.end]


def busy_shares(spans: Sequence[Span], seconds: float | None = None) -> dict[str, float]:
    """Share of the time in which each actor works, waiting, starting and sleeping excluded.

    Without `seconds`, the time is that in which any actor is at anything, so that a pause between two sessions of a
    run counts for nobody.
    """
    total = _length(spans) if seconds is None else seconds
    by_actor: dict[str, list[Span]] = {span.actor: [] for span in spans}
    for span in working(spans):
        by_actor[span.actor].append(span)
    return {actor: _length(own) / total if total else 0.0 for actor, own in by_actor.items()}


def busy_metrics(spans: Sequence[Span], seconds: float | None = None) -> dict[str, float]:
    """`busy/sampler`, `busy/reward` and `busy/trainer`: means over the actors whose names begin so."""
    shares = busy_shares(spans, seconds)
    means: dict[str, float] = {}
    for group in ("sampler", "reward", "trainer"):
        own = [share for actor, share in shares.items() if actor.startswith(group)]
        if own:
            means[f"busy/{group}"] = sum(own) / len(own)
    return means


def overlap_metrics(spans: Iterable[Span], seconds: float) -> dict[str, float]:
    """`busy/overlap` and `busy/overlap_efficiency` of a time of so many seconds, where both sides have worked in it.

    With G the time in which some sampler or reward actor works, T that in which some trainer rank does, and E that in
    which either does: the efficiency is max(G, T) / seconds, and the overlap (G + T - E) / seconds.
    """
    at_work = working(spans)
    training = [span for span in at_work if span.actor.startswith("trainer")]
    making = [span for span in at_work if span.actor.startswith(("sampler", "reward"))]
    g, t, either = (_length(some) for some in (making, training, [*making, *training]))
    if not (g and t and seconds):
        return {}
    return {"busy/overlap": (g + t - either) / seconds, "busy/overlap_efficiency": max(g, t) / seconds}


def working(spans: Iterable[Span]) -> list[Span]:
    return [span for span in spans if span.kind not in IDLE_KINDS]


def _length(spans: Iterable[Span]) -> float:
    """Seconds of their union."""
    return sum(end - start for start, end in merged((span.start, span.end) for span in spans))
