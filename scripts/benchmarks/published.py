"""The results in `benchmarks/` as the table of the README: a row a comparison, with the commit and the machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from larpo.errors import DataError
from scripts.benchmarks.measuring import TABLE_HEADER, Comparison, Series, table_row


def markdown(folder: Path, names: Iterable[str]) -> str:
    """The results of these benchmarks that lie in `folder`. Raises DataError when there are none."""
    files = [folder / f"{name}.json" for name in names]
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    if not found:
        raise DataError(f"{folder} holds no result of a benchmark; run one: python -m scripts.bench NAME")
    header = ("benchmark", *TABLE_HEADER)
    rows = [header, tuple("---" for _ in header), *(row for result in found for row in _rows(result))]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *_machines(found)])


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(f"`{result['name']}`", *table_row(_comparison(fields))) for fields in result["comparisons"]]


def _comparison(fields: Mapping[str, Any]) -> Comparison:
    ours, other = (Series(fields[side]["label"], tuple(fields[side]["values"])) for side in ("ours", "other"))
    return Comparison(fields["what"], fields["unit"], ours, other, fields["target"])


def _machines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which benchmark was taken where, and at which commit."""
    names: dict[tuple[str, str], list[str]] = {}
    for result in found:
        names.setdefault((result["machine"], result["commit"]), []).append(f"`{result['name']}`")
    return [f"{', '.join(of)}: {machine}, at {commit}." for (machine, commit), of in names.items()]
