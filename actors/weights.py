"""Weights on their way from the trainer to the samplers.

A published version is a list of buckets. A bucket is the bytes of a safetensors file: the same bytes lie on disk (for
resuming: `actors.published`), in the Ray object store (owned by the `WeightStore`, so that they outlive the worker that
put them) and in the file that a sampler hands to its engine. Each carries its checksum. Fixed ones, which training
leaves as they are, go that way once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.memo import Memo
from actors.published import MANIFEST, checksum, is_intact, manifest, read_bucket
from actors.titles import show_title
from actors.vitals import Vitals, vitals
from larpo.errors import CheckpointError

if TYPE_CHECKING:
    from larpo.home import Home

_THREADS = 4  # buckets that are checked and copied at a time: neither holds Python's lock


@dataclass(frozen=True)
class Bucket:
    """One bucket: size in bytes, checksum, and the object reference, wrapped so that Ray passes it as one."""

    nbytes: int
    checksum: str
    reference: tuple[Any]
    fixed: bool = False  # training leaves its tensors as they are


class WeightStore:
    """The actor that owns published weights: the newest, and the one before, which samplers may still be held at.

    Beside them it lends one policy at a time, which need not be the newest: to samplers that evaluate it, or that begin
    an iteration with it.

    Ray starts it again when its process dies, and repeats the calls that were lost with it. What it held went with it:
    the memo tells from which folders the new process takes the same versions.
    """

    def __init__(self, memo: Memo | None = None, home: Home | None = None, keep: int = 2) -> None:
        self._keep, self._home = keep, home
        self._versions: dict[int, tuple[Bucket, ...]] = {}
        self._lent: dict[int, tuple[Bucket, ...]] = {}
        self._highest = 0
        self._folders: dict[int, str] = {}
        self._memo: Memo | None = None
        self._go_on(memo.read() if memo else {})
        self._memo = memo  # only now: a process that ends before it holds all leaves the next one as much to go on from
        self._remember()
        show_title(self.doing)

    def __repr__(self) -> str:
        return "WeightStore"

    def doing(self) -> str:
        """For its process's title."""
        held = ", ".join(f"v{version}" for version in list(self._versions | self._lent))
        return f"holds weights {held}" if held else "no weights yet"

    def _go_on(self, known: Mapping[str, Any]) -> None:
        """What the process before this one held, where there was one.

        Older folders, and what was lent, may have been dropped since: nobody asks for them any more. The newest must
        be there, or nobody would notice that the samplers go back to an older version.
        """
        held = {int(version): folder for version, folder in known.get("folders", {}).items()}
        published, lent = known.get("published", ()), known.get("lent", ())
        newest = max(held.keys() & set(published), default=None)
        there = {v: folder for v, folder in sorted(held.items()) if (self._here(folder) / MANIFEST).exists()}
        if newest is not None:
            there[newest] = held[newest]
        for version, folder in there.items():
            if version in published:
                self.publish_folder(version, folder)
            if version in lent:
                self.lend_folder(version, folder)
        self._highest = max(self._highest, known.get("highest", 0))

    def _remember(self) -> None:
        if self._memo is not None:
            folders = {v: f for v, f in self._folders.items() if v in self._versions or v in self._lent}
            roles = {"published": sorted(self._versions), "lent": sorted(self._lent)}
            self._memo.write({"folders": folders, **roles, "highest": self._highest})

    def put_bucket(self, data: Any, known: str | None = None, fixed: bool = False) -> Bucket:
        """Store one bucket (uint8 array) under this actor's ownership; CheckpointError when there is no room for it.

        `known` is its checksum, where it has just been made.
        """
        import ray
        from ray.exceptions import ObjectStoreFullError, OutOfDiskError

        try:
            return Bucket(data.nbytes, known or checksum(data), (ray.put(data),), fixed)
        except (ObjectStoreFullError, OutOfDiskError) as error:
            raise CheckpointError(
                f"Ray's object store has no room for {data.nbytes / 2**20:.0f} MiB of weights, nor has the disk that it"
                " spills to: give the head node more (ray start --object-store-memory), or free disk space; then resume"
            ) from error

    def publish(self, version: int, buckets: tuple[Bucket, ...]) -> None:
        """Make `version` the newest; raises CheckpointError when the number is not a new one."""
        if self._versions and version <= max(self._versions):
            raise CheckpointError(
                f"weight version {version} was published after version {max(self._versions)}: versions only count up"
            )
        self._versions[version] = buckets
        self._highest = max(self._highest, version)
        for old in sorted(self._versions)[: -self._keep]:
            del self._versions[old]

    def publish_folder(self, version: int, folder: str) -> None:
        """Publish the buckets that `PublishedFolder` wrote, after their checksums; once, however often it is asked."""
        if version in self._versions and self._folders.get(version) == folder:
            return
        self.publish(version, self._put_folder(folder))
        self._folders[version] = folder
        self._remember()

    def lend_folder(self, version: int, folder: str) -> None:
        """Hold the policy of a folder for those that ask for it, in the place of the one lent before."""
        self._lent = {version: self._versions.get(version) or self._put_folder(folder)}
        self._highest = max(self._highest, version)
        self._folders[version] = folder
        self._remember()

    def _put_folder(self, folder: str) -> tuple[Bucket, ...]:
        here = self.fetch_folder(folder)
        held = [bucket for buckets in (self._versions | self._lent).values() for bucket in buckets]
        fixed = {bucket.checksum: bucket for bucket in held if bucket.fixed}

        def put(entry: Mapping[str, Any]) -> Bucket:
            known = entry["checksum"]
            return fixed.get(known) or self.put_bucket(read_bucket(here, entry), known, entry.get("fixed", False))

        with ThreadPoolExecutor(_THREADS) as threads:
            return tuple(threads.map(put, manifest(here)["files"]))

    def vitals(self) -> Vitals:
        return vitals()

    def fetch_folder(self, folder: str) -> Path:
        """Where a published folder lies on this node; what another node has written comes from the run's home."""
        return self._here(folder) if self._home is None else self._home.pull_published(folder)

    def _here(self, folder: str) -> Path:
        return Path(folder) if self._home is None else self._home.folder / folder

    def highest(self) -> int:
        """The highest version that was ever published or lent here."""
        return self._highest

    def newest(self) -> int:
        """The newest version; 0, the model that the samplers were started with, before any publication."""
        return max(self._versions, default=0)

    def buckets(self, version: int) -> tuple[Bucket, ...]:
        """Buckets of a version; raises CheckpointError when it is not kept any more."""
        held = self._versions | self._lent
        if version not in held:
            raise CheckpointError(f"weight version {version} is not in the store, which holds {sorted(held)}")
        return held[version]


