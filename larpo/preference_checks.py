"""Constraints of a recipe whose answers come from a dataset. They read no data and import nothing heavy."""

from __future__ import annotations

from larpo.config import Config, PreferenceColumns, Preferences

GENERATED = "reasoning_gym"  # the source of preferences that larpo makes from questions with one right answer
CONSTRUCTED = "alpaca_eval_constructed"  # and the one that it makes from good answers to open questions

_ANSWERS = ("chosen and rejected", "responses", "response", "messages alone")


def preference_problems(config: Config) -> list[str]:
    """One line a problem of the section `preferences`, and of knobs that such a run does not have."""
    section, training = config.preferences, config.training
    problems = source_problems(section)
    if training.iterations != 1:
        problems.append(
            f"training.iterations = {training.iterations}: a run on a dataset has one iteration; set "
            "training.iterations=1, and training.epochs for more passes"
        )
    if section.columns.margin is not None:
        problems.append(
            f"preferences.columns.margin = {section.columns.margin!r}: no objective of a policy takes margins, only"
            " scripts.train_reward does; leave it out"
        )
    if config.lists.negatives != "sampled":
        problems.append(
            f"lists.negatives = {config.lists.negatives!r}: a dataset brings its own losers; leave the knob out"
        )
    if config.objective.reference == "iteration":
        problems.append(
            "objective.reference = 'iteration': a run on a dataset has one iteration, which begins with the initial "
            "policy; leave the knob out"
        )
    problems += [
        f"evaluation.{knob} = {value!r}: is decided by sampled answers, and a run on a dataset samples none; leave the "
        "knob out: held-out lists are judged before and after"
        for knob in ("every_steps", "best_metric", "patience")
        if (value := getattr(config.evaluation, knob)) is not None
    ]
    return problems


def largest_list(config: Config) -> int:
    """The most answers that a list can have, as far as the recipe tells."""
    section = config.preferences
    if section.source is None:
        return config.sampling.k
    if section.source == GENERATED:
        return 1 + section.wrong_answers
    return 2 if section.columns.chosen else 64 if section.columns.responses else 1


def source_problems(section: Preferences) -> list[str]:
    """One line a problem of where preferences come from, for any stage that takes them."""
    if section.source != GENERATED:
        if section.tasks:
            return [
                f"preferences.tasks has {sorted(section.tasks)}: only preferences.source = {GENERATED} takes tasks, "
                f"not {section.source!r}; leave them out"
            ]
        if section.source == CONSTRUCTED:
            return _no_columns(section)
        return _columns(section.columns)
    problems = _no_columns(section)
    if not section.tasks:
        problems.append(f"preferences.tasks = {{}}: {GENERATED} needs one task or more, such as {{chain_sum: {{}}}}")
    if section.train_count is None:
        problems.append(f"preferences.train_count is not given: {GENERATED} makes questions without end; set it")
    return problems


def _no_columns(section: Preferences) -> list[str]:
    given = {name: column for name, column in section.columns if column is not None}
    return [f"preferences.columns has {given}: {section.source} takes none; leave it out"] if given else []


def _columns(columns: PreferenceColumns) -> list[str]:
    """Which answers a row holds, and where its prompt is."""
    given = [name for name, column in columns if column is not None]
    pair = [name for name in ("chosen", "rejected") if name in given]
    answers = [*pair[:1], *(name for name in ("responses", "response") if name in given)]
    problems = []
    if len(pair) == 1:
        problems.append(f"preferences.columns names {pair[0]} alone: chosen and rejected come together; name both")
    if len(answers) > 1 or not (answers or "messages" in given):
        problems.append(
            f"preferences.columns names {', '.join(given) or 'nothing'}: set exactly one of {'; '.join(_ANSWERS)}"
        )
    if "prompt" in given and "messages" in given:
        problems.append("preferences.columns names prompt and messages: name one of them")
    if answers and not pair and not {"prompt", "messages"} & set(given):
        problems.append(f"preferences.columns names {answers[0]} without its prompt: set prompt, or messages")
    for name, other in (("rewards", "responses"), ("margin", "chosen")):
        if name in given and other not in given:
            problems.append(f"preferences.columns.{name}: goes with {other}, which is not named; leave it out")
    return problems
