"""What the ranks of a training group do with the run's home, when they may have no folder in common.

Ranks on one node share its working folder, and the first of them acts for the node. Where the home is a folder that
every rank sees, each function does what it says on that folder, and nothing is copied.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from actors.checkpoints import (
    Found,
    TrainerState,
    checksum_here,
    checksums,
    commit_checkpoint,
    damage,
    file_checksum,
    newest_checkpoint,
    outdated,
    prune,
)
from actors.resharding import is_for_others
from larpo.home import CHECKPOINTS, MANIFEST, STATE, Home
from larpo.home_sessions import fence, join

_OF_RANK = re.compile(r"zero_pp_rank_(\d+)_")  # in the names of what one rank alone writes and reads


class RankHome:
    """One rank's view. `gather` gives what every rank passed to it, by rank; all must call what calls it."""

    def __init__(self, home: Home, rank: int, gather: Callable[[Any], list[Any]]) -> None:
        self.home, self._rank, self._gather = home, rank, gather
        self.acts = rank == 0
        self._ranks = len(gather(None))
        if home.elsewhere:
            seat = (socket.gethostname(), str(home.folder))
            self.acts = gather(seat).index(seat) == rank
            if self.acts:
                join(home)
            self._check_ours = fence(home)
            gather(None)

    @property
    def checkpoints(self) -> Path:
        return self.home.folder / CHECKPOINTS

    def commit(self, folder: Path, state: TrainerState, keep: int) -> None:
        """Make a checkpoint count that every rank has written its part of; the newest `keep` stay.

        Each rank takes the checksums of its part, and pushes it: of a large model that is most of the work.
        """
        self._gather(None)
        own = checksums(folder, self._is_mine)
        files = {name: recorded for part in self._gather(own) for name, recorded in part.items()}
        if self._rank == 0:  # here first, so that nothing is lost when the home is away
            commit_checkpoint(folder, state, files)
        if self.home.elsewhere:
            self._commit_at_home(folder, own, keep)
        elif self._rank == 0:
            prune(self.checkpoints, keep)
        self._gather(None)

    def _commit_at_home(self, folder: Path, own: Iterable[str], keep: int) -> None:
        """There the manifest comes after everybody's files."""
        self.home.push(*(folder / name for name in own))
        self._gather(None)
        if self._rank == 0:
            self._check_ours()
            self.home.push(folder / STATE)
            self.home.push(folder / MANIFEST)
            there = [name.removeprefix(f"{CHECKPOINTS}/") for name in self.home.storage.sizes(CHECKPOINTS)]
            for old in outdated(there, keep):
                self.home.delete(f"{CHECKPOINTS}/{old}")
        self._gather(None)
        if self.acts:
            if self._rank > 0:
                self.home.pull(folder / MANIFEST)
            self.home.drop_unknown(self.home.storage.sizes(CHECKPOINTS))

    def newest_checkpoint(self) -> Found | None:
        """The newest whole checkpoint, this rank's part of it on this node; the ranks agree on which that is."""
        if self.home.elsewhere:
            if self.acts:
                self.home.pull_index()
            self._gather(None)
        return newest_checkpoint(self.checkpoints, self._problem)

    def _problem(self, folder: Path) -> str | None:
        try:
            all_of_it = is_for_others(folder, self._ranks)
        except (ValueError, KeyError):
            all_of_it = False  # `damage` tells why the manifest cannot be read
        checksum_of = self._pulled if self.home.elsewhere else checksum_here
        problem = damage(folder, checksum_of, lambda name: self.acts if all_of_it else self._is_mine(name))
        return next((found for found in self._gather(problem) if found is not None), None)

    def _pulled(self, folder: Path, name: str, recorded: str) -> str | None:
        """The checksum of a file, which is pulled where this node has none, or another."""
        path = folder / name
        if path.is_file() and file_checksum(path) == recorded:
            return recorded
        return file_checksum(path) if self.home.pull(path) else None

    def _is_mine(self, name: str) -> bool:
        """Whether a file is this rank's to check, to push and to pull: its own part, and for its node what all read."""
        of_rank = _OF_RANK.search(name)
        return int(of_rank[1]) == self._rank if of_rank else self.acts

    def publish(self, folder: Path) -> None:
        """What rank 0 has written here begins to count; every rank calls it."""
        if self._rank == 0:
            self.home.push(folder)

    def fetch_policy(self, folder: Path) -> Path:
        """A published policy, whole on this node; every rank calls it."""
        if self.home.elsewhere:
            if self.acts:
                self.home.pull_published(folder)
            self._gather(None)
        return folder

    def fetch_below(self, *folders: str) -> None:
        """The files below folders of the run, on this node; every rank calls it."""
        if self.home.elsewhere:
            if self.acts:
                self.home.pull_below(*folders)
            self._gather(None)
