"""Checkpoints of the trainer: a folder counts only when its manifest, written last, matches every file's checksum."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.published import write_durably
from actors.work import Journal
from larpo.errors import CheckpointError
from larpo.home import CHECKPOINTS, MANIFEST, STATE, Home


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint holds beside the optimizer's own files."""

    step: int
    version: int  # weight version that the samplers had
    steps_since_publish: int
    journal: Journal


def checkpoint_folder(root: Path, position: int) -> Path:
    return root / f"position-{position:08d}"


def commit_checkpoint(folder: Path, state: TrainerState, files: Mapping[str, str]) -> None:
    """Make a written folder count: the state, then the manifest, last.

    `files` has the checksums of what the ranks have written, which need not all be in this folder. Raises
    CheckpointError when the disk is full.
    """
    try:
        for stale in folder.glob(MANIFEST + "*"):  # of a checkpoint at this position that was passed over
            stale.unlink()
        write_durably(folder / STATE, json.dumps(asdict(state)).encode())
        partial = folder / (MANIFEST + ".partial")
        named = {**files, STATE: file_checksum(folder / STATE)}
        write_durably(partial, json.dumps({"files": named}).encode())
        partial.rename(folder / MANIFEST)
    except OSError as error:
        raise CheckpointError(unwritten(folder, error)) from error


def unwritten(folder: Path, error: Exception) -> str:
    """What a user reads when a checkpoint could not be written."""
    return f"could not write the checkpoint {folder}: {error}; the one before is whole. Free disk space, then resume"


def checksums(folder: Path, counts: Callable[[str], bool] = lambda name: True) -> dict[str, str]:
    """SHA-256 of the files below a checkpoint's folder that count, by name; its state and manifest are not of them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [str(path.relative_to(folder)) for path in paths]
    return {
        name: file_checksum(folder / name)
        for name in names
        if name != STATE and not name.startswith(MANIFEST) and counts(name)
    }


Found = tuple[Path, TrainerState, tuple[str, ...]]  # a checkpoint, its state, why newer ones were passed over


def newest_checkpoint(root: Path, problem_of: Callable[[Path], str | None] | None = None) -> Found | None:
    """The newest whole checkpoint, its state, and why newer ones were passed over; None when there is none.

    `problem_of` tells why one is not whole, where it is not all in its folder. Raises CheckpointError when there are
    checkpoints and none is whole.
    """
    problem_of = problem_of or damage
    damaged: list[str] = []
    folders = sorted(root.glob("position-*"), reverse=True)
    for folder in folders:
        if not (folder / MANIFEST).exists():
            continue  # cut off while it was written
        problem = problem_of(folder)
        if problem is None:
            return folder, read_state(folder), tuple(damaged)
        damaged.append(f"{folder.name}: {problem}")
    if damaged:
        raise CheckpointError(
            f"no checkpoint under {root} is whole ({'; '.join(damaged)}); start a new run, or restore the folder"
        )
    return None


def read_state(folder: Path) -> TrainerState:
    state: Mapping[str, Any] = json.loads((folder / STATE).read_text())
    journal = dict(state["journal"])
    journal["consumed"] = {key: tuple(ids) for key, ids in journal["consumed"].items()}
    return TrainerState(**{**state, "journal": Journal(**journal)})


def newest_at(home: Home) -> Found | None:
    """The newest checkpoint that is whole at the run's home; what is not on this node is read through there."""
    root = home.folder / CHECKPOINTS
    if not home.elsewhere:
        return newest_checkpoint(root)

    def found(folder: Path, name: str, recorded: str) -> str | None:
        here = checksum_here(folder, name, recorded)
        return here if here == recorded else home.storage.checksum(home.name(folder / name))

    return newest_checkpoint(root, lambda folder: damage(folder, found))


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` committed checkpoints, and what was cut off before the newest."""
    files = (str(path.relative_to(root)) for path in root.glob("position-*/*"))
    for name in outdated([*files, *(path.name for path in root.glob("position-*"))], keep):
        shutil.rmtree(root / name, ignore_errors=True)


def outdated(names: Iterable[str], keep: int) -> list[str]:
    """Of checkpoints by the names of their files: those that are not among the newest `keep`, whole or cut off."""
    found = [name.split("/") for name in names if name.startswith("position-")]
    committed = sorted({folder for folder, *inside in found if inside == [MANIFEST]})
    return sorted({folder for folder, *_ in found if committed and folder < committed[-1]} - set(committed[-keep:]))


def file_checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_here(folder: Path, name: str, recorded: str) -> str | None:
    """What a checkpoint's file has in this folder; None when it is not there."""
    return file_checksum(folder / name) if (folder / name).is_file() else None


def damage(
    folder: Path,
    checksum_of: Callable[[Path, str, str], str | None] = checksum_here,
    counts: Callable[[str], bool] = lambda name: True,
) -> str | None:
    """Why a checkpoint cannot be trusted: of the files that count, what is missing or has another checksum."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (ValueError, KeyError) as error:
        return f"its manifest cannot be read ({error})"
    for name, recorded in files.items():
        found = checksum_of(folder, name, recorded) if counts(name) else recorded
        if found is None:
            return f"{name} is missing"
        if found != recorded:
            return f"{name} is damaged (its SHA-256 is not the recorded one)"
    return None
