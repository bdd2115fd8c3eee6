"""What DeepSpeed is told, and how the parameters that its ZeRO stage 3 keeps in pieces are put together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from actors.published import PublishedFolder, encode_bucket, split_into_buckets
from larpo.config import Config
from larpo.lora import BaseWeight, adapter_files, adapter_parameters, base_weights, has_lora

REDUCED_TOGETHER = 5 * 10**7  # gradients in one message, and in the buffer for it; DeepSpeed's own is ten times that


def start_deepspeed(**arguments: Any) -> Any:
    """DeepSpeed's engine around a model, in Ray Train's process group: the one place that starts DeepSpeed.

    On CPUs DeepSpeed would first compile a C++ extension of collectives in shared memory, which takes minutes and a
    compiler. Torch's gloo does all that is needed, so that extension is told to be one that this machine cannot have.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(**arguments, dist_init_required=False)
    return engine


def deepspeed_config(config: Config, ranks: int) -> dict[str, Any]:
    """What DeepSpeed is told: one list a pass, the step's boundary set by hand, gradients summed in float32.

    Without ZeRO it can sum the gradients of bfloat16 weights in bfloat16 only.
    """
    training = config.training
    return zero_config(
        dtype=config.policy.dtype,
        stage=training.stage,
        clip_norm=training.optimizer.clip_norm,
        ranks=ranks,
    )


def zero_config(*, dtype: str, stage: int, clip_norm: float, ranks: int) -> dict[str, Any]:
    """The same from single numbers, for whatever is trained."""
    summed_in = "bf16" if dtype == "bfloat16" and stage == 0 else "fp32"
    clipped_here = dtype == "float32" and stage == 0  # by ZeroEngine, which knows the norm already
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": ranks,
        "gradient_clipping": 0.0 if clipped_here else clip_norm,
        "zero_optimization": {"stage": stage, **({"reduce_bucket_size": REDUCED_TOGETHER} if stage else {})},
        "bf16": {"enabled": dtype == "bfloat16", "immediate_grad_update": True},  # ZeRO 1: no gradient is kept twice
        "data_types": {"grad_accum_dtype": summed_in},
        "steps_per_print": 10**9,
    }


def gathered(parameters: list, config: Config, modifier_rank: int | None = None) -> Any:
    """A context in which the parameters are whole on every rank; all ranks enter it together.

    What `modifier_rank` writes there is what all ranks have afterwards.
    """
    return gathered_at(parameters, config.training.stage, modifier_rank)


def gathered_at(parameters: list, stage: int, modifier_rank: int | None = None) -> Any:
    """`gathered` for a ZeRO stage."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=modifier_rank, enabled=stage == 3)


def master_weights(optimizer: Any) -> list[Tensor]:
    """This rank's part of the float32 weights that the steps are added to where the model is in bfloat16."""
    if hasattr(optimizer, "fp32_groups"):  # without ZeRO: parameter by parameter
        return [weight for group in optimizer.fp32_groups for weight in group]
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition")
    return list(getattr(optimizer, next(name for name in names if hasattr(optimizer, name))))


def full_numel(parameter: Any) -> int:
    """Elements of a parameter that may lie in pieces."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def put_weights(
    model: Any, target: PublishedFolder | None, *, stage: int, dtype: str, bucket_mib: int, base: str
) -> None:
    """The model's weights, gathered bucket by bucket, into the rank's `target`, if it has one; all ranks call it.

    A bucket is written while the next one is gathered. Adapters are merged in, and lie beside the buckets as peft's own
    files, in which `base` names the base model.
    """
    weights, kind = base_weights(model), getattr(torch, dtype)
    with ThreadPoolExecutor(1) as writer:
        written: Future[None] = writer.submit(lambda: None)
        for fixed, names in _buckets(weights, kind.itemsize, bucket_mib * 2**20):
            with gathered_at([part for name in names for part in weights[name].parts], stage):
                if target is not None:
                    data = encode_bucket({n: weights[n].merged().to("cpu", kind, copy=False) for n in names})
                    written.result()  # so that two buckets at most are in memory
                    written = writer.submit(target.add, data, fixed)
        written.result()
    if not has_lora(model):
        return
    with gathered_at(list(adapter_parameters(model).values()), stage):
        if target is not None:
            for name, data in adapter_files(model, base).items():
                target.put_beside(name, data)


def _buckets(weights: Mapping[str, BaseWeight], itemsize: int, limit: int) -> Iterator[tuple[bool, list[str]]]:
    """Names of parameters, bucket by bucket: first of the blocks in which something is trained, then the fixed ones."""
    trained = {block_of(name) for name, weight in weights.items() if weight.is_trained}
    for fixed in (False, True):
        there = {name: weight for name, weight in weights.items() if (block_of(name) not in trained) == fixed}
        sizes = {name: full_numel(weight.parameter) * itemsize for name, weight in there.items()}
        for names in split_into_buckets(sizes, limit):
            yield fixed, names


def block_of(name: str) -> str:
    """The part of a model that an engine may keep in one layer, by a parameter of it.

    vLLM joins projections of one attention, of one feed-forward network and of its experts.

    >>> block_of("model.layers.3.self_attn.q_proj.weight"), block_of("model.layers.3.mlp.experts.0.up_proj.weight")
    ('model.layers.3.self_attn', 'model.layers.3.mlp')
    >>> block_of("model.embed_tokens.weight")
    'model.embed_tokens'
    """
    found = re.match(r".*?\.\d+\.[^.]+", name)
    return found[0] if found else name.rpartition(".")[0]
