"""A run on a machine: opened from its home, begun there, and pushed at its end; or only read.

A working folder is of one session of the run. When the home is of another one, the run has gone on elsewhere: what
lies in the folder is old, and the home counts. When it is of the same, the folder may hold what could not be pushed.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from larpo.errors import DataError, StorageError
from larpo.home import (
    CHECKPOINTS,
    MANIFEST,
    SESSION,
    Home,
    all_of,
    files_below,
    folders_with_manifest,
    manifest_files,
    working_folder,
)
from larpo.storage import Storage, check_location, is_uri

CHECK_S = 15.0  # until storage that does not answer is refused, before anything starts
_LOCK, _CONFIG = ".lock", "config.yaml"
_REFERENCES = f"{CHECKPOINTS}/reference_log_probs.json"
_REWRITTEN = ("metrics.jsonl", "rewards.sqlite", "report.html", "wandb_id", _REFERENCES)
_LARGE = ("model", "adapter", "wandb")  # not needed to go on


@contextmanager
def before_start() -> Iterator[None]:
    """Storage that cannot be used is an input that cannot be used, as long as nothing has started."""
    try:
        yield
    except StorageError as error:
        raise DataError(f"{error}") from error


def check_new(uri: str) -> None:
    """DataError when the storage cannot be reached, or another run lies there; writes nothing."""
    with before_start():
        storage = Storage(uri, CHECK_S)
        storage.check()
        if storage.sizes():
            raise DataError(
                f"{uri} already holds another run; choose another run.name, or go on with that one: --resume"
            )


def open_run(uri: str) -> Path:
    """The working folder of an interrupted run, with what is needed to go on but weights; DataError when none is there.

    Nothing is written at the URI.
    """
    with before_start():
        there, session = _run_at(uri)
        home = Home(working_folder(uri), uri)
        if session is None or _text(home.folder / SESSION) != session:
            _clear(home.folder)
        wanted = [name for name in there if _is_light(name) and not (home.folder / name).exists()]
        all_of(home.pull, [home.folder / name for name in wanted])
        return home.folder


def read_run(location: str | Path, *also: str) -> Path:
    """A folder with what there is to read of a run, its own or a copy: all but checkpoints, and the folders `also`."""
    if not is_uri(location):
        return Path(location)
    with before_start():
        uri = str(location)
        there, _ = _run_at(uri)
        copy = Home(working_folder(uri, "copies"), uri)
        wanted = {name: size for name, size in there.items() if _is_light(name) or name.split("/")[0] in also}
        for file in files_below(copy.folder):
            name = copy.name(file)
            if wanted.get(name) != file.stat().st_size or _is_rewritten(name):
                file.unlink()
        all_of(copy.pull, [copy.folder / name for name in wanted if not (copy.folder / name).exists()])
        return copy.folder


def new_folder(home: Home) -> None:
    """A new run's working folder is empty: what lies there is of one that its home has not any more."""
    if home.elsewhere:
        _clear(home.folder)


def begin(home: Home) -> None:
    """A session of the run begins on this machine: the home gets what only this folder has, then the folder its index.

    Raises DataError when the home cannot be written.
    """
    if not home.elsewhere:
        return
    home.folder.mkdir(parents=True, exist_ok=True)
    with before_start():
        push_rest(home)
        there = folders_with_manifest(home.storage.sizes(CHECKPOINTS))
        home.push(
            *(folder for folder in home.checkpoint_folders() if home.name(folder) not in there and _whole(folder))
        )
        home.pull_index()
        session = uuid.uuid4().hex
        home.storage.put_bytes(session.encode(), SESSION)
        (home.folder / SESSION).write_text(session)


def join(home: Home) -> None:
    """A node takes part in the session that has begun: what its working folder holds of another one goes."""
    session = (home.storage.read(SESSION) or b"").decode()
    if _text(home.folder / SESSION) != session:
        _clear(home.folder)
        home.folder.mkdir(parents=True, exist_ok=True)
        (home.folder / SESSION).write_text(session)


def push_rest(home: Home) -> None:
    """What lies in the folder, beside checkpoints and policies, and not at the home, or may have been written again."""
    if not home.elsewhere:
        return
    there = home.storage.sizes()
    files = {home.name(path): path for path in files_below(home.folder)}
    home.push(
        *(
            path
            for name, path in files.items()
            if _is_kept(name) and (there.get(name) != path.stat().st_size or _is_rewritten(name))
        )
    )


def fence(home: Home) -> Callable[[], None]:
    """A check that no other process has taken the run over since; StorageError when one has."""
    mine = home.storage.read(SESSION) if home.elsewhere else None

    def check() -> None:
        if home.elsewhere and home.storage.read(SESSION) != mine:
            raise StorageError(f"{home.uri}: another process has resumed this run since; leave it to that one")

    return check


def _run_at(uri: str) -> tuple[dict[str, int], str | None]:
    """The files of a run and the session that they are of; DataError when there is no run."""
    there = Storage(check_location(uri), CHECK_S).sizes()
    if _CONFIG not in there:
        Storage(uri, CHECK_S).check()
        raise DataError(f"{uri} is not a run folder: it has no {_CONFIG}; give the one that a run printed")
    session = Storage(uri).read(SESSION)
    return there, None if session is None else session.decode()


def _clear(folder: Path) -> None:
    """Empty a working folder; its lock stays, which a process may hold."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def _text(file: Path) -> str | None:
    return file.read_text() if file.is_file() else None


def _whole(folder: Path) -> bool:
    """Whether every file that a folder's manifest names is on this node."""
    manifest = folder / MANIFEST
    return manifest.is_file() and all((folder / name).is_file() for name in manifest_files(folder))


def _is_light(name: str) -> bool:
    return name == _REFERENCES or name.split("/")[0] not in (CHECKPOINTS, *_LARGE)


def _is_kept(name: str) -> bool:
    """Whether a file is one of the run's, and of those that are pushed one by one."""
    parts = PurePosixPath(name).parts
    if any(part.startswith(".") for part in parts) or name.endswith((".partial", ".tmp")) or name == SESSION:
        return False
    return parts[0] != CHECKPOINTS or name == _REFERENCES


def _is_rewritten(name: str) -> bool:
    return name in _REWRITTEN or name.startswith("evaluation/")
