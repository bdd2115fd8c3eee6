"""What a new run takes over from another: the lists of the first iteration, and the base policy's evaluation.

Before the first weights come back, runs that differ in objective, selection, memory or training settings do the same
work: they sample and rank the same prompts with the same policy. Sharing it saves the time, and makes arms of an
experiment comparable, since they then learn from the same responses.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from actors.policies import result_file
from actors.preparation import CONFIG_FILE, INPUTS_FILE, PreparedRun
from actors.progress import Progress
from actors.work import read_references, write_references
from larpo.best_policy import BASE
from larpo.config import Config
from larpo.errors import ConfigError, DataError
from larpo.evaluation import HeldoutResult, summary
from larpo.list_metrics import list_metrics
from larpo.recipe import flat_knobs, load_config
from larpo.records import list_parts, read_lists

FIRST = 0  # the iteration whose behaviour policy is the base policy
SAMPLED = ("policy.", "prompts.", "sampling.max_new_tokens", "sampling.stop", "reward.")
NOT_SEEN = (
    "policy.lora",
    "reward.replicas",
    "reward.resources",
    "reward.cache",
)  # do not change what is sampled or how it is ranked
_LISTS = (*SAMPLED, "sampling.k", "lists.negatives", "run.seed", "training.prompts_per_iteration")
_EVALUATION = (*SAMPLED, "evaluation.samples", "evaluation.temperature")


def lists_knobs(config: Config) -> dict[str, str]:
    """The knobs on which the lists of the first iteration depend."""
    temperatures = config.sampling.temperature_by_iteration[:1] or config.sampling.temperatures
    return _knobs(config, _LISTS) | {"the first iteration's temperatures": str(temperatures)}


def evaluation_knobs(config: Config) -> dict[str, str]:
    """The knobs on which the base policy's evaluation depends."""
    return _knobs(config, _EVALUATION)


def _knobs(config: Config, begins: Sequence[str]) -> dict[str, str]:
    return {
        key: str(value)
        for key, value in flat_knobs(config).items()
        if key.startswith(tuple(begins)) and not key.startswith(NOT_SEEN)
    }


def what_fits(run: PreparedRun, source: Path) -> tuple[bool, bool]:
    """Whether the new run can take the lists, and whether it can take the evaluation, of the run folder `source`.

    Raises:
        DataError: `source` is no run folder, or was begun with another policy or other prompts.
        ConfigError: nothing fits, with the knobs that differ.
    """
    if not (source / CONFIG_FILE).is_file() or not (source / INPUTS_FILE).is_file():
        raise DataError(f"--share {source}: is no run folder: it has no {CONFIG_FILE} and {INPUTS_FILE}; give another")
    if json.loads((source / INPUTS_FILE).read_text()) != run.fingerprints():
        raise DataError(f"--share {source}: was begun with another policy or other prompts; give a run with the same")
    of_lists, of_evaluation = what_differs(load_config(str(source / CONFIG_FILE)), run.config)
    if of_lists and of_evaluation:
        raise ConfigError(f"--share {source}: nothing fits this run; its settings differ: {'; '.join(of_evaluation)}")
    return not of_lists, not of_evaluation


def what_differs(theirs: Config, ours: Config) -> tuple[list[str], list[str]]:
    """Why the first lists of a run are not those of another, and why the evaluation of the base policy is not.

    Both as they are written with a run: with a type of numbers (`larpo.compute_type.settled`).
    """
    of_lists = _differences(lists_knobs(theirs), lists_knobs(ours))
    if "async" in (theirs.overlap, ours.overlap):
        of_lists.append("overlap: async takes new weights within the first iteration")
    return of_lists, _differences(evaluation_knobs(theirs), evaluation_knobs(ours))


def take_over(run: PreparedRun, progress: Progress) -> None:
    """Copies what fits from the run that a new run shares with into its folder, and tells it in the new run's log."""
    if run.shares is None:
        return
    lists, evaluation = what_fits(run, run.shares)
    if lists:
        _take_lists(run, run.shares, progress)
    if evaluation:
        _take_evaluation(run, run.shares, progress)


def _differences(theirs: dict[str, str], ours: dict[str, str]) -> list[str]:
    return [f"{key}: {theirs.get(key)} -> {value}" for key, value in ours.items() if theirs.get(key) != value]


def _take_lists(run: PreparedRun, source: Path, progress: Progress) -> None:
    """Whole parts, and what the initial policy, as reference, says of their candidates: later ones are a run's own."""
    ids: set[str] = set()
    for part in list_parts(source / "lists", FIRST):
        lists = list(read_lists(part))  # its checksums hold
        ids |= {candidate.id for item in lists for candidate in item.candidates}
        _copy(part, run.lists / part.parent.name / part.name)
        progress.log("lists", list_metrics(lists, run.config), iteration=FIRST)
    if ids:
        known, initial = read_references(source).items(), run.policy.fingerprint
        write_references(run.folder, {key: value for key, value in known if key in ids and value[1] == initial})
        progress.say(f"the lists of the first iteration come from {source.name}")


def _take_evaluation(run: PreparedRun, source: Path, progress: Progress) -> None:
    file = result_file(source, BASE)
    if not file.exists():
        return
    result = HeldoutResult.from_json(file.read_text())
    _copy(file, result_file(run.folder, BASE))
    progress.log("evaluation", summary(result), label=result.label, iteration=FIRST)
    progress.say(f"the base policy's evaluation comes from {source.name}")


def _copy(file: Path, target: Path) -> None:
    """Whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(file, partial)
    partial.rename(target)
