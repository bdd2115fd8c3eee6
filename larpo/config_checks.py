"""Constraints between knobs: what no single knob's type or range can say.

Each function takes a configuration and returns one line a problem, every line naming the knob, its value, the
limit and the next step. They read no data and import nothing heavy.
"""

from __future__ import annotations

from larpo.config import Config, Lora, Run, Selection
from larpo.dataset_rows import FILES
from larpo.errors import ConfigError
from larpo.evaluation_checks import evaluation_problems
from larpo.knobs import nearest
from larpo.objective_table import OBJECTIVES
from larpo.placement_checks import placement_problems, range_problems
from larpo.preference_checks import largest_list, preference_problems
from larpo.prompt_sets import BUNDLED_SETS
from larpo.reward_checks import reward_problems
from larpo.storage import check_location, is_uri


def check_config(config: Config) -> None:
    """ConfigError with every problem that `config` has, one a line; None when it can run."""
    sampled = (
        _prompts,
        _heldout_split,
        _columns,
        placement_problems,
        reward_problems,
        _objective,
        _selection,
        _temperatures,
        _lengths,
        _counts,
        _async,
    )
    given = (
        preference_problems,
        _objective,
        _steps,
        range_problems,
    )  # answers from a dataset: nothing is sampled or rewarded
    checks = (_run, _lora, *(sampled if config.preferences.source is None else given))
    problems = [problem for check in (*checks, evaluation_problems) for problem in check(config)]
    if problems:
        raise ConfigError(problem_list(f"this configuration cannot run, {len(problems)} to change", problems))


def problem_list(head: str, problems: list[str]) -> str:
    """One message of several problems, one a line."""
    return "\n  - ".join([f"{head}:", *problems])


def selected_count(selection: Selection, k: int) -> int:
    """How many of k ranked responses a selection keeps."""
    return {
        "best_vs_worst": 2,
        "best_vs_rest": k,
        "best_vs_bottom": 1 + selection.bottom,
        "top_and_bottom": selection.top + selection.bottom,
        "all": k,
    }[selection.policy]


def _run(config: Config) -> list[str]:
    return run_problems(config.run)


def run_problems(run: Run) -> list[str]:
    """What is wrong with a run's name and place, in any recipe."""
    name, problems = run.name, []
    try:
        check_location(run.output_dir)
    except ConfigError as error:
        problems.append(f"run.output_dir = {error}")
    marks = set("/\\\0\n") | (set("?#%") if is_uri(run.output_dir) else set())
    if name is None or (name and name == name.strip() and not name.startswith(".") and not set(name) & marks):
        return problems
    problems.append(
        f"run.name = {name!r}: must be a plain folder name, without slashes, a leading dot or spaces around it; "
        "folders above it go into run.output_dir"
    )
    return problems


def _lora(config: Config) -> list[str]:
    problems, shared = lora_problems(config.policy.lora), config.training.shared_row_tokens
    if config.policy.lora.dropout and shared:
        problems.append(
            f"training.shared_row_tokens = {shared}: policy.lora.dropout leaves out of a row what follows from its"
            " lists, and which lists share one would follow from the number of ranks; set either to 0"
        )
    return problems


def lora_problems(lora: Lora, where: str = "policy.lora") -> list[str]:
    """What can be said of a section of adapters before the model is known; `where` is its place in the recipe."""
    if not lora.rank:
        given = [name for name, value in lora if value != getattr(Lora(), name)]
        if not given:
            return []
        return [f"{where}.{given[0]} is given, but {where}.rank is 0: no adapter is made; set a rank, such as 16"]
    if not lora.target_modules:
        return [f"{where}.target_modules = []: no layer would get an adapter; name some, or give [all-linear]"]
    if "all-linear" in lora.target_modules and len(lora.target_modules) > 1:
        return [
            f"{where}.target_modules = {list(lora.target_modules)}: all-linear stands for every name; leave the "
            "others out, or all-linear"
        ]
    return []


def _prompts(config: Config) -> list[str]:
    prompts, problems = config.prompts, []
    if prompts.source == "reasoning_gym":
        if not prompts.tasks:
            problems.append("prompts.tasks = {}: reasoning_gym needs one task or more, such as {chain_sum: {}}")
        if prompts.train_count is None:
            problems.append("prompts.train_count is not given: reasoning_gym makes prompts without end; set it")
    elif prompts.tasks:
        problems.append(
            f"prompts.tasks has {sorted(prompts.tasks)}: only prompts.source = reasoning_gym takes tasks, not "
            f"{prompts.source!r}; leave them out"
        )
    if config.evaluation.each_iteration and prompts.heldout_count == 0:
        problems.append(
            "evaluation.each_iteration = True: needs held-out prompts, but prompts.heldout_count is 0; hold some "
            "out, or set evaluation.each_iteration=false"
        )
    return problems


def _heldout_split(config: Config) -> list[str]:
    prompts, split = config.prompts, config.prompts.heldout_split
    if split is None:
        return []
    where = f"prompts.heldout_split = {split!r}"
    if prompts.source in BUNDLED_SETS or prompts.source.endswith(FILES):
        return [f"{where}: is for hub datasets, and prompts.source = {prompts.source!r} has no splits; leave it out"]
    if split == prompts.split:
        return [f"{where}: is prompts.split, which prompts are held out of without it; leave it out, or name another"]
    if prompts.heldout_count == 0:
        return [f"{where}: holds nothing out, since prompts.heldout_count is 0; set that, or leave the split out"]
    return []


