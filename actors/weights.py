"""Weights on their way from the trainer to the samplers.

A published version is a list of buckets. A bucket is the bytes of a safetensors file: the same bytes lie on disk (for
resuming), in the Ray object store (owned by the `WeightStore`, so that they outlive the worker that put them) and in
the file that a sampler hands to its engine. Each carries its SHA-256.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.memo import Memo
from actors.titles import show_title
from actors.vitals import Vitals, vitals
from larpo.errors import CheckpointError
from larpo.storage import inside

if TYPE_CHECKING:
    import torch

    from larpo.home import Home


MANIFEST = "manifest.json"  # of a published folder, written last
_THREADS = 4  # buckets that are checked and copied at a time: neither holds Python's lock


@dataclass(frozen=True)
class Bucket:
    """One bucket: size in bytes, checksum, and the object reference, wrapped so that Ray passes it as one."""

    nbytes: int
    checksum: str
    reference: tuple[Any]


class WeightStore:
    """The actor that owns published weights: the newest, and the one before, which samplers may still be held at.

    Beside them it lends one policy at a time to samplers that evaluate it: no behaviour policy, and never the newest.

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
        newest = max(held.keys() - set(known.get("lent", ())), default=None)
        there = {v: folder for v, folder in sorted(held.items()) if (self._here(folder) / MANIFEST).exists()}
        if newest is not None:
            there[newest] = held[newest]
        for version, folder in there.items():
            if version in known["lent"]:
                self.lend_folder(version, folder)
            else:
                self.publish_folder(version, folder)
        self._highest = max(self._highest, known.get("highest", 0))

    def _remember(self) -> None:
        if self._memo is not None:
            folders = {v: f for v, f in self._folders.items() if v in self._versions or v in self._lent}
            self._memo.write({"folders": folders, "lent": sorted(self._lent), "highest": self._highest})

    def put_bucket(self, data: Any, known: str | None = None) -> Bucket:
        """Store one bucket (uint8 array) under this actor's ownership; CheckpointError when there is no room for it.

        `known` is its checksum, where it has just been made.
        """
        import ray
        from ray.exceptions import ObjectStoreFullError, OutOfDiskError

        try:
            return Bucket(data.nbytes, known or checksum(data), (ray.put(data),))
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
        """Hold the policy of a folder for evaluation, in the place of the one lent before."""
        self._lent = {version: self._put_folder(folder)}
        self._highest = max(self._highest, version)
        self._folders[version] = folder
        self._remember()

    def _put_folder(self, folder: str) -> tuple[Bucket, ...]:
        here = self.fetch_folder(folder)

        def put(entry: Mapping[str, str]) -> Bucket:
            return self.put_bucket(_read_bucket(here, entry), entry["checksum"])

        with ThreadPoolExecutor(_THREADS) as threads:
            return tuple(threads.map(put, _manifest(here)["files"]))

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


def checksum(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def split_into_buckets(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Parameter names, in order, in buckets of at most `limit` bytes; a larger parameter gets one of its own."""
    buckets: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not buckets or size > room:
            buckets.append([])
            room = limit
        buckets[-1].append(name)
        room -= size
    return buckets


def encode_bucket(tensors: Mapping[str, torch.Tensor]) -> Any:
    """The bytes of a safetensors file, as a uint8 array."""
    import numpy
    from safetensors.torch import save

    return numpy.frombuffer(save({name: tensor.contiguous() for name, tensor in tensors.items()}), dtype=numpy.uint8)


class PublishedFolder:
    """Writes a version's buckets to `folder`, which appears whole or not at all."""

    def __init__(self, folder: Path, version: int) -> None:
        self._folder, self._version = folder, version
        self._partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._files: list[dict[str, Any]] = []
        self._beside: dict[str, str] = {}

    def add(self, data: Any) -> None:
        name = f"bucket-{len(self._files):05d}.safetensors"
        write_durably(self._partial / name, data)
        self._files.append({"name": name, "checksum": checksum(data)})

    def put_beside(self, name: str, data: Any) -> None:
        """A file that goes with the version and is not sent to the samplers."""
        write_durably(self._partial / name, data)
        self._beside[name] = checksum(data)

    def close(self) -> None:
        manifest = {"version": self._version, "files": self._files, "beside": self._beside}
        write_durably(self._partial / MANIFEST, json.dumps(manifest).encode())
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.rename(self._folder)


def read_buckets(folder: Path) -> Iterator[Any]:
    """Buckets of a published folder; raises CheckpointError on a checksum that does not match."""
    for entry in _manifest(folder)["files"]:
        yield _read_bucket(folder, entry)


def _read_bucket(folder: Path, entry: Mapping[str, str]) -> Any:
    import numpy

    data = numpy.fromfile(folder / inside(entry["name"]), dtype=numpy.uint8)
    if checksum(data) != entry["checksum"]:
        raise CheckpointError(f"{folder / entry['name']} is damaged: its SHA-256 is not the recorded one")
    return data


def published_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters of a published folder, in one order for every process: a bucket's by name."""
    from safetensors.torch import load

    for data in read_buckets(folder):
        yield from sorted(load(data.tobytes()).items())


def read_beside(folder: Path) -> dict[str, bytes]:
    """What `PublishedFolder.put_beside` wrote, by name; raises CheckpointError on a checksum that does not match."""
    found = {}
    for name, recorded in _manifest(folder).get("beside", {}).items():
        found[name] = (folder / name).read_bytes()
        if checksum(found[name]) != recorded:
            raise CheckpointError(f"{folder / name} is damaged: its SHA-256 is not the recorded one")
    return found


def published_version(folder: Path) -> int:
    return int(_manifest(folder)["version"])


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def write_durably(path: Path, data: Any) -> None:
    """Write and flush to disk; raises OSError (disk full) before anything depends on the file."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_bucket_files(folder: Path, version: int, buckets: Iterable[tuple[Bucket, Any]]) -> list[Path]:
    """Check pulled buckets against their checksums and lay them where an engine can map them; all, or none.

    Raises CheckpointError for a bucket that is not what was published, and where there is no room for them.
    """
    pulled = list(buckets)
    paths = [folder / f"larpo-{os.getpid()}-v{version}-{number}.safetensors" for number in range(len(pulled))]

    def write(number: int) -> None:
        bucket, data = pulled[number]
        found = checksum(data)
        if found != bucket.checksum:
            raise CheckpointError(
                f"bucket {number} of weight version {version} arrived damaged:"
                f" its SHA-256 is {found}, published as {bucket.checksum}"
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
            path.unlink(missing_ok=True)
