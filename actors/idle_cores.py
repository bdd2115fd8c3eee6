"""Cores of a node that stand idle, for the one worker that trains there on CPUs.

Where samplers and trainer share a node, each has cores of its own, and the samplers' stand idle once an iteration's
prompts are answered. What others leave idle is measured, not agreed on: whoever works there (samplers, a reward model,
another user), the worker takes what is left, and pass by pass makes room again for what others get.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_LOOK_S = 1.0  # over less, the ticks of the kernel's clock (0.01 s) would show
_SMALL_WORK = 0.4  # of a core, such as the processes of Ray and of idle actors need, beside which it counts as idle


@dataclass(frozen=True)
class Reading:
    """When (seconds), and the CPU-seconds until then of all processes of the node, and of this one."""

    at: float
    all_busy: float
    own_busy: float


def reading() -> Reading:
    """Of this moment."""
    import psutil

    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq
    return Reading(time.monotonic(), busy, time.process_time())


class IdleCores:
    """How many threads a process may compute with: its own, and one for each of the node's cores that is idle."""

    def __init__(self, own: int, cores: int, read: Callable[[], Reading] = reading) -> None:
        self._own, self._cores, self._read = own, cores, read
        self._threads, self._newest = own, read()

    def threads(self) -> int:
        """By what other processes used since the last call that came a second after the one before."""
        now, before = self._read(), self._newest
        seconds = now.at - before.at
        if seconds >= _LOOK_S:
            others = (now.all_busy - before.all_busy - (now.own_busy - before.own_busy)) / seconds
            idle = math.floor(self._cores - others + _SMALL_WORK)
            self._threads, self._newest = max(self._own, min(self._cores, idle)), now
        return self._threads


def idle_cores_here() -> IdleCores | None:
    """Those of this Ray Train worker's node; None where other workers train beside it.

    It has no more cores than Ray counts, this process may run on, and its container may use; where others than the
    container's processes use the node's, there are fewer idle ones for it than there would be.
    """
    import ray
    import ray.train
    import torch

    if ray.train.get_context().get_local_world_size() > 1:
        return None
    here = ray.get_runtime_context().get_node_id()
    counted = next(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["NodeID"] == here)
    return IdleCores(torch.get_num_threads(), min(counted, len(os.sched_getaffinity(0)), quota()))


def quota(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole cores that this container may use at a time, by version 2 or 1 of Linux's cgroups; all without a limit."""
    try:
        allowed, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            allowed, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return os.cpu_count() or 1
    cores = float("inf") if allowed.strip() in ("max", "-1") else int(allowed) / int(period)
    return max(1, int(min(cores, os.cpu_count() or 1)))
