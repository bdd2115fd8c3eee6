"""The type that a policy is computed in, where a recipe leaves it to the machine (`policy.dtype: auto`)."""

from __future__ import annotations

from typing import Literal

from larpo.config import Config


def settled(config: Config) -> Config:
    """The configuration with a type in the place of `auto`: what is written with a run, and kept when it resumes.

    A recipe that asks for GPUs gets bfloat16. On CPUs this machine speaks for all: without AVX-512 a product of
    bfloat16 matrices is made number by number, five and more times slower than in float32.
    """
    if config.policy.dtype != "auto":
        return config
    dtype: Literal["bfloat16", "float32"] = "bfloat16" if _asks_for_gpus(config) or _has_avx512() else "float32"
    return config.model_copy(update={"policy": config.policy.model_copy(update={"dtype": dtype})})


def _asks_for_gpus(config: Config) -> bool:
    asked = (config.cluster, config.samplers.resources, config.training.resources_per_worker)
    return any(resources.get("GPU", 0) > 0 for resources in asked)


def _has_avx512() -> bool:
    import torch

    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
