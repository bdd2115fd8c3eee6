"""Cores of a node that stand idle, for the one worker that trains there on CPUs.

Where samplers and trainer share a node, each has cores of its own, and the samplers' stand idle once an iteration's
prompts are answered. What others leave idle is measured, not agreed on: whoever works there (samplers, a reward model,
another user), the worker takes what is left and makes room again within a pass or two.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

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
    busy = times.user + times.nice + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0)
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
    """Those of this Ray Train worker's node, as many as Ray counts there; None where other workers train beside it."""
    import ray
    import ray.train
    import torch

    if ray.train.get_context().get_local_world_size() > 1:
        return None
    here = ray.get_runtime_context().get_node_id()
    counted = next(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["NodeID"] == here)
    return IdleCores(torch.get_num_threads(), min(counted, len(os.sched_getaffinity(0))))
