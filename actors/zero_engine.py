"""A model under DeepSpeed ZeRO: backward passes, checked steps, checkpoints, and what ranks agree on.

What it needs is Ray Train's process group; what a step computes is its caller's.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from actors.checkpoints import unwritten
from actors.idle_cores import IdleCores, idle_cores_here
from actors.published import PublishedFolder
from actors.resharding import TAG, is_for_others, reshard_once
from actors.sharding import master_weights, put_weights, start_deepspeed, zero_config
from larpo.config import Optimizer
from larpo.errors import CheckpointError
from larpo.lora import drop_frozen_from_state, has_lora
from larpo.rounding import spread_in_cells_
from larpo.types import stable_hash

Number = TypeVar("Number", int, float)
_WRITERS = ("PytorchStreamWriter", "inline_container")  # in what torch says of a file that it could not write


class ZeroEngine:
    """One rank's share of a model and its AdamW; `seed` is of the places within rounding cells."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        optimizer: Optimizer,
        dtype: str,
        zero_stage: int,
        ranks: int,
        seed: int = 0,
        idle_cores: IdleCores | None = None,
    ) -> None:
        self._dtype, self._stage, self._ranks, self._lora = dtype, zero_stage, ranks, has_lora(model)
        self._clip_norm, self._idle_cores = optimizer.clip_norm, idle_cores
        if self._lora:
            drop_frozen_from_state(model)
        self.device = next(model.parameters()).device
        self._engine = start_deepspeed(
            model=model,
            optimizer=torch.optim.AdamW(
                [parameter for parameter in model.parameters() if parameter.requires_grad],
                lr=optimizer.learning_rate,
                betas=optimizer.betas,
                eps=optimizer.eps,
                weight_decay=optimizer.weight_decay,
                # One pass without temporaries: ZeRO's partition is one tensor, whose copies would be as large as it.
                # Not on GPUs: there its count of steps lies beside the weights, and checkpoints bring it on the CPU.
                fused=True if self.device.type == "cpu" else None,
            ),
            config=zero_config(dtype=dtype, stage=zero_stage, clip_norm=optimizer.clip_norm, ranks=ranks),
        )
        is_whole = zero_stage == 0 or hasattr(self._engine.optimizer, "fp32_groups_gradients_flat")  # ZeRO 1, bfloat16
        self.device = next(self._engine.module.parameters()).device  # which DeepSpeed takes by the local rank
        if ranks == 1 and is_whole:  # DeepSpeed would copy all gradients to add them up with nobody's
            self._engine.enable_backward_allreduce = False
        self._away: list[Tensor] = []  # what `leave` moved, without ZeRO
        if hasattr(self._engine.optimizer, "check_grad_overflow"):
            self._engine.optimizer.check_grad_overflow = True  # in float32 too: a bad step is skipped, never applied
        if hasattr(self._engine.optimizer, "refresh_fp32_params"):  # without ZeRO, bfloat16 weights got a step of
            self._engine.optimizer.state.clear()  # zeros: AdamW would count it, and has decayed the weights
            self._engine.optimizer.refresh_fp32_params()
        if dtype == "bfloat16":  # else rounding loses what a step does to most weights
            part = torch.distributed.get_rank() if zero_stage else 0  # without ZeRO all ranks have all weights
            for number, weights in enumerate(master_weights(self._engine.optimizer)):
                spread_in_cells_(weights.data, seed=stable_hash(seed, part, number))

    @property
    def model(self) -> Any:
        return self._engine.module

    def forward(self, **inputs: Tensor) -> Any:
        self.use_idle_cores()
        return self._engine(**{name: tensor.to(self.device) for name, tensor in inputs.items()})

    def use_idle_cores(self) -> None:
        """Before a pass: with as many threads as there is room for."""
        if self._idle_cores is not None and (threads := self._idle_cores.threads()) != torch.get_num_threads():
            torch.set_num_threads(threads)

    def set_rate(self, rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: Tensor, last: bool) -> None:
        """A loss that is not finite gets a gradient that is not, so that `apply` skips the step on every rank."""
        finite = torch.where(loss.detach().isfinite(), 1.0, float("nan"))
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * finite)

    def apply(self) -> tuple[float, bool]:
        """Take the optimizer step unless a gradient is not finite; returns (gradient norm, whether it was taken).

        DeepSpeed's own check skips a step whose gradients are not finite, on every rank; plain float32 has none, and is
        clipped here, where one pass over the gradients has told their norm.
        """
        if self._stage > 0 or self._dtype == "bfloat16":
            self._engine.step()
            norm = self._engine.get_global_grad_norm()
            return float(norm if norm is not None else float("nan")), bool(self._engine.was_step_applied())
        with_gradient = [p for p in self.model.parameters() if p.grad is not None]
        total = torch.nn.utils.get_total_norm([p.grad for p in with_gradient])
        norm = float(total)
        if not math.isfinite(norm):
            self._engine.zero_grad()
            return norm, False
        if norm > self._clip_norm:
            torch.nn.utils.clip_grads_with_norm_(with_gradient, self._clip_norm, total)
        self._engine.step()
        return norm, True

    def write(self, folder: Path, *, bucket_mib: int, rank: int, base: str, version: int = 0) -> None:
        """Gather the weights in buckets, every rank entering each gather; rank 0 writes them to `folder`.

        Adapters are merged into what is written, and lie beside it on their own; the model stays as it is.
        """
        try:
            target = PublishedFolder(folder, version) if rank == 0 else None
            put_weights(self.model, target, stage=self._stage, dtype=self._dtype, bucket_mib=bucket_mib, base=base)
            if target is not None:
                target.close()
        except OSError as error:
            raise CheckpointError(
                f"could not write the weights {folder}: {error}; free disk space, then resume"
            ) from error
        self.barrier()

    def save(self, folder: Path) -> None:
        """Every rank writes its part of the optimizer and model state; with adapters, no frozen weight."""
        if torch.distributed.get_rank() == 0 or os.environ.get("LOCAL_RANK") == "0":
            shutil.rmtree(folder / TAG, ignore_errors=True)  # a save that was cut off, by other ranks maybe
        self.barrier()
        try:
            (folder / TAG).mkdir(parents=True, exist_ok=True)  # DeepSpeed makes it where rank 0 is
            with _without_crc32():
                self._engine.save_checkpoint(
                    str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=self._lora
                )
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError) or any(name in str(error) for name in _WRITERS):
                raise CheckpointError(unwritten(folder, error)) from error
            raise  # of a collective, whose other ranks may be gone: that a new start can mend

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, by however many ranks; every rank calls it."""
        if not is_for_others(folder, self._ranks):
            return self._load(folder)
        rank = torch.distributed.get_rank()
        resharded = reshard_once(folder, rank, self.barrier)
        self._engine._config.load_universal_checkpoint = True  # DeepSpeed takes it from its configuration alone
        self._load(resharded)
        self._engine._config.load_universal_checkpoint = False
        self.barrier()
        if rank == 0 or os.environ.get("LOCAL_RANK") == "0":
            shutil.rmtree(resharded, ignore_errors=True)

    def _load(self, folder: Path) -> None:
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=not self._lora)
        if loaded is None:
            raise CheckpointError(f"DeepSpeed found nothing to load in {folder}; remove it to use the one before")

    def leave(self) -> None:
        """Move weights and optimizer state to the CPU's memory: between steps, the GPU's is free for others."""
        if self._stage > 0:
            self._engine.offload_states(pin_memory=False)
        self._away = [tensor for tensor in self._own_tensors() if tensor.device == self.device]
        for tensor in self._away:
            tensor.data = tensor.data.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def come_back(self) -> None:
        """The same, back again."""
        for tensor in self._away:
            tensor.data = tensor.data.to(self.device)
        if self._stage > 0:
            self._engine.reload_states()

    def _own_tensors(self) -> Iterator[Tensor]:
        """What DeepSpeed does not move: without ZeRO everything, else what is not trained."""
        module, optimizer = self._engine.module, self._engine.optimizer
        yield from module.buffers()
        yield from (weight for weight in module.parameters() if self._stage == 0 or not weight.requires_grad)
        if self._stage == 0:
            yield from (weight for group in getattr(optimizer, "fp32_groups", ()) for weight in group)
            states = (getattr(optimizer, "optimizer", optimizer)).state.values()
            yield from (value for state in states for value in state.values() if isinstance(value, Tensor))

    def barrier(self) -> None:
        torch.distributed.barrier()

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Each number, added up over all ranks."""
        return self._reduced(numbers, torch.distributed.ReduceOp.SUM)

    def maximum(self, numbers: Sequence[Number]) -> list[Number]:
        """The largest of each number over all ranks."""
        found = self._reduced(numbers, torch.distributed.ReduceOp.MAX)
        return [type(number)(value) for number, value in zip(numbers, found, strict=True)]

    def _reduced(self, numbers: Sequence[float], operation: Any) -> list[float]:
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(values, op=operation)
        return values.tolist()

    def memory_gib(self) -> float:
        """Peak memory of this rank."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def _without_crc32() -> Iterator[None]:
    """Files that a manifest will have better checksums of; torch's own would take most of the time to write them."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def gather(value: Any) -> list[Any]:
    """What every rank of the group passed, by rank; small, picklable."""
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def place_worker(threads: int, memory_share: float = 1.0) -> tuple[torch.device, IdleCores | None]:
    """The device that Ray Train gave this worker; on a CPU, `threads` torch threads, or with 0 the idle cores to watch.

    Of a GPU torch takes at most `memory_share`: the rest belongs to others, and Ray does not guard it.
    """
    from ray.train.torch import get_device

    device = get_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        if not threads:
            return device, idle_cores_here()
        torch.set_num_threads(threads)
    elif memory_share < 1:
        torch.cuda.set_per_process_memory_fraction(memory_share, device)
    return device, None
