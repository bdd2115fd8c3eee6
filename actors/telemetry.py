"""One place through which everything that a run tells goes: file, console, wandb and the Ray dashboard.

`metrics.jsonl` is the record: one strict JSON object a line, `{"time", "event", fields..., metrics...}`,
written through at once, so that a killed process loses no line. The other sinks are views of it, and wandb
may not end a run.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

import larpo
from actors.console import RunState, make_console
from actors.telemetry_sinks import RaySink, WandbSink
from larpo.config import Run, Timeouts
from larpo.config import Telemetry as TelemetrySection
from larpo.errors import DataError, LarpoError, StorageError
from larpo.events import check_event, failure_kind
from larpo.masking import redact, redact_all
from larpo.metrics import check_labels, check_names
from larpo.report import report_parts

METRICS_FILE = "metrics.jsonl"
_COUNTED = {"alarm": {"run/alarms": 1.0}, "failure": {"run/failures": 1.0}}


class Told(Protocol):
    """What telemetry reads of a configuration, whatever stage it is of."""

    @property
    def run(self) -> Run: ...

    @property
    def telemetry(self) -> TelemetrySection: ...

    @property
    def timeouts(self) -> Timeouts: ...

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


class Telemetry:
    """The telemetry of one run, living in the driver; safe to call from several threads."""

    def __init__(self, config: Told, run_dir: Path, *, resume: bool, stream: TextIO | None = None) -> None:
        self._lock = threading.RLock()
        self._path = run_dir / METRICS_FILE
        self._index = _prepare(self._path, resume)
        self._file = self._path.open("a", encoding="utf-8")
        self._console = make_console(config.telemetry, stream)
        self._ray = RaySink(config.run.name or run_dir.name)
        self._wandb: WandbSink | None = None
        self._closed = False
        self.log("start", resumed=resume, version=larpo.__version__)
        if config.telemetry.wandb:
            self._try_wandb("start", lambda: self._open_wandb(config, run_dir))

    def log(self, event: str, metrics: Mapping[str, float] | None = None, **fields: Any) -> None:
        """Append one record and send its metrics on; alarms and failures are said in the console too.

        A number that is not finite becomes null: the line stays strict JSON, and a column stays numeric.
        """
        metrics = {**(metrics or {}), **_COUNTED.get(event, {})}
        if event == "failure":
            fields.setdefault("kind", failure_kind(str(fields.get("actor")), str(fields.get("reason"))))
        check_names(metrics)
        check_event(event, fields)
        check_labels(metrics, fields)
        taken = {"time", "event", *metrics} & fields.keys()
        if taken:
            raise LarpoError(f"field {min(taken)!r} of event {event!r} is taken by the record; rename it")
        numbers = {name: plain_number(value) for name, value in metrics.items()}
        record = {"time": time.time(), "event": event, **_plain(redact_all(fields)), **numbers}
        with self._lock:
            self._write(record)
            self._send(event, fields, {name: value for name, value in numbers.items() if value is not None})
        if event == "alarm":
            self.say(f"alarm: {fields['message']}")
        if event == "failure":
            self.say(f"failure of {fields['actor']}: {fields['reason']}")

    def seconds(self) -> float:
        """Since the run's first record, whichever session wrote it."""
        with self._path.open(encoding="utf-8") as file:
            return time.time() - float(json.loads(file.readline())["time"])

    def update(self, state: RunState) -> None:
        """Show the state in the console; nothing is written."""
        self._console.update(state)

    def say(self, line: str) -> None:
        """Print a line: above the live view, or into the plain log."""
        self._console.say(redact(line))

    def close(self) -> None:
        """End the live view, wandb and the file; may be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._close_wandb()
            finally:
                self._console.close()
                with suppress(OSError):  # what could not be written has been told
                    self._file.close()

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"{self._path} could not be written: {error}; free disk space, then resume") from error
        self._index += 1

    def _send(self, event: str, fields: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        if not numbers:
            return
        with suppress(Exception):  # a view of the run, as wandb is; Ray itself is missed elsewhere
            self._ray.log(numbers, fields)
        if self._wandb is not None and event != "sampler":  # there may be hundreds: wandb gets what they do together
            axes = {key: fields[key] for key in ("step", "iteration", "epoch") if key in fields}
            sink, index = self._wandb, self._index
            self._try_wandb("log", lambda: sink.log(index, {**axes, **numbers}))

    def _open_wandb(self, config: Told, run_dir: Path) -> None:
        self._wandb = WandbSink(config, run_dir)
        if self._wandb.mode == "offline":
            self.say(f"wandb is offline (no key): `wandb sync {run_dir / 'wandb'}/offline-run-*` uploads it")

    def _close_wandb(self) -> None:
        """A failure is only said: the last record of a run that is done stays its "done"."""
        sink = self._wandb
        if sink is None:
            return
        steps: dict[str, Callable[[], None]] = {
            "show the report": lambda: sink.show(self._index, *report_parts(self._path.parent)),
            "finish": sink.close,
        }
        for what, step in steps.items():
            try:
                step()
            except Exception as error:
                self.say(f"alarm: wandb failed to {what} ({type(error).__name__}: {error})")

    def _try_wandb(self, what: str, call: Callable[[], None]) -> None:
        """wandb is a view of the run: whatever it raises is reported once, and the run goes on without it."""
        try:
            call()
        except Exception as error:
            self._wandb = None
            reason = f"{type(error).__name__}: {error}"
            self.log("alarm", message=f"wandb failed to {what} ({reason}); the run goes on without wandb")


def plain_number(value: Any) -> int | float | None:
    """A Python number from a Python, numpy or torch scalar; None when it is not finite."""
    if isinstance(value, Integral):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    """Fields as strict JSON: floats that are not finite become null, scalars of libraries plain numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    return plain_number(value)


def _prepare(path: Path, resume: bool) -> int:
    """Lines that the file holds, after cutting off one that a kill tore; refuses the file of another run."""
    if not path.exists():
        return 0
    if not resume:
        raise DataError(f"{path} already exists; resume that run with --resume, or choose another run.name")
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return data.count(b"\n")
