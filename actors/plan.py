"""The plan of a run, for `--dry-run`: actors and what they ask for, counts, and estimates of memory and disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.offline_preparation import OfflineRun
from actors.placement import needed_resources
from actors.placement_plan import asks, placement_lines
from actors.preparation import PreparedRun
from actors.progress import Workload
from larpo.comparisons import passes
from larpo.config import Config
from larpo.recipe import config_to_yaml

GIB = 2**30
MOMENTS, COPY = 8, 4  # bytes a parameter: AdamW's two moments, and the float32 copy that ZeRO and bfloat16 need


@dataclass(frozen=True)
class Estimates:
    """Bytes, by rule of thumb: what a person needs to know whether a machine will do."""

    parameters: int
    trained: int  # all of them, or those of LoRA's adapters
    sampler: float  # one engine: weights, KV cache, runtime
    trainer: float  # one rank at its peak, while it saves: weights, reference, gradients, optimizer and copies
    checkpoint: float
    disk: float  # the run folder at its fullest


def estimate(run: PreparedRun) -> Estimates:
    config, training = run.config, run.config.training
    shapes = json.loads((Path(run.policy.path) / "config.json").read_text())
    parameters = _parameters(Path(run.policy.path), config)
    size = 2 if config.policy.dtype == "bfloat16" else 4
    shared = {stage: training.workers if training.stage >= stage else 1 for stage in (1, 2, 3)}
    trained = run.adapter_size or parameters
    weights = parameters * size
    reference = trained * size  # a second model; with LoRA, a second adapter at most
    models = weights + reference + run.adapter_size * size
    state = trained * (MOMENTS if training.stage == 0 and size == 4 else MOMENTS + COPY)
    logits = 3 * training.chunk_tokens * shapes.get("vocab_size", 0) * 4
    gradients = trained * 4 / shared[2]
    trainer = models / shared[3] + 2 * gradients + 2 * state / shared[1] + logits + GIB
    checkpoint = trained * size + state
    kept = config.checkpoints.keep + 1
    policies = 4 + (config.evaluation.best_metric is not None) + -(-Workload(config).snapshots // training.iterations)
    return Estimates(
        parameters=parameters,
        trained=trained,
        sampler=weights + config.samplers.cpu_kv_cache_gib * GIB + 1.2 * GIB,
        trainer=trainer,
        checkpoint=checkpoint,
        disk=kept * checkpoint + policies * weights + _list_bytes(run),
    )


def _parameters(folder: Path, config: Config) -> int:
    """Parameters of the policy, from the headers of its weight files."""
    from safetensors import safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


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


def describe(run: PreparedRun) -> str:
    """The resolved configuration and the plan as text."""
    config, training, numbers = run.config, run.config.training, estimate(run)
    lines = [
        *_head(config, run.name),
        f"  policy        {run.policy.path} ({numbers.parameters / 1e6:.0f}M parameters)",
        *_lora(run, numbers),
        f"  prompts       {len(run.train)} training, {len(run.heldout)} held out",
        *(f"                {note}" for note in run.notes),
        f"  samplers      {_samplers(config)}, about {numbers.sampler / GIB:.1f} GiB each",
        f"  trainer       {training.workers} x {asks(training.resources_per_worker)}, ZeRO stage"
        f" {training.stage}, about {numbers.trainer / GIB:.1f} GiB each",
        f"  reward        {config.reward.replicas} x {config.reward.kind} {config.reward.source}{_passes(config)}",
        "  others        list stream, weight store (no CPU reserved)",
        *placement_lines(config),
        *_counts(config),
        *_evaluation(run),
        f"  disk          about {numbers.disk / GIB:.1f} GiB in {run.home.location} (a checkpoint is"
        f" {numbers.checkpoint / GIB:.1f} GiB, {config.checkpoints.keep} are kept)",
        f"  overlap       {config.overlap}{_staleness(config)}",
    ]
    return "\n".join(lines)


def _staleness(config: Config) -> str:
    """What overlap: async adds."""
    if config.overlap != "async":
        return ""
    weights = config.weights
    return f": weights every {weights.every_steps} steps (max_staleness: {config.max_staleness}; {weights.on_update})"


def _evaluation(run: PreparedRun) -> list[str]:
    """What held-out evaluation costs."""
    settings, work, prompts = run.config.evaluation, Workload(run.config), len(run.heldout)
    if not prompts:
        return []
    responses = work.evaluations * prompts * (settings.samples + 1)
    lines = [
        f"  evaluation    at most {work.evaluations} times, {work.snapshots} of them within iterations, each {prompts}"
        f" prompts x ({settings.samples} samples + 1 greedy) = {responses} responses in all"
    ]
    if settings.best_metric is not None:
        patience = "" if settings.patience is None else f"; ends after {settings.patience} without a gain"
        lines.append(f"                the policy with the best {settings.best_metric} is kept{patience}")
    return lines


def _passes(config: Config) -> str:
    """What a pairwise ranker costs, empty for other rewards."""
    rankers = [section.ranker for section in config.reward.sections() if section.kind == "pairwise"]
    counts = [passes(config.sampling.k, ranker.comparisons) for ranker in rankers]
    return f", {sum(counts)} passes of the ranker a list of {config.sampling.k}" if counts else ""


def _lora(run: PreparedRun, numbers: Estimates) -> list[str]:
    lora = run.config.policy.lora
    layers, share = ", ".join(lora.target_modules), numbers.trained / numbers.parameters
    line = (
        f"  LoRA          rank {lora.rank} on {layers}: {numbers.trained / 1e6:.2f}M trained parameters ({share:.1%})"
    )
    return [line] if run.adapter_size else []


def describe_offline(run: OfflineRun) -> str:
    """The resolved configuration and the plan of a run on a dataset as text."""
    config, training, numbers = run.config, run.config.training, estimate(run)
    steps = math.ceil(len(run.given) / training.lists_per_step) * training.epochs
    tokens = sum(item.tokens for item in run.given)
    answers = sum(len(item.response_token_ids) for item in run.given)
    lines = [
        *_head(config, run.name),
        f"  policy        {run.policy.path} ({numbers.parameters / 1e6:.0f}M parameters)",
        *_lora(run, numbers),
        f"  lists         {len(run.given)} training with {answers} answers, {tokens} tokens in packed rows;"
        f" {len(run.given_heldout)} held out",
        *(f"                {note}" for note in run.notes),
        f"  objective     {config.objective.name}",
        f"  trainer       {training.workers} x {asks(training.resources_per_worker)}, ZeRO stage"
        f" {training.stage}, about {numbers.trainer / GIB:.1f} GiB each; no sampler, no reward model",
        f"  steps         at most {steps} of {training.lists_per_step} lists, {training.epochs} epochs",
        f"  disk          about {numbers.disk / GIB:.1f} GiB in {run.home.location} (a checkpoint is"
        f" {numbers.checkpoint / GIB:.1f} GiB, {config.checkpoints.keep} are kept)",
    ]
    return "\n".join(lines)


def outline(config: Config, name: str, missing: Sequence[str]) -> str:
    """What is known of a plan while the hub cannot be asked: no counts of prompts, no estimates."""
    training, given = config.training, config.preferences.source
    lines = [
        *_head(config, name),
        f"  policy        {config.policy.model}",
        f"  prompts       {given or config.prompts.source}",
        f"  trainer       {training.workers} x {asks(training.resources_per_worker)}, ZeRO stage {training.stage}",
    ]
    if given is None:
        lines += [
            f"  samplers      {_samplers(config)}",
            f"  reward        {config.reward.replicas} x {config.reward.kind} {config.reward.source}",
            *_counts(config),
        ]
    return "\n".join([*lines, *(f"  not checked   {line}" for line in missing)])


def _head(config: Config, name: str) -> list[str]:
    about = f": {config.description}" if config.description else ""
    return [config_to_yaml(config).rstrip(), "", f"plan of {name}{about}"]


def _counts(config: Config) -> list[str]:
    """Lines that the configuration alone gives."""
    training = config.training
    steps = math.ceil(training.prompts_per_iteration / training.lists_per_step) * training.epochs
    responses = training.prompts_per_iteration * config.sampling.k
    meant = f", of {_sorted(config.cluster)} that the recipe is meant for" if config.cluster else ""
    return [
        f"  cluster       {_needs(config)}{meant}",
        f"  iterations    {training.iterations}, each {training.prompts_per_iteration} prompts x {config.sampling.k}"
        f" responses = {responses} responses of at most {config.sampling.max_new_tokens} tokens",
        f"  steps         at most {steps} an iteration of {training.lists_per_step} lists, before lists without"
        " signal are dropped and remembered ones replayed",
    ]


def _needs(config: Config) -> str:
    """What all actors ask for; with an elastic pool, what must be there and what may be taken."""
    least = _sorted(needed_resources(config))
    if not config.samplers.is_elastic:
        return f"{least} in all"
    return f"{least} at least, {_sorted(needed_resources(config, config.samplers.most))} with all samplers"


def _samplers(config: Config) -> str:
    """The pool: its size, and the range of an elastic one."""
    samplers = config.samplers
    size = f"{samplers.count} x {asks(samplers.resources)}"
    return f"{size}, from {samplers.least} to {samplers.most}" if samplers.is_elastic else size


def _sorted(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()))
