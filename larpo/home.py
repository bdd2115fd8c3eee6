"""Where a run durably lies: the folder that it is worked on in, or a URI to which whole files are pushed.

Everything works on a plain local folder. With a folder in `run.output_dir` that folder is the run's home, on one
machine or on a file system that every node mounts, and nothing here does anything. With a URI each node has a working
folder in larpo's cache: what begins to count (a part of the lists, a checkpoint, a policy, a result) is pushed when it
is whole, a manifest after the files that it names, and a fresh node pulls what it needs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from larpo.config import Run, Timeouts
from larpo.errors import StorageError
from larpo.policy import cache_folder
from larpo.storage import Storage, check_location, inside, is_uri, joined

MANIFEST, STATE = "manifest.json", "state.json"  # of a checkpoint or a policy: the checksums of its files; its journal
CHECKPOINTS = "checkpoints"  # the folder of a run that holds checkpoints, policies and snapshots
SESSION = "session"  # of which session of the run a folder is
_AT_ONE_TIME = 8  # files on their way
_WITH_MANIFEST = ("position-*[0-9]", "policy-*[0-9]", "snapshot-*[0-9]")


class Placed(Protocol):
    """What of a configuration says where a run lies."""

    @property
    def run(self) -> Run: ...

    @property
    def timeouts(self) -> Timeouts: ...


@dataclass(frozen=True)
class Home:
    """A run's working folder on this node, and the URI where it durably lies, if it is not the folder itself."""

    folder: Path
    uri: str = ""
    limit_s: float = 300.0

    @property
    def elsewhere(self) -> bool:
        return bool(self.uri)

    @property
    def location(self) -> str:
        """Where a user finds the run: what --resume takes."""
        return self.uri or str(self.folder)

    @property
    def storage(self) -> Storage:
        return Storage(self.uri, self.limit_s)

    def on_this_node(self) -> Home:
        """The same home, seen from a node that may not be the driver's."""
        return replace(self, folder=working_folder(self.uri)) if self.elsewhere else self

    def name(self, path: Path | str) -> str:
        """A path of the run as every node understands it: below its working folder, where each has its own."""
        return (self.folder / path).relative_to(self.folder).as_posix() if self.elsewhere else str(path)

    def place(self, path: Path | str) -> str:
        """Where a user finds a file or folder of the run."""
        return joined(self.uri, self.name(path)) if self.elsewhere else str(self.folder / path)

    # To the home.

    def push(self, *paths: Path) -> None:
        """Files and folders that begin to count now; of a folder, its manifest last.

        Raises StorageError when they cannot be pushed: they stay where they are.
        """
        if not self.elsewhere:
            return
        files = [file for path in paths for file in (files_below(path) if path.is_dir() else [path])]
        last = [file for file in files if file.name == MANIFEST]
        try:
            for group in ([file for file in files if file not in last], last):
                all_of(lambda file: self.storage.put(file, self.name(file)), group)
        except StorageError as error:
            raise StorageError(
                f"{error}. Nothing that was computed is lost: it lies in {self.folder} too, and resuming on this"
                " machine pushes it"
            ) from error

    def push_below(self, folder: str) -> None:
        """The files below a folder of the run that its home lacks."""
        if self.elsewhere:
            there = self.storage.sizes(folder)
            found = files_below(self.folder / folder)
            self.push(*(path for path in found if self.name(path) not in there and not path.name.startswith(".")))

    def push_copy(self, path: Path) -> None:
        """A file that others go on writing, as it is now."""
        if self.elsewhere and path.is_file():
            self.storage.put_bytes(path.read_bytes(), self.name(path))

    def discard(self, path: Path) -> None:
        """Delete a file, or a folder with its manifest first, here and at the home."""
        if self.elsewhere:
            self.delete(self.name(path))
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Delete a file, or a folder (whose name has no suffix) with its manifest first, at the home."""
        if Path(name).suffix:
            return self.storage.delete(name)
        self.storage.delete(f"{name}/{MANIFEST}")
        self.storage.delete_below(name)

    # From the home.

    def pull(self, path: Path) -> bool:
        """One file; False when the home has none."""
        try:
            self.storage.get(self.name(path), path)
        except FileNotFoundError:
            return False
        return True

    def pull_below(self, *folders: str) -> None:
        """The files below folders of the run that this node lacks."""
        if not self.elsewhere:
            return
        there = [name for folder in folders for name in self.storage.sizes(folder)]
        all_of(self.pull, [self.folder / name for name in there if not (self.folder / name).exists()])

    def pull_published(self, path: Path | str) -> Path:
        """A published policy, whole on this node; returns where it lies here."""
        folder = self.folder / path
        if self.elsewhere:
            self._pull_manifest(folder)
            missing = [folder / name for name in manifest_files(folder) if not (folder / name).is_file()]
            all_of(self.pull, missing)
        return folder

    def pull_index(self) -> None:
        """Which checkpoints and policies there are: their manifests and states, here as at the home."""
        there = self.storage.sizes(CHECKPOINTS)
        self.drop_unknown(there)
        all_of(self._pull_manifest, [self.folder / name for name in folders_with_manifest(there)])

    def drop_unknown(self, there: Iterable[str]) -> None:
        """Remove this node's checkpoints and policies that are not among the home's files."""
        known = folders_with_manifest(there)
        for folder in self.checkpoint_folders():
            if self.name(folder) not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def checkpoint_folders(self) -> list[Path]:
        """Checkpoints, policies and snapshots on this node, whole or not."""
        return [path for pattern in _WITH_MANIFEST for path in sorted((self.folder / CHECKPOINTS).glob(pattern))]

    def _pull_manifest(self, folder: Path) -> None:
        """The manifest of a folder; what lies in it here goes when it is of another one."""
        file = folder / MANIFEST
        data = self.storage.read(self.name(file))
        if data is None:
            raise StorageError(f"{self.place(folder)} is not there any more: another process may be at work on the run")
        if not file.is_file() or file.read_bytes() != data:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            file.with_suffix(".partial").write_bytes(data)
            file.with_suffix(".partial").rename(file)
        if folder.name.startswith("position-") and not (folder / STATE).is_file():
            self.pull(folder / STATE)


def home_of(config: Placed, folder: Path) -> Home:
    """The home of a run that is worked on in `folder`, which has the run's name."""
    output, limit = config.run.output_dir, config.timeouts.storage_s
    return Home(folder, joined(output, folder.name), limit) if is_uri(output) else Home(folder)


def working_folder(uri: str, kind: str = "runs") -> Path:
    """Where this node works on the run at a URI, or, of another kind, has a copy of it."""
    parts = urlsplit(check_location(uri))
    return cache_folder() / kind / parts.scheme / (parts.netloc or "local") / parts.path.strip("/")


def all_of(call: Callable, items: Iterable) -> None:
    """`call` on every item, several at one time; raises the first error."""
    with ThreadPoolExecutor(_AT_ONE_TIME) as pool:
        list(pool.map(call, items))


def files_below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]


def folders_with_manifest(names: Iterable[str]) -> set[str]:
    return {name.removesuffix(f"/{MANIFEST}") for name in names if name.endswith(f"/{MANIFEST}")}


def manifest_files(folder: Path) -> list[str]:
    """The files that the manifest of a checkpoint or a policy names; StorageError for one outside the folder."""
    manifest = json.loads((folder / MANIFEST).read_text())
    names = [entry if isinstance(entry, str) else entry["name"] for entry in manifest["files"]]
    return [inside(name) for name in (*names, *manifest.get("beside", {}))]
