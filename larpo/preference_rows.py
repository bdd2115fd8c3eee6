"""What one row of a preference dataset holds, by the columns that a recipe names.

| columns | a row is |
|---|---|
| `chosen`, `rejected` (and `prompt` or `messages`) | a pair; scores 1 and 0 |
| `responses` (and `rewards`), with `prompt` or `messages` | a list; without rewards best first, scores n - 1 .. 0 |
| `response`, with `prompt` or `messages` | one answer; score 1 |
| `messages` alone | a chat: every turn of the assistant is one answer to what stands before it; score 1 |

An answer is text or a list with one assistant turn. Turns of `chosen` and `rejected` may begin with the prompt, and
where no prompt is named, it is what both begin with: the forms that TRL reads. Every assistant turn of a chat is an
answer of its own, so that the policy sees each as its template renders the turn that comes next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from larpo.config import PreferenceColumns
from larpo.dataset_rows import Row, column_value, turns_of, up_to_the_user
from larpo.errors import DataError
from larpo.types import Message, Prompt

KNOBS = "preferences"  # the section of a recipe that errors speak of


@dataclass(frozen=True)
class Preference:
    """A prompt and its answers, best first, with the dataset's scores of them."""

    prompt: Prompt
    responses: tuple[str, ...]
    rewards: tuple[float, ...]
    margin: float | None = None  # how much better the first is than the second, where the dataset says


Group = tuple[Preference, ...]  # of one row: several where it is a chat, never parted by the split


class UnusableRow(Exception):
    """A row that cannot be used; the text says why."""


def read_group(row: Row, key: str, columns: PreferenceColumns) -> Group:
    """The preferences of one row; UnusableRow when there are none."""
    if columns.chosen is not None:
        return (_pair(row, key, columns),)
    if columns.responses is not None:
        return (_ranked(row, key, columns),)
    if columns.response is not None:
        prompt = _prompt(row, columns)
        answer = _answer(_value(row, columns.response), columns.response, prompt)
        return (Preference(Prompt(key, prompt), (answer,), (1.0,)),)
    return _chat(row, key, str(columns.messages))


def _pair(row: Row, key: str, columns: PreferenceColumns) -> Preference:
    named = str(columns.chosen), str(columns.rejected)
    values = [_value(row, column) for column in named]
    prompt = _prompt(row, columns) if columns.prompt or columns.messages else _shared(values, named)
    best, worst = (_answer(value, column, prompt) for value, column in zip(values, named, strict=True))
    if best.strip() == worst.strip():
        raise UnusableRow("chosen and rejected say the same")
    margin = None if columns.margin is None else _number(_value(row, columns.margin))
    if columns.margin is not None and margin is None:
        raise UnusableRow(f"{columns.margin!r} holds no number")
    return Preference(Prompt(key, prompt), (best, worst), (1.0, 0.0), margin)


def _ranked(row: Row, key: str, columns: PreferenceColumns) -> Preference:
    prompt, column = _prompt(row, columns), str(columns.responses)
    values = _value(row, column)
    if not isinstance(values, list):
        raise UnusableRow(f"{column!r} holds {type(values).__name__}, not a list of answers")
    scores: Any = list(range(len(values) - 1, -1, -1))
    if columns.rewards is not None:
        scores = _value(row, columns.rewards)
    if not isinstance(scores, list) or len(scores) != len(values):
        raise UnusableRow(f"{columns.rewards!r} holds not one score an answer")
    pairs = [(_number(score), value) for score, value in zip(scores, values, strict=True)]
    scored = [(score, _answer(value, column, prompt)) for score, value in pairs if score is not None and value]
    if len({score for score, _ in scored}) < 2 or len({text.strip() for _, text in scored}) < 2:
        raise UnusableRow("no two different answers with different scores")
    scored.sort(key=lambda pair: -pair[0])
    return Preference(Prompt(key, prompt), tuple(text for _, text in scored), tuple(score for score, _ in scored))


def _chat(row: Row, key: str, column: str) -> Group:
    turns = _turns(_value(row, column), column)
    found = [
        n for n, turn in enumerate(turns) if turn.role == "assistant" and turn.content.strip() and _asks(turns[:n])
    ]
    if not found:
        raise UnusableRow("a chat in which the assistant answers nothing")
    ids = [key] if len(found) == 1 else [f"{key}/{number}" for number in range(len(found))]
    return tuple(
        Preference(Prompt(name, turns[:place]), (turns[place].content,), (1.0,))
        for name, place in zip(ids, found, strict=True)
    )


def _prompt(row: Row, columns: PreferenceColumns) -> tuple[Message, ...]:
    column = str(columns.prompt or columns.messages)
    value = _value(row, column)
    turns = (Message("user", value),) if isinstance(value, str) else up_to_the_user(_turns(value, column))
    if not _asks(turns):
        raise UnusableRow("no text in the prompt")
    return turns


def _shared(values: Sequence[Any], named: tuple[str, str]) -> tuple[Message, ...]:
    """What both conversations begin with, up to the turn of the user."""
    if isinstance(values[0], str):
        raise UnusableRow(f"{named[0]!r} holds text, and no column names its prompt: set preferences.columns.prompt")
    first, second = (_turns(value, column) for value, column in zip(values, named, strict=True))
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    prompt = up_to_the_user(first[:shared])
    if not _asks(prompt):
        raise UnusableRow("no text in the prompt")
    return prompt


def _answer(value: Any, column: str, prompt: tuple[Message, ...]) -> str:
    """The text of an answer: text, or turns that are one of the assistant's, behind the prompt or without it."""
    if isinstance(value, str):
        text = value
    else:
        turns = _turns(value, column)
        spoken = tuple(turn for turn in prompt if turn.role != "system")
        for before in (prompt, spoken):
            turns = turns[len(before) :] if before and turns[: len(before)] == before else turns
        if len(turns) != 1 or turns[0].role != "assistant":
            raise UnusableRow(f"{column!r} holds not one turn of the assistant behind the prompt")
        text = turns[0].content
    if not text.strip():
        raise UnusableRow("an empty answer")
    return text


def _value(row: Row, column: str) -> Any:
    try:
        return column_value(row, column, "", KNOBS)
    except DataError as error:
        raise UnusableRow(f"no column {column!r}") from error


def _turns(value: Any, column: str) -> tuple[Message, ...]:
    try:
        return turns_of(value, column, "", KNOBS)
    except DataError as error:
        raise UnusableRow(
            f"{column!r} holds {type(value).__name__}, neither text nor turns of role and content"
        ) from error


def _asks(turns: Sequence[Message]) -> bool:
    return any(turn.role == "user" and turn.content.strip() for turn in turns)


def _number(value: Any) -> float | None:
    """A finite number, also one written as text; None for what is none (as UltraFeedback's "N/A")."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
