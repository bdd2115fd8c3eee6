"""Our weight-transfer backend inside vLLM's workers.

vLLM's own backends need GPUs. This one takes each bucket as a safetensors file in shared memory, because an engine's
worker is a process of its own that cannot resolve Ray object references. vLLM imports `WeightTransferExtension` in
every worker before it makes the transfer engine (`worker_extension_cls`), so no installed entry point is needed and a
bare `ray job submit --working-dir` finds it.

A partial update leaves layers out: they keep the weights that they have. Either all of a layer's tensors come, or none.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
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
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.engine import BACKEND


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

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        """Unlike the base class, does not need an accelerator to wait for."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: BucketFile) -> None:
        _unsaid.is_on = update_info.partial
        with safe_open(update_info.path, framework="pt", device="cpu") as bucket:
            load: Callable = self.model.load_weights  # type: ignore[assignment]
            load((name, bucket.get_tensor(name)) for name in bucket.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        pack_tied_heads(self.model)

    def shutdown(self) -> None:
        pass


def pack_tied_heads(model: torch.nn.Module) -> None:
    """An output head tied to the embedding loads nothing itself, but CPU kernels hold a packed copy: pack it anew."""
    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    embeddings = {id(layer.weight) for layer in layers if not isinstance(layer, ParallelLMHead)}
    for layer in layers:
        if isinstance(layer, ParallelLMHead) and id(layer.weight) in embeddings:
            layer.quant_method.process_weights_after_loading(layer)


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

    def larpo_die_with(self, actor: int) -> None:
        die_with(actor)
