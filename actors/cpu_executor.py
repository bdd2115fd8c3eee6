"""vLLM's executor for an engine on CPU cores that spans no others: its worker lives in the engine's own process.

On a CPU vLLM always gives the worker a process of its own, because OpenMP's binding to cores is read from the
environment when a process starts, and the engine's process spins on a shared buffer while the worker computes: on the
core beside the worker's, which is the trainer's. Both start, and hold their imports. Here the threads are bound by the
process's affinity, which they inherit.
"""

from __future__ import annotations

import os

import torch
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class OwnProcessExecutor(UniProcExecutor):
    """One worker in this process, its threads on the cores that `VLLM_CPU_OMP_THREADS_BIND` names."""

    def _init_executor(self) -> None:
        bind(OMPProcessManager(self.vllm_config).cpu_lists)
        super()._init_executor()


def bind(cores_of_workers: list[list[int]]) -> None:
    """This thread, and those that it starts, to the cores of the one worker; `nobind` has named none."""
    if cores_of_workers:
        (cores,) = cores_of_workers
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))
