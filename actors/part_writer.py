"""Writes lists as parts of the run, on disk and at its home; those that come while a part is being written wait for
the next one together, so that slow storage makes parts larger and not the run slower.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from larpo.errors import TrainingError
from larpo.home import Home
from larpo.home_sessions import fence
from larpo.records import next_part_number, write_part
from larpo.types import CandidateList


class PartWriter:
    """Of the `lists` folder of a run; used on one event loop."""

    def __init__(self, folder: Path, home: Home) -> None:
        self._folder, self._home = folder, home
        self._check_ours = fence(home)
        self._numbers: dict[int, int] = {}  # iteration -> number of its next part
        self._next: list[CandidateList] = []
        self._next_part: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def write(self, lists: Sequence[CandidateList]) -> None:
        """Until these lists, all of one iteration, are in a part; the lists of parts are in the order of the calls.

        Raises TrainingError when the part that they are in cannot be written, StorageError when it cannot be pushed.
        """
        self._next += lists
        if self._next_part is None:
            self._next_part = asyncio.create_task(self._write_next())
        await asyncio.shield(self._next_part)

    async def _write_next(self) -> None:
        async with self._one_at_a_time:
            lists, self._next, self._next_part = self._next, [], None
            await asyncio.to_thread(self._keep, lists)

    def _keep(self, lists: Sequence[CandidateList]) -> None:
        self._check_ours()
        iteration = lists[0].iteration
        if iteration not in self._numbers:
            self._numbers = {iteration: next_part_number(self._folder, iteration)}
        try:
            part = write_part(self._folder, lists, iteration, self._numbers[iteration])
        except OSError as error:
            raise TrainingError(
                f"could not write {len(lists)} lists to {self._folder}: {error}; those before are whole."
                " Free disk space, then resume"
            ) from error
        self._numbers[iteration] += 1
        self._home.push(part)