def write_bucket_files(folder: Path, version: int, buckets: Iterable[tuple[Bucket, Any]]) -> list[Path]:
    """Check pulled buckets against their checksums and lay them where an engine can map them; all, or none.

    Raises CheckpointError for a bucket that is not what was published, and where there is no room for them.
    """
    pulled = list(buckets)
    paths = [folder / f"larpo-{os.getpid()}-v{version}-{number}.safetensors" for number in range(len(pulled))]

    def write(number: int) -> None:
        bucket, data = pulled[number]
        if not is_intact(data, bucket.checksum):
            raise CheckpointError(
                f"bucket {number} of weight version {version} arrived damaged: its checksum is not {bucket.checksum}"
            )
        paths[number].write_bytes(memoryview(data))

    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(write, range(len(pulled))))
    except BaseException as error:
        for path in paths:  # they may lie in memory
            path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            size = sum(bucket.nbytes for bucket, _ in pulled) / 2**20
            raise CheckpointError(
                f"{folder} has no room for {size:.0f} MiB of weights: give the node more (--shm-size of a container)"
            ) from error
        raise
    return paths


def remove_orphans(folder: Path) -> None:
    """Delete bucket files of processes that are gone: one that was killed could not."""
    for path in folder.glob("larpo-*-v*.safetensors"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with suppress(OSError):  # another user's
                path.unlink(missing_ok=True)
