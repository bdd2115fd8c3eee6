"""What every benchmark has in common: sides, repetitions, medians and spread, and a result that names its machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from larpo.errors import LarpoError

Value = TypeVar("Value")

SIDE_LIMIT_S = 7200.0  # one side of a benchmark in its own process


class BenchmarkError(LarpoError):
    """A side of a benchmark that did not come to its end, or sides that did not do the same work."""


@dataclass(frozen=True)
class Series:
    """What one side measured, one number a repetition."""

    label: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def spread(self) -> str:
        """The smallest and the largest."""
        return f"{min(self.values):.4g} to {max(self.values):.4g}"


@dataclass(frozen=True)
class Comparison:
    """One row of the table: `ratio` is the median of ours over the median of the other."""

    what: str
    unit: str
    ours: Series
    other: Series
    target: str = ""  # such as ">= 9"

    @property
    def ratio(self) -> float:
        return self.ours.median / self.other.median

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if not self.target:
            return None
        sign, bound = self.target.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


@dataclass(frozen=True)
class Result:
    """A benchmark's outcome, as it lies in `benchmarks/NAME.json`."""

    name: str
    settings: Mapping[str, Any]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        rows = [
            asdict(row) | {"ratio": round(row.ratio, 4), "met": row.met, "ours_median": row.ours.median}
            for row in self.comparisons
        ]
        fields = {"name": self.name, "machine": machine(), "commit": commit(), "settings": dict(self.settings)}
        return json.dumps(fields | {"comparisons": rows, "notes": list(self.notes)}, indent=1)


TABLE_HEADER = ("compared", "larpo", "other side", "ratio", "target")


def table(result: Result) -> list[tuple[str, ...]]:
    return [table_row(row) for row in result.comparisons]


def table_row(row: Comparison) -> tuple[str, ...]:
    """Medians with the smallest and the largest, by the columns of TABLE_HEADER."""
    mark = {True: " (met)", False: " (missed)", None: ""}[row.met]
    ours, other = (f"{side.median:.4g} {row.unit} ({side.spread})" for side in (row.ours, row.other))
    return row.what, ours, f"{row.other.label}: {other}", f"{row.ratio:.3g}", row.target + mark


def in_turns(sides: Mapping[str, Callable[[], float]], repetitions: int, warm_ups: int = 1) -> dict[str, Series]:
    """Each side's numbers, taken by turns so that what the machine does meanwhile meets all alike."""
    found: dict[str, list[float]] = {label: [] for label in sides}
    for repetition in range(warm_ups + repetitions):
        for label, side in sides.items():
            value = side()
            if repetition >= warm_ups:
                found[label].append(value)
    return {label: Series(label, tuple(values)) for label, values in found.items()}


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rates(label: str, durations: Sequence[float], amount: float = 1.0) -> Series:
    return Series(label, tuple(amount / duration for duration in durations))


def in_own_process(side: Callable[[Mapping[str, Any]], Any], settings: Mapping[str, Any]) -> Any:
    """What `side(settings)` returns in a fresh process, so that its memory and its threads are its own.

    Raises BenchmarkError with what the side raised, or when it takes longer than two hours.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(side, dict(settings), sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(SIDE_LIMIT_S):
            raise BenchmarkError(f"{side.__name__} took longer than {SIDE_LIMIT_S:g} s; ask for less work")
        kind, value = receiver.recv()
    except EOFError as error:
        process.join(10)
        raise BenchmarkError(f"{side.__name__} ended with exit code {process.exitcode} and no result") from error
    finally:
        process.join(30)
        process.kill()
    if kind == "error":
        raise BenchmarkError(f"{side.__name__} failed: {value}")
    return value


def _report(side: Callable[[Mapping[str, Any]], Any], settings: Mapping[str, Any], sender: Any) -> None:
    import traceback

    try:
        sender.send(("value", side(settings)))
    except BaseException:
        sender.send(("error", traceback.format_exc()))


def peak_memory_gib() -> float:
    """The most that this process has held at one time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_beyond_gib(work: Callable[[], Value]) -> tuple[float, Value]:
    """The most that this process held during `work` beyond what it held before, and what `work` returns.

    Raises BenchmarkError where the system does not set the high-water mark back (other than Linux).
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM becomes what is resident now
    except OSError as error:
        raise BenchmarkError(f"this system keeps no high-water mark of memory that can be set back: {error}") from error
    before = _resident_kib("VmHWM")
    value = work()
    return (_resident_kib("VmHWM") - before) / 2**20, value


def _resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def machine() -> str:
    """Processor, cores and memory, and the GPU where there is one, without a host's name."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    has_amx = any("amx_bf16" in line.split() for line in lines if line.startswith("flags"))  # matrices of bfloat16
    kind = torch.backends.cpu.get_cpu_capability() + ", AMX" * has_amx
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cores} x {(names or [platform.machine()])[0]} ({kind}), {memory:.0f} GiB{gpu}"


def commit() -> str:
    """Of this checkout, marked where its code has changed since; results of benchmarks are no code."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks")
    return git("describe", "--always") + "-dirty" * bool(changed)
