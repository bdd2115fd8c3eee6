"""What a rank of the trainer writes for others: policies for the samplers, and snapshots that are evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.policies import (
    drop_publications,
    highest_version,
    is_written,
    policy_folder,
    publication_folder,
    result_file,
    weights_folder,
)
from actors.rank_home import RankHome
from actors.trainer_engine import TrainerEngine
from larpo.best_policy import Point


class Publisher:
    """One rank's; every rank calls each method. `call(method, *arguments)` asks an actor and has a time limit."""

    def __init__(
        self,
        engine: TrainerEngine,
        home: RankHome,
        rank: int,
        store: Any,
        stream: Any,
        call: Callable[..., Any],
    ) -> None:
        self._engine, self._home, self._rank = engine, home, rank
        self._store, self._stream, self._call = store, stream, call
        self._run_dir = home.home.folder
        self.version = 0  # of the newest weights that samplers may have

    def end_of_iteration(self, iteration: int) -> Path:
        """Write the policy that the next iteration begins with; `hand_over` makes it count."""
        folder = policy_folder(self._run_dir, iteration + 1)
        version = self._next_version()
        self._write(folder, version)
        self.version = version
        return folder

    def within_iteration(self, point: Point, publication: int) -> None:
        """Write and publish the weights after a step within an iteration (`overlap: async`)."""
        folder = publication_folder(self._run_dir, point)
        version = self._next_version()
        self._write(folder, version)
        self.version = version
        self.hand_over(folder)
        if self._rank == 0:
            self._call(self._stream.published, point.iteration, version, publication)
            drop_publications(self._home.home, keep=folder)

    def hand_over(self, folder: Path) -> None:
        """Give a written policy to the store, unless it has that version already."""
        from actors.published import published_version

        self._engine.barrier()
        if self._rank == 0:
            version = published_version(folder)
            if self._call(self._store.newest) < version:
                self._call(self._store.publish_folder, version, self._home.home.name(folder))
        self._engine.barrier()

    def snapshot(self, point: Point) -> bool:
        """Write the weights after a step for their evaluation; whether that was still to do."""
        known = is_written(self._run_dir, point) or result_file(self._run_dir, point).exists()  # before a restart
        if self._engine.maximum([int(known)])[0]:
            return False
        folder = weights_folder(self._run_dir, point)
        self._write(folder, self._next_version())
        if self._home.home.elsewhere and self._rank == 0:
            self._call(self._store.fetch_folder, self._home.home.name(folder))
        return True

    def _write(self, folder: Path, version: int) -> None:
        self._engine.write_policy(folder, version)
        self._home.publish(folder)

    def _next_version(self) -> int:
        """A number that no publication has had; the ranks agree on it before one of them writes a folder."""
        written = highest_version(self._run_dir)  # before the store: what is dropped was lent before
        return 1 + self._engine.maximum([max(self.version, written, self._call(self._store.highest))])[0]
