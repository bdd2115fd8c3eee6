"""The plan of a run in words, for `--dry-run`: actors and what they ask for, counts, and what `sizes` estimates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from actors.offline_preparation import OfflineRun
from actors.placement import needed_resources
from actors.placement_plan import asks, placement_lines
from actors.preparation import PreparedRun
from actors.progress import Workload
from actors.sizes import GIB, Estimates, estimate
from larpo.comparisons import passes
from larpo.config import Config
from larpo.recipe import config_to_yaml


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
        f"  reward        {config.reward.replicas} x {config.reward.kind} {config.reward.source}{_passes(config)},"
        f" about {numbers.reward / GIB:.1f} GiB each",
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
