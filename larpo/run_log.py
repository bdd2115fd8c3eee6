"""What `metrics.jsonl` says once rolled-back records are taken out: the input of the report."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larpo.busy import Span
from larpo.errors import DataError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunLog:
    """A run's records by event, in order; `torn` says that the last line was cut off by a kill."""

    records: tuple[Record, ...]
    steps: tuple[Record, ...]
    lists: tuple[Record, ...]
    iterations: tuple[Record, ...]
    evaluations: tuple[Record, ...]
    weights: tuple[Record, ...]
    spans: tuple[Span, ...]
    troubles: tuple[Record, ...]
    done: Record | None
    torn: bool = False

    @property
    def started(self) -> float:
        """Unix seconds of the first record; 0 for an empty log."""
        return min((record["time"] for record in self.records), default=0.0)


def read_run_log(path: Path) -> RunLog:
    """Read a `metrics.jsonl`; a missing file is an empty log, a torn last line is left out and said."""
    if not path.exists():
        return make_run_log(())
    lines = path.read_text(encoding="utf-8").splitlines()
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(line))
        except ValueError as error:
            if number == len(lines):
                return make_run_log(records, torn=True)
            raise DataError(f"{path} line {number} is no JSON record ({error}); remove or mend it") from error
    return make_run_log(records)


def _record(line: str) -> Record:
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("time"), int | float) or "event" not in record:
        raise ValueError(f"no time and event in {line[:80]!r}")
    return record


def make_run_log(records: Sequence[Record], torn: bool = False) -> RunLog:
    """Sort the records by event; what a later record of the same step, part or iteration replaced is out."""
    events: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        events[record["event"]].append(record)
    return RunLog(
        records=tuple(records),
        steps=kept_steps(events["step"]),
        lists=_last_of(events["lists"], "iteration", "part"),
        iterations=_last_of(events["iteration"], "iteration"),
        evaluations=_last_of(kept_evaluations(records), "label"),
        weights=tuple(events["weights"]),
        spans=tuple(Span(str(r["actor"]), str(r["kind"]), float(r["start"]), float(r["end"])) for r in events["span"]),
        troubles=tuple(r for r in records if r["event"] in ("alarm", "failure")),
        done=events["done"][-1] if events["done"] else None,
        torn=torn,
    )


def kept_steps(steps: Iterable[Record]) -> tuple[Record, ...]:
    """The lineage that survives: a step takes back every earlier record of its number or a higher one."""
    kept: list[Record] = []
    for record in steps:
        while kept and kept[-1]["step"] >= record["step"]:
            kept.pop()
        kept.append(record)
    return tuple(kept)


def kept_evaluations(records: Iterable[Record]) -> tuple[Record, ...]:
    """The evaluations, without those of snapshots whose step was taken back: a step came that was there before."""
    kept: list[Record] = []
    newest = 0
    for record in records:
        if record["event"] == "evaluation":
            kept.append(record)
        elif record["event"] == "step":
            if record["step"] <= newest:
                kept = [found for found in kept if (found.get("step") or 0) < record["step"]]
            newest = record["step"]
    return tuple(kept)


def _last_of(records: Iterable[Record], *fields: str) -> tuple[Record, ...]:
    """One record a key, the last, in order of first appearance; a record without a key field stands alone."""
    kept: dict[object, Record] = {}
    for index, record in enumerate(records):
        whole = all(field in record for field in fields)
        kept[tuple(record[field] for field in fields) if whole else ("alone", index)] = record
    return tuple(kept.values())


def series(records: Iterable[Record], name: str, x: str) -> tuple[list[float], list[float]]:
    """The points (record[x], record[name]) of the records that hold a number for both."""
    points = [(r[x], r[name]) for r in records if r.get(x) is not None and r.get(name) is not None]
    return [float(left) for left, _ in points], [float(right) for _, right in points]
