"""A run as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing: who did what when, what waited, and troubles.

It is made from the spans that the report's busy shares are computed from. The format is the "Trace Event Format" of
Chrome's tracing: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from larpo.metrics import METRICS
from larpo.plots import actor_order
from larpo.run_log import Record, RunLog

TIMELINE_FILE = "timeline.json"
_GROUPS = ("samplers", "reward", "trainer", "others")  # in the order of `actor_order`; each is a process of the trace
_RUN = len(_GROUPS) + 1  # the process of counters and marks
_COUNTERS = ("stream/lists", "pool/tokens_per_second", "pool/samplers", "run/step")

Event = dict[str, Any]


def write_timeline(run_dir: Path, log: RunLog) -> Path:
    """Write `run_dir/timeline.json`, whole or not at all, and return its path."""
    path = run_dir / TIMELINE_FILE
    hidden = path.with_name(f".{TIMELINE_FILE}.{os.getpid()}.tmp")
    with hidden.open("w", encoding="utf-8") as file:
        json.dump({"traceEvents": trace_events(log), "displayTimeUnit": "ms"}, file, allow_nan=False)
    os.replace(hidden, path)
    return path


def trace_events(log: RunLog) -> list[Event]:
    """Names of rows, a span of each thing done, counters over time, marks of iterations, alarms and failures."""
    return [*_rows(log), *_spans(log), *_counters(log), *_marks(log)]


def _microseconds(log: RunLog, time: float) -> int:
    """Since the first record."""
    return round((time - log.started) * 1e6)


def _lanes(log: RunLog) -> list[int]:
    """The row of its actor that each span goes to: what overlaps another is beside it, for a row has to nest."""
    lanes = [0] * len(log.spans)
    ends: dict[str, list[int]] = {}  # of the last span in each row of an actor
    for number in sorted(range(len(lanes)), key=lambda each: log.spans[each].start):
        span = log.spans[number]
        start, end = _microseconds(log, span.start), _microseconds(log, span.end)
        own = ends.setdefault(span.actor, [])
        lane = next((lane for lane, before in enumerate(own) if before <= start), len(own))
        own[lane : lane + 1] = [end]
        lanes[number] = lane
    return lanes


def _places(log: RunLog) -> dict[tuple[str, int], tuple[int, int]]:
    """Process and thread of each row of an actor: its group, counted from 1, and its place among all rows."""
    rows = sorted(
        {(span.actor, lane) for span, lane in zip(log.spans, _lanes(log), strict=True)},
        key=lambda row: (actor_order(row[0]), row[1]),
    )
    return {row: (1 + actor_order(row[0])[0], 1 + number) for number, row in enumerate(rows)}


def _rows(log: RunLog) -> Iterator[Event]:
    places = _places(log)
    for group in sorted({group for group, _ in places.values()}):
        yield _named("process_name", group, 0, name=_GROUPS[group - 1])
        yield _named("process_sort_index", group, 0, sort_index=group)
    for (actor, lane), (group, row) in places.items():
        yield _named("thread_name", group, row, name=f"{actor}, meanwhile {lane}" if lane else actor)
        yield _named("thread_sort_index", group, row, sort_index=row)
    yield _named("process_name", _RUN, 0, name="run")
    yield _named("process_sort_index", _RUN, 0, sort_index=0)


def _named(what: str, pid: int, tid: int, **value: str | int) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": value}


def _spans(log: RunLog) -> Iterator[Event]:
    places = _places(log)
    for span, lane in zip(log.spans, _lanes(log), strict=True):
        (pid, tid), start = places[span.actor, lane], _microseconds(log, span.start)
        length = max(0, _microseconds(log, span.end) - start)
        yield {"ph": "X", "name": span.kind, "cat": span.kind, "pid": pid, "tid": tid, "ts": start, "dur": length}


def _counters(log: RunLog) -> Iterator[Event]:
    for record in log.records:
        for name in _COUNTERS:
            if record.get(name) is not None:
                unit = METRICS[name].unit
                yield {"ph": "C", "name": name, "pid": _RUN, "ts": _at(log, record), "args": {unit: record[name]}}


def _marks(log: RunLog) -> Iterator[Event]:
    for record in (*log.iterations, *log.troubles):
        said = {"iteration": f"end of iteration {record.get('iteration', 0) + 1}"}
        said |= {"alarm": str(record.get("message")), "failure": f"{record.get('actor')}: {record.get('reason')}"}
        mark = {"ph": "i", "s": "g", "cat": record["event"], "name": said[record["event"]]}
        yield {**mark, "pid": _RUN, "tid": 0, "ts": _at(log, record)}


def _at(log: RunLog, record: Record) -> int:
    return _microseconds(log, record["time"])
