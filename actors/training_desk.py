"""Between a training group on a fixed dataset and the command that started it: lists out, records in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.work import Failure


@dataclass(frozen=True)
class DeskStatus:
    """What came in since the last look."""

    records: tuple[Mapping[str, Any], ...]
    failures: tuple[Failure, ...]  # ranks that ended before their time
    error: str | None  # why the group gives up, where it said so


class TrainingDesk:
    """Wrapped by `ray.remote` where it is placed."""

    def __init__(self, lists: Mapping[str, Sequence[Any]]) -> None:
        self._lists = lists
        self._records: list[Mapping[str, Any]] = []
        self._failures: list[Failure] = []
        self._error: str | None = None

    def lists(self, name: str) -> Sequence[Any]:
        """The lists that every rank works on, `train` or `heldout`."""
        return self._lists[name]

    def report(self, record: Mapping[str, Any]) -> None:
        self._records.append(record)

    def group_failed(self, failures: Sequence[Failure]) -> None:
        """Ray Train starts the group again, or gives up."""
        self._failures.extend(failures)

    def fail(self, error: str) -> None:
        """An error that a new start would meet again."""
        self._error = self._error or error

    def status(self) -> DeskStatus:
        records, self._records = self._records, []
        failures, self._failures = self._failures, []
        return DeskStatus(tuple(records), tuple(failures), self._error)
