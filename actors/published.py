"""Published policies on disk: folders of buckets, each the bytes of a safetensors file, with their checksums.

A folder appears whole, and its manifest lists what is in it. A bucket is *fixed* where training leaves its tensors as
they are, as LoRA does with embeddings: who has it from an earlier version of the run need not take it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from larpo.errors import CheckpointError
from larpo.storage import inside

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"  # of a published folder, written last


def checksum(data: Any) -> str:
    """XXH3 of 128 bits, in hex: against damage, not against forgery. It reads faster than weights are copied."""
    return xxhash.xxh3_128_hexdigest(data)


def is_intact(data: Any, recorded: str) -> bool:
    """Whether it still has its recorded checksum; SHA-256 in runs begun before there was another."""
    is_older = len(recorded) == hashlib.sha256().digest_size * 2
    return recorded == (hashlib.sha256(data).hexdigest() if is_older else checksum(data))


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

    def add(self, data: Any, fixed: bool = False) -> None:
        name = f"bucket-{len(self._files):05d}.safetensors"
        write_durably(self._partial / name, data)
        self._files.append({"name": name, "checksum": checksum(data), "fixed": fixed})

    def put_beside(self, name: str, data: Any) -> None:
        """A file that goes with the version and is not sent to the samplers."""
        write_durably(self._partial / name, data)
        self._beside[name] = checksum(data)

    def close(self) -> None:
        told = {"version": self._version, "files": self._files, "beside": self._beside}
        write_durably(self._partial / MANIFEST, json.dumps(told).encode())
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.rename(self._folder)


def read_buckets(folder: Path) -> Iterator[Any]:
    """Buckets of a published folder; raises CheckpointError on a checksum that does not match."""
    for entry in manifest(folder)["files"]:
        yield read_bucket(folder, entry)


def read_bucket(folder: Path, entry: Mapping[str, Any]) -> Any:
    import numpy

    path = folder / inside(entry["name"])
    empty = path.stat().st_size == 0  # which cannot be mapped
    data = numpy.empty(0, numpy.uint8) if empty else numpy.memmap(path, mode="r").view(numpy.ndarray)
    if not is_intact(data, entry["checksum"]):
        raise CheckpointError(f"{folder / entry['name']} is damaged: its checksum is not the recorded one")
    return data


def published_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters of a published folder, in one order for every process: a bucket's by name."""
    from safetensors.torch import load

    for data in read_buckets(folder):
        yield from sorted(load(data.tobytes()).items())


def read_beside(folder: Path) -> dict[str, bytes]:
    """What `PublishedFolder.put_beside` wrote, by name; raises CheckpointError on a checksum that does not match."""
    found = {}
    for name, recorded in manifest(folder).get("beside", {}).items():
        found[name] = (folder / inside(name)).read_bytes()
        if not is_intact(found[name], recorded):
            raise CheckpointError(f"{folder / name} is damaged: its checksum is not the recorded one")
    return found


def published_version(folder: Path) -> int:
    return int(manifest(folder)["version"])


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def write_durably(path: Path, data: Any) -> None:
    """Write and flush to disk; raises OSError (disk full) before anything depends on the file."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
