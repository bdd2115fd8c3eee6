"""Memory and disk that a run will need, by rule of thumb: enough to say whether a machine will do."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from actors.offline_preparation import OfflineRun
from actors.preparation import PreparedRun
from actors.progress import Workload
from larpo.model_folder import tensor_shapes
from larpo.reward_config import Reward
from larpo.rewards import reward_folder

GIB = 2**30
MOMENTS, COPY = 8, 4  # bytes a parameter: AdamW's two moments, and the float32 copy that ZeRO and bfloat16 need
PROCESS = 0.4 * GIB  # of a Ray actor without a model: a verifier, a function, a client of a server
RUNTIME = GIB  # of one with torch and a model, beside its weights
ENGINE = 1.2 * GIB  # of a vLLM engine, beside weights and KV cache


@dataclass(frozen=True)
class Estimates:
    """Bytes, but for the counts of parameters."""

    parameters: int
    trained: int  # all of them, or those of LoRA's adapters
    sampler: float  # one engine: weights, KV cache, runtime
    trainer: float  # one rank at its peak, while it saves: weights, reference, gradients, optimizer and copies
    reward: float  # one reward actor: its models; of a user's own code nothing is known
    checkpoint: float
    disk: float  # the run folder at its fullest


def estimate(run: PreparedRun) -> Estimates:
    config, training = run.config, run.config.training
    shapes = json.loads((Path(run.policy.path) / "config.json").read_text())
    parameters = _parameters(Path(run.policy.path))
    size = _bytes_of(config.policy.dtype)
    shared = {stage: training.workers if training.stage >= stage else 1 for stage in (1, 2, 3)}
    trained = run.adapter_size or parameters
    weights = parameters * size
    on_gpu = config.samplers.resources.get("GPU", 0) > 0
    sets = 1 if on_gpu else 3 if config.weights.beside else 2  # in use, on their way and, beside those in use, loaded
    reference = trained * size  # a second model; with LoRA, a second adapter at most
    models = weights + reference + run.adapter_size * size
    state = trained * (MOMENTS if training.stage == 0 and size == 4 else MOMENTS + COPY)
    logits = 3 * training.chunk_tokens * shapes.get("vocab_size", 0) * 4
    gradients = trained * 4 / shared[2]
    checkpoint = trained * size + state
    kept = config.checkpoints.keep + 1
    policies = 4 + (config.evaluation.best_metric is not None) + -(-Workload(config).snapshots // training.iterations)
    return Estimates(
        parameters=parameters,
        trained=trained,
        sampler=sets * weights + config.samplers.cpu_kv_cache_gib * GIB + ENGINE,
        trainer=models / shared[3] + 2 * gradients + 2 * state / shared[1] + logits + RUNTIME,
        reward=0.0 if isinstance(run, OfflineRun) else reward_bytes(config.reward),
        checkpoint=checkpoint,
        disk=kept * checkpoint + policies * weights + _list_bytes(run),
    )


def reward_bytes(section: Reward) -> float:
    """Bytes of one reward actor, with each model that its section names. A hub model is in the cache by now."""
    return PROCESS + sum(_reward_model_bytes(part) for part in section.sections())


def _reward_model_bytes(section: Reward) -> float:
    folder = reward_folder(section)
    if folder is None:
        return 0.0
    if section.kind == "vllm":
        pooling = section.pooling
        return _parameters(folder) * _bytes_of(pooling.dtype) + pooling.cpu_kv_cache_gib * GIB + ENGINE
    dtype = section.classifier.dtype if section.kind == "sequence_classification" else section.ranker.dtype
    return _parameters(folder) * _bytes_of(dtype) + RUNTIME


def _bytes_of(dtype: str) -> int:
    return 4 if dtype in ("float32", "auto") else 2


def _parameters(folder: Path) -> int:
    """Parameters of a model, from the headers of its weight files."""
    return sum(math.prod(shape) for shape in tensor_shapes(folder).values())


def _list_bytes(run: PreparedRun) -> float:
    """Lists on disk: about eight bytes a token, remembered candidates again in every iteration."""
    config, training, sampling = run.config, run.config.training, run.config.sampling
    if isinstance(run, OfflineRun):
        return 8.0 * sum(item.tokens for item in run.given)
    repeats = {
        "current": 1.0,
        "current_and_previous": 2.0,
        "current_and_all_previous": (training.iterations + 1) / 2,
    }[config.lists.memory]
    responses = training.iterations * training.prompts_per_iteration * sampling.k
    return 8.0 * responses * sampling.max_new_tokens * repeats
