"""The run that the doctor is asked about: its recipe, whether its inputs can be had from here, and its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actors import placement
from actors.access import MODEL_KINDS, check_access, hub_items
from actors.capacity import Bundle
from actors.checks import Line, fail, ok, warn
from actors.preparation import PreparedRun, new_run, prepare
from actors.sizes import Estimates, estimate
from larpo.config import Config
from larpo.errors import ConfigError, LarpoError
from larpo.reward_training_config import RewardTraining
from larpo.safety_checks import code_notes


@dataclass(frozen=True)
class Plan:
    """What is known of the run that may follow."""

    config: Config | RewardTraining
    folder: Path
    sizes: Estimates | None = None  # None while its inputs cannot be had, and for a reward model's training

    @property
    def bundles(self) -> list[Bundle]:
        return placement.needed_bundles(self.config)

    @property
    def samples(self) -> bool:
        return isinstance(self.config, Config) and self.config.preferences.source is None

    @property
    def model(self) -> str:
        """Id or folder of the model that is trained."""
        return self.config.policy.model if isinstance(self.config, Config) else self.config.base.model

    @property
    def models(self) -> tuple[str, ...]:
        """Id or folder of every model that actors load."""
        rewards = self.config.reward.sections() if isinstance(self.config, Config) and self.samples else ()
        return (self.model, *(part.source for part in rewards if part.kind in MODEL_KINDS))

    @property
    def weights(self) -> float:
        """Bytes of one weight version; 0 when not known."""
        if self.sizes is None or not isinstance(self.config, Config):
            return 0.0
        return self.sizes.parameters * (2.0 if self.config.policy.dtype == "bfloat16" else 4.0)

    @property
    def bucket(self) -> float:
        """Bytes of a bucket of weights; 0 where no weights go to samplers."""
        return self.config.weights.bucket_mib * 2.0**20 if isinstance(self.config, Config) else 0.0


def actor_sizes(plan: Plan, *, on_gpus: bool) -> dict[str, tuple[int, float]]:
    """{actor: (how many, bytes of each)} of the actors that are on GPUs, or of the others.

    Of an engine that spans several GPUs, each counts for its part; of those that take turns on one, the larger.
    """
    config, sizes = plan.config, plan.sizes
    if sizes is None:
        return {}
    found = {"trainer worker": (_workers(config), sizes.trainer, config.training.resources_per_worker)}
    if isinstance(config, Config) and plan.samples:
        samplers, span = config.samplers, config.samplers.tensor_parallel_size
        name = "sampler" if span == 1 else "GPU of a sampler"
        found[name] = (samplers.least * span, sizes.sampler / span, samplers.resources)
        if samplers.sleep and on_gpus:
            larger = max(found, key=lambda each: found[each][1])
            found = {f"{larger}, by turns": found[larger]}
        found["reward actor"] = (config.reward.replicas, sizes.reward, config.reward.resources)
    return {name: (count, size) for name, (count, size, asked) in found.items() if (asked.get("GPU", 0) > 0) == on_gpus}


def _workers(config: Config | RewardTraining) -> int:
    """Of a range the fewest: with them the run can go on."""
    return config.training.least if isinstance(config, Config) else config.training.workers


def examine_recipe(recipe: str, overrides: Sequence[str]) -> tuple[Plan | None, list[Line]]:
    """What a recipe asks for, and whether its inputs can be had from here."""
    try:
        config, folder = _read(recipe, overrides)
    except LarpoError as error:
        return None, [fail("recipe", str(error), "Nothing of the plan is checked below")]
    trusted = [warn("trust", note, "Turn it off unless you know that code") for note in code_notes(config)]
    lines = [ok("recipe", f"{recipe}: every knob can be"), *trusted, *check_access(hub_items(config))]
    if any(line.level == "FAIL" for line in lines):
        return Plan(config, folder), lines
    try:
        plan, told = _prepared(config, folder)
    except LarpoError as error:
        return Plan(config, folder), [*lines, fail("inputs", str(error), "Memory and disk are not estimated")]
    return plan, [*lines, ok("inputs", told)]


def _read(recipe: str, overrides: Sequence[str]) -> tuple[Config | RewardTraining, Path]:
    """A recipe of a policy, or else of a reward model; the error is that of the first."""
    try:
        return new_run(recipe, overrides)
    except ConfigError:
        from actors.reward_preparation import new_reward_run

        with suppress(LarpoError):
            return new_reward_run(recipe, overrides)
        raise


def _prepared(config: Config | RewardTraining, folder: Path) -> tuple[Plan, str]:
    """The plan with its sizes, and its inputs in words."""
    if isinstance(config, RewardTraining):
        from actors.reward_preparation import prepare_reward_run

        training = prepare_reward_run(config, folder, resumed=False)
        return Plan(config, folder), f"base model {training.base}, {len(training.sets.train)} lists to train on"
    run: PreparedRun
    if config.preferences.source is None:
        run = prepare(config, folder, resumed=False)
        counts = f"{len(run.train)} prompts to train on, {len(run.heldout)} held out"
    else:
        from actors.offline_preparation import prepare_offline

        run = given = prepare_offline(config, folder, resumed=False)
        counts = f"{len(given.given)} lists to train on, {len(given.given_heldout)} held out"
    return Plan(run.config, folder, estimate(run)), f"policy {run.policy.path}, {counts}"
