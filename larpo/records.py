"""Candidate lists on disk: Parquet parts that are written once, whole, and never changed.

Layout: `lists/iteration-0000/part-00000.parquet`. A part appears under its name only when it is complete and
flushed, so a reader never meets half of one; whatever has another name is not a part. Every page carries a
checksum. One row is one list, with the fields of `larpo.types`, readable by `datasets.load_dataset("parquet",
data_files="lists/**/*.parquet")`. The answer key is a JSON string: Arrow has no type for data without a fixed
shape. Numbers come back exactly.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from larpo.errors import DataError
from larpo.types import Candidate, CandidateList, Message, Prompt, VersionSpan

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_PROMPT = pa.struct(
    [
        ("id", pa.string()),
        ("messages", pa.list_(_MESSAGE)),
        ("task", pa.string()),
        ("answer_key", pa.string()),
    ]
)
_SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("version", pa.int64())])
_CANDIDATE = pa.struct(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float64())),
        ("finish_reason", pa.string()),
        ("temperature", pa.float64()),
        ("origin", pa.string()),
        ("iteration", pa.int32()),
        ("versions", pa.list_(_SPAN)),
        ("reward", pa.float64()),  # null: not ranked
        ("reward_fingerprint", pa.string()),
        ("reference_log_prob", pa.float64()),  # null: not computed
        ("reference_fingerprint", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("iteration", pa.int32()),
        ("prompt", _PROMPT),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("candidates", pa.list_(_CANDIDATE)),
        ("publication", pa.int32()),
    ]
)
_LOG_PROBS = "candidates.list.element.log_probs.list.element"
_ITERATION, _PART = re.compile(r"iteration-(\d{4,})"), re.compile(r"part-(\d{5,})\.parquet")


def part_path(folder: str | Path, iteration: int, part_number: int) -> Path:
    """Where a part lies in the `lists` folder of a run."""
    return Path(folder) / f"iteration-{iteration:04d}" / f"part-{part_number:05d}.parquet"


def list_parts(folder: str | Path, iteration: int | None = None) -> list[Path]:
    """The parts of a `lists` folder by iteration and number, of one iteration or of all that are there."""
    found = []
    which = "*" if iteration is None else f"{iteration:04d}"
    for path in Path(folder).glob(f"iteration-{which}/part-*.parquet"):
        of_iteration, number = _ITERATION.fullmatch(path.parent.name), _PART.fullmatch(path.name)
        if of_iteration and number and iteration in (None, int(of_iteration[1])):
            found.append((int(of_iteration[1]), int(number[1]), path))
    return [path for *_, path in sorted(found)]


def next_part_number(folder: str | Path, iteration: int) -> int:
    """The number after the newest part of an iteration."""
    parts = list_parts(folder, iteration)
    number = _PART.fullmatch(parts[-1].name) if parts else None
    return int(number[1]) + 1 if number else 0


def write_part(folder: str | Path, lists: Sequence[CandidateList], iteration: int, part_number: int) -> Path:
    """Writes lists of one iteration as one part of the `lists` folder and returns its path.

    When it returns, the part is on disk. Raises DataError when the part exists, when a list is of another
    iteration, when there is none, or when one holds what Arrow or JSON cannot.
    """
    path = part_path(folder, iteration, part_number)
    others = [entry.id for entry in lists if entry.iteration != iteration]
    if not lists or others:
        raise DataError(
            f"{path}: a part holds one or more lists of iteration {iteration}; got {len(lists)} lists, of "
            f"other iterations: {others}"
        )
    if path.exists():
        raise DataError(f"{path} exists; parts are never changed: write number {next_part_number(folder, iteration)}")
    table = _to_table(lists, path)
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _flush_folder(path.parent.parent)
    _publish(table, path)
    return path


def _publish(table: pa.Table, path: Path) -> None:
    """Writes beside the target under a name that readers pass over, flushes, renames, flushes the folder."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(hidden, "wb") as file:
            _write(table, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _write(table: pa.Table, file: Any) -> None:
    """Log-probabilities have their bytes split by place value: float32 values then take a float32's room."""
    pq.write_table(
        table,
        file,
        compression="zstd",
        use_dictionary=False,
        use_byte_stream_split=[_LOG_PROBS],
        write_page_checksum=True,
    )


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lists(path: str | Path) -> Iterator[CandidateList]:
    """The lists of one part, or of every part of a `lists` folder in order of iteration and part.

    Raises DataError naming the file when there is nothing at the path, or a part is torn, changed or of
    another schema.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; give a part or the lists folder of a run")
    for part in list_parts(path) if path.is_dir() else [path]:
        for row in _read_table(part).to_pylist():
            yield _from_row(row)


def _read_table(part: Path) -> pa.Table:
    """A part's table, checksums verified."""
    try:
        with pq.ParquetFile(part, page_checksum_verification=True) as file:
            table = file.read()
        names = table.schema.names
        if names == SCHEMA.names[:-1]:  # of before lists had a publication: all were of the iteration's beginning
            table = table.append_column(SCHEMA.field(-1), pa.array([0] * len(table), pa.int32()))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{part} cannot be read as a part ({error}); it is torn or was changed: restore it, or remove it "
            "to have its lists sampled again"
        ) from error
    if not table.schema.equals(SCHEMA):
        raise DataError(f"{part} is Parquet but not a part of candidate lists; its fields are {names}")
    return table


def _to_table(lists: Sequence[CandidateList], path: Path) -> pa.Table:
    try:
        return pa.Table.from_pylist([_to_row(entry) for entry in lists], schema=SCHEMA)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        ids = ", ".join(entry.id for entry in lists)
        raise DataError(
            f"{path} cannot hold one of the lists {ids}: {error}; correct its prompt or candidates"
        ) from error


def _to_row(entry: CandidateList) -> dict[str, Any]:
    prompt = entry.prompt
    return {
        "id": entry.id,
        "iteration": entry.iteration,
        "prompt": {
            "id": prompt.id,
            "messages": [vars(message) for message in prompt.messages],
            "task": prompt.task,
            "answer_key": json.dumps(dict(prompt.answer_key), ensure_ascii=False),
        },
        "prompt_token_ids": entry.prompt_token_ids,
        "candidates": [_to_fields(candidate) for candidate in entry.candidates],
        "publication": entry.publication,
    }


def _to_fields(candidate: Candidate) -> dict[str, Any]:
    return {**vars(candidate), "versions": [vars(span) for span in candidate.versions]}


def _from_row(row: dict[str, Any]) -> CandidateList:
    plain = row["prompt"]
    messages = tuple(Message(**message) for message in plain["messages"])
    prompt = Prompt(plain["id"], messages, plain["task"], json.loads(plain["answer_key"]))
    candidates = tuple(_from_fields(fields) for fields in row["candidates"])
    ids = tuple(row["prompt_token_ids"])
    return CandidateList(row["id"], row["iteration"], prompt, ids, candidates, row["publication"])


def _from_fields(fields: dict[str, Any]) -> Candidate:
    tuples = {"token_ids": tuple(fields["token_ids"]), "log_probs": tuple(fields["log_probs"])}
    spans = tuple(VersionSpan(**span) for span in fields["versions"])
    return Candidate(**{**fields, **tuples, "versions": spans})
