"""Our weight-transfer backend inside vLLM's workers.

vLLM's own backends need GPUs. This one takes each bucket as a safetensors file in shared memory, because an engine's
worker is a process of its own that cannot resolve Ray object references. vLLM imports `WeightTransferExtension` in
every worker before it makes the transfer engine (`worker_extension_cls`), so no installed entry point is needed and a
bare `ray job submit --working-dir` finds it.

A partial update leaves layers out: they keep the weights that they have. Either all of a layer's tensors come, or none.
An update is prepared beside generation where the model can have a twin (`weight_twin`), and loaded in place elsewhere.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import psutil
import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.engine import BACKEND
from actors.weight_twin import Twin, can_have_twin, tied_heads
from larpo.errors import CheckpointError


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class BucketFile(WeightTransferUpdateInfo):
    """One bucket: a safetensors file of checkpoint-format names, on this node."""

    path: str
    partial: bool = False  # the update leaves layers out, which keep the weights that they have


class SharedFileWeightEngine(WeightTransferEngine[NoInitInfo, BucketFile]):
    """Loads buckets from mapped files; layers are repacked as their last tensor arrives (CPU kernels need that)."""

    init_info_cls = NoInitInfo
    update_info_cls = BucketFile
    backend = BACKEND
    _twin: Future[Twin] | None = None  # loaded, or being so

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        on_linux = sys.platform == "linux"  # on any core: the engine's own are at work
        anywhere = (os.sched_setaffinity, (0, os.sched_getaffinity(os.getppid()))) if on_linux else ()
        self._beside = ThreadPoolExecutor(1, "larpo-weights", *anywhere)

    def prepare(self, paths: Sequence[str]) -> bool:
        """Begin to load a twin of the model beside it; False where the model must be loaded in place."""
        is_possible = can_have_twin(self.model)
        self._twin = self._beside.submit(self._loaded_twin, paths) if is_possible else None
        return is_possible

    def is_prepared(self) -> bool | str:
        """Or what went wrong; the model is then what it was. An error raised here would leave the answers of other
        workers of the engine with the next question."""
        if self._twin is None or not self._twin.done():
            return False
        if error := self._twin.exception():
            self._twin = None
            return str(error)
        return True

    @torch.no_grad()
    def _loaded_twin(self, paths: Sequence[str]) -> Twin:
        twin = Twin(self.model)
        try:
            for path in paths:
                twin.load(tensors_of(path))
            twin.close()
        except Exception as error:
            twin.release()
            raise CheckpointError(f"new weights could not be loaded, at {twin.newest}: {error!r}") from error
        return twin

    def start_weight_update(self) -> None:
        if self._twin is None:
            initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        """Unlike the base class, does not need an accelerator to wait for."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: BucketFile) -> None:
        _unsaid.is_on = update_info.partial
        self.model.load_weights(tensors_of(update_info.path))  # type: ignore[operator]

    def finish_weight_update(self) -> None:
        if self._twin is not None:
            twin, self._twin = self._twin.result(), None
            twin.take_place(self.model_config)
            self._beside.submit(twin.release)
            return
        finalize_layerwise_reload(self.model, self.model_config)
        for head, _ in tied_heads(self.model):  # they load nothing themselves, but CPU kernels hold a packed copy
            head.quant_method.process_weights_after_loading(head)  # type: ignore[union-attr, operator]

    def shutdown(self) -> None:
        pass


def tensors_of(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt", device="cpu") as bucket:
        for name in bucket.keys():  # noqa: SIM118
            yield name, bucket.get_tensor(name)


def die_with(actor: int) -> None:
    """End the engine's processes when the actor of that pid is gone, however it went.

    Called in a worker, which is the engine's own process or a child of it. Linux ends it with its parent; where that is
    the engine's process, which nothing would end, a thread looks whether its parent is still the actor.
    """
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    engine = os.getppid()
    if engine != actor:
        threading.Thread(target=_end_orphan, args=(engine, actor), name="larpo-orphan", daemon=True).start()


def _end_orphan(engine: int, actor: int) -> None:
    while psutil.Process(engine).ppid() == actor:
        time.sleep(1.0)
    os.kill(engine, signal.SIGKILL)


def register() -> None:
    """Make the backend known to vLLM in this process; repeating it changes nothing."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, SharedFileWeightEngine)


class _LeftOut(logging.Filter):
    """vLLM warns of each layer that an update leaves out; here nobody is to wonder about those of a partial one."""

    is_on = False

    def filter(self, record: logging.LogRecord) -> bool:
        return not (self.is_on and "Failed to load weights" in str(record.msg))


register()
_unsaid = _LeftOut()
logging.getLogger(finalize_layerwise_reload.__module__).addFilter(_unsaid)


class WeightTransferExtension:
    """Mixed into vLLM's worker; importing this module has registered the backend."""

    weight_transfer_engine: SharedFileWeightEngine

    def larpo_die_with(self, actor: int) -> None:
        die_with(actor)

    def larpo_prepare_weights(self, paths: list[str]) -> bool:
        return self.weight_transfer_engine.prepare(paths)

    def larpo_weights_are_prepared(self) -> bool | str:
        return self.weight_transfer_engine.is_prepared()
