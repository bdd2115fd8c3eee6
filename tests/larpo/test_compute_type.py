"""The type that a policy is computed in, where a recipe leaves it to the machine."""

import pytest
import torch

from larpo.compute_type import settled
from larpo.recipe import load_config


def dtype_of(*overrides: str) -> str:
    return settled(load_config("quickstart", overrides)).policy.dtype


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [("AVX512", "bfloat16"), ("AVX512_BF16", "bfloat16"), ("AVX2", "float32"), ("DEFAULT", "float32")],
)
def test_a_cpu_without_fast_bfloat16_computes_in_float32(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert dtype_of() == dtype


@pytest.mark.parametrize(
    "knob", ["samplers.resources={GPU: 1}", "training.resources_per_worker={GPU: 1}", "cluster={GPU: 8}"]
)
def test_a_recipe_for_gpus_computes_in_bfloat16_wherever_it_is_started(monkeypatch, knob):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert dtype_of(knob) == "bfloat16"
    assert dtype_of(knob.replace("1}", "0}").replace("8}", "0}")) == "float32"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_type_that_is_given_stays(dtype):
    assert dtype_of(f"policy.dtype={dtype}", "cluster={GPU: 8}") == dtype


@pytest.mark.parametrize(
    ("overrides", "stage"),
    [
        (["policy.dtype=float32"], 0),
        (["policy.dtype=bfloat16"], 1),
        (["policy.dtype=bfloat16", "training.resources_per_worker={GPU: 1}"], 2),
        (["policy.dtype=bfloat16", "training.workers=2"], 2),
        (["policy.dtype=float32", "training.workers=2"], 2),
        (["policy.dtype=float32", "training.zero_stage=3"], 3),
    ],
)
def test_a_lone_worker_divides_nothing(overrides, stage):
    assert settled(load_config("quickstart", overrides)).training.stage == stage
