"""Rewards that a run has been given, kept in its folder, so that what was scored once is not scored again.

One SQLite file. A row's key is a hash of the reward model's fingerprint, the prompt and the response; of a joint
model's, of the whole list and the place in it. Every call is one transaction: a kill loses at most the rewards that
it was about to keep. Failures are not kept.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from larpo.errors import DataError
from larpo.rewards import Request, Reward

SCHEMA = 1  # the file's `user_version`
WAIT_S = 10.0  # for another process that writes the file
_MOST = 500  # keys in one query


class RewardCache:
    """The rewards of one reward model; `joint` as in `larpo.rewards.RewardModel`. Threads may share it.

    Raises DataError for a file that is no such cache or another version's, sqlite3.Error where it cannot be used later.
    """

    def __init__(self, path: Path, fingerprint: str, *, joint: bool) -> None:
        self._fingerprint, self._joint, self._turn = fingerprint, joint, threading.Lock()
        try:
            self._file = sqlite3.connect(path, timeout=WAIT_S, check_same_thread=False)
            self._open(path)
        except sqlite3.Error as error:
            raise DataError(f"{path}: cannot be used ({error}); remove it, or set reward.cache=false") from error

    def _open(self, path: Path) -> None:
        (version,) = self._file.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA):
            raise DataError(f"{path}: is of version {version}, this larpo's is {SCHEMA}; remove it to score again")
        with self._file:
            self._file.execute("CREATE TABLE IF NOT EXISTS rewards (key BLOB PRIMARY KEY, value REAL) WITHOUT ROWID")
            self._file.execute(f"PRAGMA user_version = {SCHEMA}")

    def get(self, requests: Sequence[Request]) -> list[list[Reward | None]]:
        """The rewards that are kept, None for the others; of a joint model, a list's are all there or none."""
        keys = [list(self._keys(request)) for request in requests]
        known = self._values([key for row in keys for key in row])
        found = [[Reward(known[key]) if key in known else None for key in row] for row in keys]
        return [[None] * len(row) if self._joint and None in row else row for row in found]

    def put(self, requests: Sequence[Request], rewards: Sequence[Sequence[Reward]]) -> None:
        """Keep the rewards of these requests, but for failures and, of a joint model, lists that have any."""
        rows = [
            (key, reward.value)
            for request, row in zip(requests, rewards, strict=True)
            if not (self._joint and any(reward.failure for reward in row))
            for key, reward in zip(self._keys(request), row, strict=True)
            if not reward.failure
        ]
        with self._turn, self._file:
            self._file.executemany("INSERT OR REPLACE INTO rewards VALUES (?, ?)", rows)

    def copy_to(self, path: Path) -> None:
        """The whole cache as a file of its own, as it is between two calls."""
        with self._turn, closing(sqlite3.connect(path)) as copy:
            self._file.backup(copy)

    def close(self) -> None:
        with self._turn:
            self._file.close()

    def _values(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        found: dict[bytes, float] = {}
        with self._turn:
            for start in range(0, len(keys), _MOST):
                some = keys[start : start + _MOST]
                places = ", ".join("?" * len(some))
                found |= self._file.execute(f"SELECT key, value FROM rewards WHERE key IN ({places})", some).fetchall()
        return found

    def _keys(self, request: Request) -> Iterator[bytes]:
        prompt, texts = request
        shared = _hash(self._fingerprint, asdict(prompt), list(texts) if self._joint else None)
        return (_hash(shared.hex(), place if self._joint else text) for place, text in enumerate(texts))


def _hash(*parts: object) -> bytes:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).digest()
