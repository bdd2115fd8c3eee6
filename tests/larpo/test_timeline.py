"""The trace of a run: what Chrome's format demands, and the same busy shares as the report's."""

import json

import pytest

from larpo.busy import Span, busy_shares
from larpo.run_log import make_run_log
from larpo.timeline import trace_events, write_timeline

T0 = 1_790_000_000.0
SPANS = (
    Span("sampler-10", "sample", T0 + 1, T0 + 9),
    Span("sampler-2", "start", T0, T0 + 4),
    Span("sampler-2", "sample", T0 + 4, T0 + 8),
    Span("reward-0", "rank", T0 + 3, T0 + 3.5),
    Span("trainer-0", "wait", T0 + 1, T0 + 5),
    Span("trainer-0", "train", T0 + 5, T0 + 10),
)


@pytest.fixture
def log():
    told = [
        {"event": "start", "resumed": False},
        *({"event": "span", **vars(span)} for span in SPANS),
        {"event": "flow", "iteration": 0, "stream/lists": 3.0, "pool/tokens_per_second": 250.5, "run/step": None},
        {"event": "failure", "actor": "sampler-2", "kind": "sampler", "reason": 'killed by "signal 9"'},
        {"event": "alarm", "message": "gap 0.2 above 0.1"},
        {"event": "iteration", "iteration": 0},
    ]
    return make_run_log([{"time": T0 + place, **record} for place, record in enumerate(told)])


def test_every_event_has_what_the_format_demands(log, tmp_path):
    path = write_timeline(tmp_path, log)
    trace = json.loads(path.read_text())
    assert [file.name for file in tmp_path.iterdir()] == ["timeline.json"]
    needed = {"X": {"ts", "dur", "tid"}, "M": {"args", "tid"}, "C": {"ts", "args"}, "i": {"ts", "s", "tid"}}
    for event in trace["traceEvents"]:
        assert {"ph", "name", "pid"} | needed[event["ph"]] <= set(event)
        assert all(isinstance(event[key], int) for key in ("pid", "tid", "ts", "dur") if key in event)
        assert all(event[key] >= 0 for key in ("ts", "dur") if key in event)
    named = {(e["pid"], e["tid"]) for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in trace["traceEvents"] if e["ph"] == "X"} == named


def test_rows_are_actors_in_order_and_groups_are_processes(log):
    events = trace_events(log)
    rows = {e["tid"]: (e["pid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"}
    assert rows == {1: (1, "sampler-2"), 2: (1, "sampler-10"), 3: (2, "reward-0"), 4: (3, "trainer-0")}
    groups = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert groups == {1: "samplers", 2: "reward", 3: "trainer", 5: "run"}


def test_the_trace_holds_the_spans_of_the_reports_busy_shares(log):
    events = trace_events(log)
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    drawn = [
        Span(names[e["tid"]], e["name"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6) for e in events if e["ph"] == "X"
    ]
    assert busy_shares(drawn) == pytest.approx(busy_shares(log.spans))
    assert drawn[-1] == Span("trainer-0", "train", 5.0, 10.0)


def test_what_overlaps_is_drawn_beside_it():
    """An engine takes new weights while it samples: rows that do not nest are drawn wrongly."""
    spans = (("sample", 0, 10), ("update", 8, 12), ("sample", 10, 20), ("wait", 11, 13))
    told = [{"time": T0, "event": "start", "resumed": False}] + [
        {"time": T0 + end, "event": "span", "actor": "sampler-0", "kind": kind, "start": T0 + start, "end": T0 + end}
        for kind, start, end in spans
    ]
    events = trace_events(make_run_log(told))
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    drawn = [(names[e["tid"]], e["name"], e["ts"] // 10**6) for e in events if e["ph"] == "X"]
    assert drawn == [
        ("sampler-0", "sample", 0),
        ("sampler-0, meanwhile 1", "update", 8),
        ("sampler-0", "sample", 10),
        ("sampler-0, meanwhile 2", "wait", 11),
    ]


def test_counters_and_marks_stand_where_they_were_told(log):
    events = trace_events(log)
    counters = {e["name"]: (e["ts"], e["args"]) for e in events if e["ph"] == "C"}
    assert counters == {
        "stream/lists": (7_000_000, {"lists": 3.0}),
        "pool/tokens_per_second": (7_000_000, {"tokens/s": 250.5}),
    }
    assert sorted((e["ts"], e["cat"], e["name"]) for e in events if e["ph"] == "i") == [
        (8_000_000, "failure", 'sampler-2: killed by "signal 9"'),
        (9_000_000, "alarm", "gap 0.2 above 0.1"),
        (10_000_000, "iteration", "end of iteration 1"),
    ]


def test_a_run_without_records_has_an_empty_trace(tmp_path):
    events = json.loads(write_timeline(tmp_path, make_run_log([])).read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M"}