def _columns(config: Config) -> list[str]:
    source = config.prompts.source
    given = {name: column for name, column in config.prompts.columns if column is not None}
    if source in BUNDLED_SETS:
        return (
            [f"prompts.columns has {given}: the bundled set {source!r} takes none; set prompts.columns={{}}"]
            if given
            else []
        )
    texts = [name for name in ("prompt", "messages") if name in given]
    if len(texts) == 1:
        return []
    return [
        f"prompts.columns names {' and '.join(texts) or 'no text column'} for {source!r}: set exactly one of "
        f"prompts.columns.prompt and prompts.columns.messages (bundled sets: {', '.join(BUNDLED_SETS)})"
    ]


def _objective(config: Config) -> list[str]:
    name, selection = config.objective.name, config.lists.selection
    if name not in OBJECTIVES:
        return [f"objective.name = {name!r}: no objective is called so; {nearest(name, OBJECTIVES)}"]
    spec, problems = OBJECTIVES[name], []
    count = min(selected_count(selection, config.sampling.k), largest_list(config))
    if spec.uses == "pair" and count > 2:
        problems.append(
            f"lists.selection.policy = {selection.policy!r}: keeps {count} responses a list, but objective.name = "
            f"{name!r} trains on 2, one winner and one loser; set lists.selection.policy=best_vs_worst"
        )
    workers, step = config.training.workers, config.training.lists_per_step
    if spec.divergence and step < 2 * workers:
        problems.append(
            f"training.lists_per_step = {step}: objective.name = {name!r} compares a rank's lists with each other, and "
            f"needs 2 a worker, {2 * workers} in all; raise it"
        )
    if spec.uses == "one" and config.preferences.source is None:
        problems.append(
            f"objective.name = {name!r}: trains on given answers; set preferences.source, and start scripts.sft"
        )
    if config.objective.reference == "iteration" and not spec.reference:
        problems.append(
            f"objective.reference = 'iteration': objective.name = {name!r} has no reference; leave the knob out"
        )
    for option, value in config.objective.options.items():
        if option in spec.above_zero and value == 0:
            problems.append(f"objective.options.{option} = 0: objective.name = {name!r} divides by it; raise it")
        if option not in spec.options:
            hint = nearest(option, spec.options) if spec.options else "it has none; leave them out"
            problems.append(f"objective.options.{option}: objective.name = {name!r} has no such number; {hint}")
    return problems


def _selection(config: Config) -> list[str]:
    selection, k = config.lists.selection, config.sampling.k
    count = selected_count(selection, k)
    if count <= k:
        return []
    knobs = "1 + bottom" if selection.policy == "best_vs_bottom" else "top + bottom"
    return [
        f"lists.selection = {selection.policy}: {knobs} = {count} responses, but sampling.k is {k}; lower "
        f"lists.selection or set sampling.k={count} or more"
    ]


def _temperatures(config: Config) -> list[str]:
    sampling, iterations, problems = config.sampling, config.training.iterations, []
    count, planned = len(sampling.temperatures), len(sampling.temperature_by_iteration)
    if count == 0:
        problems.append("sampling.temperatures = []: must hold one temperature or more, such as [1.0]")
    if count > sampling.k:
        problems.append(
            f"sampling.temperatures has {count} values: sampling.k = {sampling.k} responses cannot be split over "
            f"them; set sampling.k={count} or more"
        )
    if planned and planned != iterations:
        problems.append(
            f"sampling.temperature_by_iteration has {planned} values: training.iterations is {iterations}; give one "
            "an iteration, or none"
        )
    return problems


def _lengths(config: Config) -> list[str]:
    prompt, response = config.prompts.max_prompt_tokens, config.sampling.max_new_tokens
    limits = {
        "samplers.max_model_len": config.samplers.max_model_len,
        "training.row_tokens": config.training.row_tokens,
    }
    return [
        f"{knob} = {limit}: prompts.max_prompt_tokens + sampling.max_new_tokens = {prompt} + {response} = "
        f"{prompt + response} must fit into it; lower those, or set {knob}={prompt + response} or more"
        for knob, limit in limits.items()
        if prompt + response > limit
    ]


def _counts(config: Config) -> list[str]:
    training, pool = config.training, config.prompts.train_count
    step, drawn, problems = training.lists_per_step, training.prompts_per_iteration, []
    if pool is not None and drawn > pool:
        problems.append(
            f"training.prompts_per_iteration = {drawn}: must be at most prompts.train_count = {pool}, since an "
            "iteration draws a prompt once; lower it, or raise prompts.train_count"
        )
    if step > drawn:
        problems.append(
            f"training.lists_per_step = {step}: must be at most training.prompts_per_iteration = {drawn}, or an "
            "iteration has no full step; lower it"
        )
    return problems + _steps(config)


def _async(config: Config) -> list[str]:
    """What cannot be while new weights come within an iteration."""
    if config.overlap != "async":
        return []
    problems = []
    if config.training.epochs > 1:
        problems.append(
            f"training.epochs = {config.training.epochs}: a later pass trains lists again that are older than"
            f" max_staleness = {config.max_staleness} allows; with overlap = 'async' set training.epochs=1"
        )
    if config.lists.negatives != "sampled":
        problems.append(
            f"lists.negatives = {config.lists.negatives!r}: a list would wait for those of other prompts, which are not"
            " asked for before it is trained; with overlap = 'async' set lists.negatives=sampled"
        )
    return problems


def _steps(config: Config) -> list[str]:
    training, step, problems = config.training, config.training.lists_per_step, []
    if step < training.workers:
        problems.append(
            f"training.lists_per_step = {step}: must be at least training.workers = {training.workers}, one list a "
            "worker; raise it, or use fewer workers"
        )
    if step > config.stream.capacity:
        problems.append(
            f"training.lists_per_step = {step}: must be at most stream.capacity = {config.stream.capacity}, or the "
            f"stream can never hold a step's lists; lower it, or set stream.capacity={step} or more"
        )
    return problems
