"""Constraints between the knobs of evaluation within a run, and of what is decided by it."""

from __future__ import annotations

from larpo.config import Config


def evaluation_problems(config: Config) -> list[str]:
    """One line a problem, as in `larpo.config_checks`."""
    settings, training, problems = config.evaluation, config.training, []
    given = {name: getattr(settings, name) for name in ("every_steps", "best_metric", "patience")}
    names = [f"evaluation.{name} = {value!r}" for name, value in given.items() if value is not None]
    if names and config.preferences.source is not None:
        return [f"{', '.join(names)}: a run on preferences.source samples nothing on the way; leave it out"]
    if names and config.prompts.heldout_count == 0:
        problems.append(
            f"{', '.join(names)}: needs held-out prompts, but prompts.heldout_count is 0; hold some out, or leave "
            "it out"
        )
    if config.reward.kind == "pairwise" and config.preferences.source is None and config.prompts.heldout_count:
        problems.append(
            f"prompts.heldout_count = {config.prompts.heldout_count}: a pairwise ranker's rewards have mean 0 in every "
            "list, so their means over held-out prompts say nothing; set prompts.heldout_count=0 and "
            "evaluation.each_iteration=false, and compare the models afterwards"
        )
    temperatures = settings.sweep.temperatures
    if len(set(temperatures)) < len(temperatures):
        problems.append(
            f"evaluation.sweep.temperatures = {list(temperatures)}: names one twice; name each once, and raise "
            "evaluation.sweep.samples for more responses"
        )
    on_the_way = settings.every_steps is not None or settings.patience is not None
    if on_the_way and not settings.each_iteration:
        problems.append(
            f"{', '.join(names)}: evaluates on the way, the ends of iterations too, but evaluation.each_iteration is "
            "False; set evaluation.each_iteration=true"
        )
    if settings.patience is not None and settings.best_metric is None:
        problems.append(
            f"evaluation.patience = {settings.patience}: waits for evaluation.best_metric to rise, which is not given; "
            "set evaluation.best_metric=reward, or another"
        )
    steps = -(-training.prompts_per_iteration // training.lists_per_step) * training.epochs
    replays = config.lists.replay and config.lists.memory != "current"  # then there may be more
    if settings.every_steps is not None and settings.every_steps >= steps * training.iterations and not replays:
        problems.append(
            f"evaluation.every_steps = {settings.every_steps}: the run has at most {steps * training.iterations} "
            "steps, and its end is evaluated anyway; lower it, or leave it out"
        )
    return problems
