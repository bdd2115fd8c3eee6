"""Preference datasets: prompts whose answers are there already, ranked by somebody else.

Read from a file or the hub (`larpo.preference_rows` tells what a row may hold), or made from reasoning-gym: the gold
answer of a question against the answers of other questions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from larpo.config import Preferences, Prompts
from larpo.dataset_rows import column_paths, read_rows, row_id
from larpo.errors import DataError
from larpo.preference_checks import GENERATED
from larpo.preference_rows import KNOBS, Group, Preference, UnusableRow, read_group
from larpo.prompt_sets import reasoning_gym_split
from larpo.types import Prompt, stable_hash

__all__ = ["Preference", "PreferenceSets", "load_preferences", "split_groups"]

_REASONS_SHOWN = 3


@dataclass(frozen=True)
class PreferenceSets:
    """Training and held-out preferences, of different prompts; `notes` says what was left out, and why."""

    train: tuple[Preference, ...]
    heldout: tuple[Preference, ...]
    notes: tuple[str, ...] = ()


def load_preferences(section: Preferences) -> PreferenceSets:
    """The training and held-out preferences of a configuration.

    Rows that cannot be used are left out and counted in the notes. The split is fixed by `split_seed` and by what the
    prompts say, not by their order in a file; a row whose prompt is held out is not trained on.

    Raises:
        DataError: nothing to read, or no row that can be used: what is there, and what to set.
        ConfigError: reasoning_gym has no such task.
    """
    if section.source is None:
        raise DataError("preferences.source is not given: set a .jsonl or .parquet path, a hub id, or reasoning_gym")
    if section.source == GENERATED:
        return _generated(section)
    groups, notes = _read(section)
    return split_groups(groups, section, notes)


def _read(section: Preferences) -> tuple[list[Group], tuple[str, ...]]:
    """The usable rows, and how many were left out for which reason."""
    rows = read_rows(section, KNOBS, (GENERATED,))
    if not rows:
        raise DataError(f"{section.source}: holds no rows; give a file or split with preferences in it")
    groups, reasons = [], Counter[str]()
    for number, (where, row) in enumerate(rows):
        key = row_id(row, number, where, section.columns.id, KNOBS)
        try:
            groups.append(read_group(row, key, section.columns))
        except UnusableRow as reason:
            reasons[str(reason)] += 1
    if not groups:
        shown = "; ".join(f"{reason} ({count} rows)" for reason, count in reasons.most_common(_REASONS_SHOWN))
        raise DataError(
            f"{section.source}: none of its {len(rows)} rows can be used: {shown}. Its columns are "
            f"{', '.join(column_paths(rows[0][1]))}; set preferences.columns to those that hold prompts and answers"
        )
    _check_ids(groups, str(section.source))
    return groups, tuple(f"{count} rows left out: {reason}" for reason, count in reasons.most_common())


def _check_ids(groups: Iterable[Group], source: str) -> None:
    ids = Counter(preference.prompt.id for group in groups for preference in group)
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise DataError(
            f"{source}: {len(twice)} ids are used more than once, the first {twice[0]!r}; make ids unique, or leave "
            "preferences.columns.id out to number the rows"
        )


# --- Split


def split_groups(groups: Sequence[Group], section: Preferences, notes: tuple[str, ...] = ()) -> PreferenceSets:
    """Held-out rows, each of another prompt; training rows from those of prompts that are not held out.

    DataError when there are too few for what the section asks.
    """
    seed = section.split_seed
    order = sorted(groups, key=lambda g: (stable_hash("split", seed, _content(g)), _content(g), g[0].prompt.id))
    first_of_content = {_content(group): group for group in reversed(order)}
    heldout = [g for g in order if first_of_content[_content(g)] is g][: section.heldout_count]
    held = {_content(group) for group in heldout}
    train = [group for group in order if _content(group) not in held]
    wanted = section.train_count or 1
    if len(train) < wanted or len(heldout) < section.heldout_count:
        raise DataError(
            f"{section.source}: holds {len(groups)} usable rows, {len(first_of_content)} of different prompts; "
            f"preferences.train_count = {section.train_count} and preferences.heldout_count = {section.heldout_count} "
            "cannot be had from them; lower one of them, or bring more rows"
        )
    copies = len(groups) - len(heldout) - len(train)
    if copies:
        notes += (f"{copies} rows with a held-out prompt left out of training",)
    return PreferenceSets(_flat(train[: section.train_count]), _flat(heldout), notes)


def _flat(groups: Iterable[Group]) -> tuple[Preference, ...]:
    return tuple(preference for group in groups for preference in group)


def _content(group: Group) -> str:
    """What the row's first prompt says: chats that begin alike stay on one side."""
    return json.dumps([(message.role, message.content.strip()) for message in group[0].prompt.messages])


# --- Generated


def _generated(section: Preferences) -> PreferenceSets:
    """reasoning-gym's questions with the gold answer, and answers of other questions of the task as wrong ones."""
    asked = Prompts(
        tasks=section.tasks,
        train_count=section.train_count,
        heldout_count=section.heldout_count,
        split_seed=section.split_seed,
    )
    if section.train_count is None or not section.tasks:
        raise DataError("reasoning_gym makes questions without end: set preferences.train_count and preferences.tasks")
    train, heldout, notes = reasoning_gym_split(asked)
    return PreferenceSets(_with_wrong(train, section), _with_wrong(heldout, section), notes)


def _with_wrong(prompts: Sequence[Prompt], section: Preferences) -> tuple[Preference, ...]:
    answers: dict[str, set[str]] = {}
    for prompt in prompts:
        answers.setdefault(prompt.task, set()).add(str(prompt.answer_key["answer"]))
    return tuple(_one_generated(prompt, answers[prompt.task], section) for prompt in prompts)


def _one_generated(prompt: Prompt, answers: Iterable[str], section: Preferences) -> Preference:
    gold = str(prompt.answer_key["answer"])
    others = sorted(
        (answer for answer in answers if answer != gold),
        key=lambda answer: stable_hash("wrong answer", section.split_seed, prompt.id, answer),
    )
    wrong = others[: section.wrong_answers]
    if len(wrong) < section.wrong_answers:
        raise DataError(
            f"preferences.wrong_answers = {section.wrong_answers}: the questions of {prompt.task!r} have only "
            f"{len(others)} other answers; lower it, or raise preferences.train_count and heldout_count"
        )
    return Preference(prompt, (gold, *wrong), (1.0, *(0.0 for _ in wrong)))
