"""Ranked lists on their way to the trainer: to disk, and to the run's home, then into the queue; each of them once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

from actors.list_queue import ListQueue
from actors.part_writer import PartWriter
from actors.patience import Patience
from actors.waits import Waits
from larpo.config import Config
from larpo.home import Home
from larpo.memory import with_references
from larpo.types import CandidateList


class Offers:
    """Of one stream, on its event loop."""

    def __init__(
        self, config: Config, folder: Path, home: Home, queue: ListQueue, patience: Patience, waits: Waits
    ) -> None:
        self._config, self._queue, self._patience, self._waits = config, queue, patience, waits
        self.writer = PartWriter(folder, home)
        self._in_order = asyncio.Lock()  # lists come into the queue as they are on disk
        self._recorded: set[str] = set()  # prompt ids of the open iteration whose lists are, or will be, on disk
        self._under_way: dict[str, asyncio.Task[None]] = {}  # of lists that are not queued yet, by their id

    def open(self, recorded: Iterable[str]) -> None:
        """An iteration begins, of which the lists of these prompts are on disk already."""
        self._recorded = set(recorded)

    async def take(self, lists: Sequence[CandidateList]) -> None:
        """Until they are on disk, at the home, and in the queue those that carry a signal, for which it may need room.

        Taking a list again ends as the first time does.
        """
        offers = {self._under_way[item.id] for item in lists if item.id in self._under_way}
        new = [item for item in lists if item.prompt.id not in self._recorded]
        if new:
            offer = asyncio.create_task(self._keep(new))
            self._recorded.update(item.prompt.id for item in new)
            self._under_way.update({item.id: offer for item in new})
            offers.add(offer)
        for offer in offers:
            await asyncio.shield(offer)
        for item in new:
            self._under_way.pop(item.id, None)

    async def _keep(self, lists: Sequence[CandidateList]) -> None:
        await self.writer.write(lists)
        trainable = self._queue.trainable([with_references(item, self._queue.references) for item in lists])
        self._patience.moved()
        async with self._in_order:
            with self._waits.of("producer"):
                async with self._patience.changed:
                    self._queue.place(lists)
                    if self._config.overlap == "stream":
                        await self._patience.wait(lambda: self._has_room(len(trainable)), "room in the stream")
                    self._queue.append(trainable)
                    self._patience.moved()
                    if self._queue.is_ready() or self._config.overlap == "async":  # else nobody waits for this
                        self._patience.changed.notify_all()

    def _has_room(self, arriving: int) -> bool:
        """The bound holds, or the trainer has too little for a step: then both would wait for each other."""
        waiting = len(self._queue)
        return waiting + arriving <= self._config.stream.capacity or waiting < self._config.training.lists_per_step
