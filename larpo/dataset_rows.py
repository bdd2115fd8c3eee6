"""Rows of a dataset: read from a file or the hub, and what stands in their columns.

Every function takes `knobs`, the name of the recipe's section, so that an error names the knob to change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from larpo.errors import DataError, HubUnreachable
from larpo.types import Message

Row = Mapping[str, Any]
Rows = list[tuple[str, Row]]  # where a row stands, for errors, and its columns

FILES = (".jsonl", ".parquet")  # endings of a source that is a file; other names are looked up on the hub


class Source(Protocol):
    """What a section of a recipe says of a dataset."""

    @property
    def source(self) -> str | None: ...
    @property
    def subset(self) -> str | None: ...
    @property
    def split(self) -> str: ...
    @property
    def revision(self) -> str | None: ...


def read_rows(section: Source, knobs: str, bundled: Sequence[str]) -> Rows:
    """All rows of a .jsonl or .parquet file, or of a split on the hub; DataError when they cannot be had.

    `bundled` are the names of sets that come with larpo: an error offers them.
    """
    path = Path(str(section.source)).expanduser()
    if path.suffix not in FILES:
        return _hub_rows(section, knobs, bundled)
    if not path.is_file():
        raise DataError(f"{knobs}.source = {section.source!r}: there is no such file in {Path.cwd()}; correct the path")
    return _jsonl_rows(path) if path.suffix == ".jsonl" else _parquet_rows(path)


def _jsonl_rows(path: Path) -> Rows:
    """Lines of JSON objects; empty lines are passed over."""
    rows: Rows = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:
                raise DataError(f"{where}: not readable as JSON ({error}); correct or remove the line") from error
            if not isinstance(row, dict):
                raise DataError(f"{where}: holds {type(row).__name__}, not an object with columns; correct the line")
            rows.append((where, row))
    return rows


def _parquet_rows(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not readable as Parquet ({error}); write the file again") from error
    return [(f"{path}, row {number}", row) for number, row in enumerate(table.to_pylist())]


def _hub_rows(section: Source, knobs: str, bundled: Sequence[str]) -> Rows:
    import datasets

    try:
        rows = datasets.load_dataset(section.source, section.subset, split=section.split, revision=section.revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise (HubUnreachable if isinstance(error, ConnectionError) else DataError)(
            f"{knobs}.source = {section.source!r}: split {section.split!r} cannot be had from the hub "
            f"({type(error).__name__}: {error}); check the id and the name of the split, or give a .jsonl or "
            f".parquet file (which needs no network) or a bundled set: {', '.join(bundled)}"
        ) from error
    return [(f"{section.source}, row {number}", row) for number, row in enumerate(rows)]


# --- Columns


def column_value(row: Row, column: str, where: str, knobs: str) -> Any:
    """The value under a column's name, or under a dotted path into a struct.

    A path through a list of structs gives a list: `completions.response` of [{response: a}, {response: b}] is [a, b].
    """
    if column in row:
        return row[column]
    try:
        return _inside(row, column.split("."))
    except KeyError:
        names = ", ".join(column_paths(row))
        raise DataError(f"{where}: has no column {column!r}; {knobs}.columns can name: {names}") from None


def _inside(value: Any, parts: list[str]) -> Any:
    if not parts:
        return value
    if isinstance(value, list):
        return [_inside(item, parts) for item in value]
    if not isinstance(value, Mapping):
        raise KeyError(parts[0])
    return _inside(value[parts[0]], parts[1:])


def column_paths(row: Row, above: str = "") -> list[str]:
    """Dotted paths of all columns and of what is inside structs and lists of structs."""
    paths = [f"{above}{key}" for key in row]
    for key, value in row.items():
        first = value[0] if isinstance(value, list) and value else value
        paths += column_paths(first, f"{above}{key}.") if isinstance(first, Mapping) else []
    return paths


def row_id(row: Row, number: int, where: str, column: str | None, knobs: str) -> str:
    """The row's id from its column, else from its number; DataError when the column holds no id."""
    if column is None:
        return f"row-{number:05d}"
    value = column_value(row, column, where, knobs)
    if not isinstance(value, str | int) or value == "":
        raise DataError(f"{where}: {knobs}.columns.id = {column!r} holds {value!r}; give each row a text or number")
    return str(value)


def turns_of(value: Any, column: str, where: str, knobs: str) -> tuple[Message, ...]:
    """A list of {role, content} as messages; DataError when it is something else."""
    fits = isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value)
    texts = [turn.get(key) for turn in value for key in ("role", "content")] if fits else [None]
    if not all(isinstance(text, str) for text in texts):
        shown = repr(value)
        raise DataError(
            f"{where}: {knobs} = {column!r} must hold a list of {{role, content}} with texts in "
            f"both, not {shown[:100]}{'...' if len(shown) > 100 else ''}; name another column, or rewrite it"
        )
    return tuple(Message(turn["role"], turn["content"]) for turn in value)


def up_to_the_user(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Turns up to the last one of the user; what comes after it is an answer, not the prompt."""
    last = max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)
    return messages[: last + 1]
