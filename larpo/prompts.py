"""Prompts: read from a bundled set, a file or the hub, split into training and held-out, drawn."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from larpo.config import Columns, Prompts
from larpo.dataset_rows import Row, column_value, read_rows, row_id, turns_of, up_to_the_user
from larpo.errors import DataError
from larpo.prompt_sets import BUNDLED_SETS, alpaca_eval_prompts, ifeval_prompts, never_met, reasoning_gym_split
from larpo.types import Message, Prompt, stable_hash

_KNOBS = "prompts"  # the section of a recipe that errors speak of


@dataclass(frozen=True)
class PromptSets:
    """Training and held-out prompts, disjoint in id and content; `notes` says what was left out, and why."""

    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptOrder:
    """Which of `count` prompts an iteration draws: one seeded permutation, gone through again and again."""

    count: int
    seed: int

    def draw(self, iteration: int, per_iteration: int) -> tuple[int, ...]:
        """Indices of the prompts of an iteration (0-based), none twice.

        An iteration goes on where the one before it ended. A pure function: it survives a restart.
        """
        if not 1 <= per_iteration <= self.count:
            raise DataError(
                f"training.prompts_per_iteration = {per_iteration}: must be 1 to {self.count}, the training prompts "
                "that there are, since an iteration draws a prompt once; lower it, or bring more prompts"
            )
        order = random.Random(stable_hash("prompt order", self.seed)).sample(range(self.count), self.count)
        start = iteration * per_iteration
        return tuple(order[(start + offset) % self.count] for offset in range(per_iteration))


def load_prompts(prompts: Prompts) -> PromptSets:
    """The training and held-out prompts of a configuration; DataError or ConfigError when they cannot be had.

    The split is fixed by `split_seed` and by what the prompts say, not by their order in a file.
    """
    if prompts.source == "reasoning_gym":
        return PromptSets(*reasoning_gym_split(prompts))
    if prompts.source == "ifeval":
        unfit = never_met if prompts.drop_never_met else None
        return split_prompts(ifeval_prompts(), prompts, unfit, "constraints that the model never meets")
    if prompts.source == "alpaca_eval":
        return _heldout_only(alpaca_eval_prompts(), prompts)
    pool, notes = _read_pool(prompts)
    if prompts.heldout_split is None:
        return split_prompts(pool, prompts, notes=notes)
    apart, more = _heldout_pool(prompts, prompts.heldout_split)
    _check_ids([*pool, *apart], prompts.source)
    return split_prompts(pool, prompts, notes=notes + more, apart=apart)


def _read_pool(prompts: Prompts) -> tuple[list[Prompt], tuple[str, ...]]:
    """Every prompt of a file or of a split on the hub, and what was left out."""
    rows = read_rows(prompts, _KNOBS, BUNDLED_SETS)
    if not rows:
        raise DataError(f"{prompts.source}: holds no rows; give a file or split with prompts in it")
    read = [_row_prompt(row, number, where, prompts.columns) for number, (where, row) in enumerate(rows)]
    pool = [prompt for prompt in read if prompt is not None]
    _check_ids(pool, prompts.source)
    empty = len(read) - len(pool)
    return pool, (f"{empty} rows without text left out",) if empty else ()


def _heldout_pool(prompts: Prompts, split: str) -> tuple[list[Prompt], tuple[str, ...]]:
    """The same of the split that is held out. Its name goes before each id: both splits may number their rows."""
    pool, notes = _read_pool(prompts.model_copy(update={"split": split}))
    return [replace(p, id=f"{split}-{p.id}") for p in pool], tuple(f"{note}, of split {split!r}" for note in notes)


def _heldout_only(pool: Sequence[Prompt], prompts: Prompts) -> PromptSets:
    """A seeded draw of held-out prompts from a set that nobody trains on."""
    if prompts.heldout_count > len(pool):
        raise DataError(
            f"prompts.heldout_count = {prompts.heldout_count}: {prompts.source} has {len(pool)} prompts; lower it"
        )
    order = sorted(pool, key=lambda p: stable_hash("split", prompts.split_seed, _content(p)))
    return PromptSets((), tuple(order[: prompts.heldout_count]))


def drop_long(
    prompts: Iterable[Prompt], encode: Callable[[Prompt], Sequence[int]], limit: int
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """(kept, ids left out): prompts of more than `limit` tokens are left out whole, never cut."""
    kept, left_out = [], []
    for prompt in prompts:
        if len(encode(prompt)) <= limit:
            kept.append(prompt)
        else:
            left_out.append(prompt.id)
    return tuple(kept), tuple(left_out)


def split_prompts(
    pool: Sequence[Prompt],
    prompts: Prompts,
    unfit: Callable[[Prompt], bool] | None = None,
    reason: str = "",
    notes: tuple[str, ...] = (),
    apart: Sequence[Prompt] | None = None,
) -> PromptSets:
    """Held-out prompts drawn from all of `pool`, each of other content; training prompts from the rest.

    With `apart` the held-out prompts are drawn from that. A prompt that says the same as a held-out one is left out of
    training, as is one that is `unfit` for it (for `reason`). Both are counted in the notes.
    """
    order = _shuffled(pool, prompts.split_seed)
    drawn = order if apart is None else _shuffled(apart, prompts.split_seed)
    first_of_content = {_content(prompt): prompt for prompt in reversed(drawn)}
    heldout = [p for p in drawn if first_of_content[_content(p)] is p][: prompts.heldout_count]
    held = {_content(prompt) for prompt in heldout}
    rest = [prompt for prompt in order if _content(prompt) not in held]
    train = [prompt for prompt in rest if unfit is None or not unfit(prompt)]
    copies, dropped = len(pool) - len(rest) - (len(heldout) if apart is None else 0), len(rest) - len(train)
    if copies:
        notes += (f"{copies} prompts with the text of a held-out one left out of training",)
    if dropped:
        notes += (f"{dropped} prompts left out of training: {reason}",)
    _check_counts(len(train), len(heldout), prompts)
    return PromptSets(tuple(train[: prompts.train_count]), tuple(heldout), notes)


def _shuffled(pool: Sequence[Prompt], seed: int) -> list[Prompt]:
    """The pool in the order that its contents and the seed give."""
    return sorted(pool, key=lambda p: (stable_hash("split", seed, _content(p)), _content(p), p.id))


def _content(prompt: Prompt) -> str:
    return json.dumps([(message.role, message.content.strip()) for message in prompt.messages])


def _check_counts(train: int, heldout: int, prompts: Prompts) -> None:
    wanted = prompts.train_count or 1
    if train >= wanted and heldout >= prompts.heldout_count:
        return
    if prompts.heldout_split is None:
        raise DataError(
            f"{prompts.source}: holds {train + heldout} usable prompts of different text, but prompts.train_count = "
            f"{prompts.train_count} and prompts.heldout_count = {prompts.heldout_count} ask for "
            f"{wanted + prompts.heldout_count}; lower one of them, or bring more prompts"
        )
    raise DataError(
        f"{prompts.source}: split {prompts.split!r} holds {train} usable prompts to train on and split "
        f"{prompts.heldout_split!r} {heldout} of different text to hold out, but prompts.train_count = "
        f"{prompts.train_count} and prompts.heldout_count = {prompts.heldout_count} ask for {wanted} and "
        f"{prompts.heldout_count}; lower one of them, or name another split"
    )


def _check_ids(pool: Sequence[Prompt], source: str) -> None:
    twice = [name for name, count in Counter(prompt.id for prompt in pool).items() if count > 1]
    if twice:
        raise DataError(
            f"{source}: {len(twice)} ids are used more than once, the first {twice[0]!r}; make ids unique, or leave "
            "prompts.columns.id out to number the rows"
        )


# --- Rows


def _row_prompt(row: Row, number: int, where: str, columns: Columns) -> Prompt | None:
    """The prompt of a row, or None when it holds no text."""
    if columns.messages is not None:
        turns = column_value(row, columns.messages, where, _KNOBS)
        messages = up_to_the_user(turns_of(turns, columns.messages, where, f"{_KNOBS}.columns.messages"))
    else:
        messages = _one_turn(column_value(row, str(columns.prompt), where, _KNOBS), columns.prompt, where)
    if not any(message.content.strip() for message in messages if message.role == "user"):
        return None
    key = _answer_key(column_value(row, columns.answer_key, where, _KNOBS), where) if columns.answer_key else {}
    return Prompt(row_id(row, number, where, columns.id, _KNOBS), messages, "", key)


def _one_turn(text: Any, column: str | None, where: str) -> tuple[Message, ...]:
    if text is not None and not isinstance(text, str):
        raise DataError(
            f"{where}: prompts.columns.prompt = {column!r} holds {type(text).__name__}, not text; name a text column, "
            "or use prompts.columns.messages for a list of turns"
        )
    return (Message("user", text or ""),)


def _answer_key(value: Any, where: str) -> Mapping[str, Any]:
    """A struct as it is; a text, number or list becomes {"answer": value}."""
    key = value if isinstance(value, dict) else {"answer": value}
    try:
        json.dumps(key)
    except TypeError as error:
        raise DataError(
            f"{where}: prompts.columns.answer_key holds no JSON data ({error}); store it as text"
        ) from error
    return key
