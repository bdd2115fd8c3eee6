"""What a recipe leaves to the machine: the type that a policy is computed in, and the ZeRO stage."""

from __future__ import annotations

from typing import Literal

from larpo.config import Config


def settled(config: Config) -> Config:
    """The configuration with a type and a stage where there was none: what is written with a run, and kept by it.

    Type: a recipe that asks for GPUs gets bfloat16. On CPUs this machine speaks for all: without AVX-512 a product of
    bfloat16 matrices is made number by number, five and more times slower than in float32.
    Stage: one worker in float32 has nothing to divide, and without ZeRO no flat copy of its weights: 0. In bfloat16
    that would sum a step's gradients in bfloat16, and stage 2 copies them about in each pass: on CPUs 1, which adds
    them up where they are. Else 2.
    """
    dtype: Literal["auto", "bfloat16", "float32"] = config.policy.dtype
    if dtype == "auto":
        dtype = "bfloat16" if _asks_for_gpus(config) or _has_avx512() else "float32"
    training = config.training
    if training.zero_stage is None:
        alone = training.workers == training.least == 1
        stays_on_cpu = not (_asks_for_gpus(config) or config.samplers.sleep)
        of_one = 0 if dtype == "float32" else 1 if stays_on_cpu else 2
        training = training.model_copy(update={"zero_stage": of_one if alone else 2})
    return config.model_copy(update={"policy": config.policy.model_copy(update={"dtype": dtype}), "training": training})


def _asks_for_gpus(config: Config) -> bool:
    asked = (config.cluster, config.samplers.resources, config.training.resources_per_worker)
    return any(resources.get("GPU", 0) > 0 for resources in asked)


def _has_avx512() -> bool:
    import torch

    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
