"""The plan of a run, for `--dry-run`: actors and what they ask for, counts, and estimates of memory and disk."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from actors.placement import needed_resources
from actors.preparation import PreparedRun
from larpo.comparisons import passes
from larpo.config import Config
from larpo.recipe import config_to_yaml

GIB = 2**30
BYTES_AN_ADAMW_PARAMETER = 12  # float32 master copy and two moments


@dataclass(frozen=True)
class Estimates:
    """Bytes, by rule of thumb: what a person needs to know whether a machine will do."""

    parameters: int
    sampler: float  # one engine: weights, KV cache, runtime
    trainer: float  # one rank at its peak, while it saves: weights, reference, gradients, optimizer and copies
    checkpoint: float
    disk: float  # the run folder at its fullest


def estimate(run: PreparedRun) -> Estimates:
    config, training = run.config, run.config.training
    shapes = json.loads((Path(run.policy.path) / "config.json").read_text())
    parameters = _parameters(Path(run.policy.path), config)
    size = 2 if config.policy.dtype == "bfloat16" else 4
    shared = {stage: training.workers if training.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    weights = parameters * size
    state = parameters * BYTES_AN_ADAMW_PARAMETER
    logits = 3 * training.chunk_tokens * shapes.get("vocab_size", 0) * 4
    gradients = parameters * 4 / shared[2]
    trainer = 2 * weights / shared[3] + 2 * gradients + 2 * state / shared[1] + logits + GIB
    checkpoint = weights + state
    kept = config.checkpoints.keep + 1
    return Estimates(
        parameters=parameters,
        sampler=weights + config.samplers.cpu_kv_cache_gib * GIB + 1.2 * GIB,
        trainer=trainer,
        checkpoint=checkpoint,
        disk=kept * checkpoint + 4 * weights + _list_bytes(config),
    )


def _parameters(folder: Path, config: Config) -> int:
    """Parameters of the policy, from the headers of its weight files."""
    from safetensors import safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def _list_bytes(config: Config) -> float:
    """Lists on disk: about eight bytes a token, remembered candidates again in every iteration."""
    training, sampling = config.training, config.sampling
    repeats = {
        "current": 1.0,
        "current_and_previous": 2.0,
        "current_and_all_previous": (training.iterations + 1) / 2,
    }[config.lists.memory]
    responses = training.iterations * training.prompts_per_iteration * sampling.k
    return 8.0 * responses * sampling.max_new_tokens * repeats


def describe(run: PreparedRun) -> str:
    """The resolved configuration and the plan as text."""
    config, training, numbers = run.config, run.config.training, estimate(run)
    steps = math.ceil(training.prompts_per_iteration / training.lists_per_step) * training.epochs
    responses = training.prompts_per_iteration * config.sampling.k
    needs = ", ".join(f"{amount:g} {name}" for name, amount in sorted(needed_resources(config).items()))
    lines = [
        config_to_yaml(config).rstrip(),
        "",
        f"plan of {run.name}" + (f": {config.description}" if config.description else ""),
        f"  policy        {run.policy.path} ({numbers.parameters / 1e6:.0f}M parameters)",
        f"  prompts       {len(run.train)} training, {len(run.heldout)} held out",
        *(f"                {note}" for note in run.notes),
        f"  samplers      {config.samplers.count} x {_asks(config.samplers.resources)}, about"
        f" {numbers.sampler / GIB:.1f} GiB each",
        f"  trainer       {training.workers} x {_asks(training.resources_per_worker)}, ZeRO stage"
        f" {training.zero_stage}, about {numbers.trainer / GIB:.1f} GiB each",
        f"  reward        {config.reward.replicas} x {config.reward.kind} {config.reward.source}{_passes(config)}",
        "  others        list stream, weight store (no CPU reserved)",
        f"  cluster       {needs} in all",
        f"  iterations    {training.iterations}, each {training.prompts_per_iteration} prompts x {config.sampling.k}"
        f" responses = {responses} responses of at most {config.sampling.max_new_tokens} tokens",
        f"  steps         at most {steps} an iteration of {training.lists_per_step} lists, before lists without"
        " signal are dropped and remembered ones replayed",
        f"  disk          about {numbers.disk / GIB:.1f} GiB in {run.folder} (a checkpoint is"
        f" {numbers.checkpoint / GIB:.1f} GiB, {config.checkpoints.keep} are kept)",
        f"  overlap       {config.overlap}",
    ]
    return "\n".join(lines)


def _passes(config: Config) -> str:
    """What a pairwise ranker costs, empty for other rewards."""
    rankers = [section.ranker for section in config.reward.sections() if section.kind == "pairwise"]
    counts = [passes(config.sampling.k, ranker.comparisons) for ranker in rankers]
    return f", {sum(counts)} passes of the ranker a list of {config.sampling.k}" if counts else ""


def _asks(resources: dict[str, float]) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"
