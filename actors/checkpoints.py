"""Checkpoints of the trainer: a folder counts only when its manifest, written last, matches every file's checksum."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.weights import write_durably
from actors.work import Journal
from larpo.errors import CheckpointError

MANIFEST = "manifest.json"
STATE = "state.json"


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint holds beside the optimizer's own files."""

    step: int
    version: int  # weight version that the samplers had
    steps_since_publish: int
    journal: Journal


def checkpoint_folder(root: Path, position: int) -> Path:
    return root / f"position-{position:08d}"


def commit_checkpoint(folder: Path, state: TrainerState) -> None:
    """Make a written folder count: the state, then the manifest with the checksums of all files, last.

    Raises CheckpointError when the disk is full.
    """
    try:
        for stale in folder.glob(MANIFEST + "*"):  # of a checkpoint at this position that was passed over
            stale.unlink()
        write_durably(folder / STATE, json.dumps(asdict(state)).encode())
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {str(path.relative_to(folder)): file_checksum(path) for path in paths}
        partial = folder / (MANIFEST + ".partial")
        write_durably(partial, json.dumps({"files": files}).encode())
        partial.rename(folder / MANIFEST)
    except OSError as error:
        raise CheckpointError(unwritten(folder, error)) from error


def unwritten(folder: Path, error: Exception) -> str:
    """What a user reads when a checkpoint could not be written."""
    return f"could not write the checkpoint {folder}: {error}; the one before is whole. Free disk space, then resume"


def newest_checkpoint(root: Path) -> tuple[Path, TrainerState, tuple[str, ...]] | None:
    """The newest whole checkpoint, its state, and why newer ones were passed over; None when there is none.

    Raises CheckpointError when there are checkpoints and none is whole.
    """
    damaged: list[str] = []
    folders = sorted(root.glob("position-*"), reverse=True)
    for folder in folders:
        if not (folder / MANIFEST).exists():
            continue  # cut off while it was written
        problem = _damage(folder)
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


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` committed checkpoints, and what was cut off before the newest."""
    committed = sorted(path.parent for path in root.glob(f"position-*/{MANIFEST}"))
    kept = set(committed[-keep:])
    for folder in root.glob("position-*"):
        if folder not in kept and committed and folder < committed[-1]:
            shutil.rmtree(folder, ignore_errors=True)


def file_checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (ValueError, KeyError) as error:
        return f"its manifest cannot be read ({error})"
    for name, recorded in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_checksum(folder / name) != recorded:
            return f"{name} is damaged (its SHA-256 is not the recorded one)"
    return None
