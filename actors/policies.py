"""Trained policies on disk: where each lies, where its held-out result lies, and which are kept.

The trainer writes all kinds of folder in the same form (`PublishedFolder`): the policy at an iteration's end, which
becomes the next behaviour policy; snapshots within an iteration, which are evaluated and dropped; and publications
within an iteration, which are dropped for the next (`overlap: async`).
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from actors.published import published_version
from larpo.best_policy import Point
from larpo.home import Home

_NAME = re.compile(r"(\d+)(?:-step-(\d+))?")


def policy_folder(run_dir: Path, iteration: int) -> Path:
    """Where the behaviour policy of `iteration` (>= 1) lies: the weights published at the end of the one before."""
    return run_dir / "checkpoints" / f"policy-{iteration:04d}"


def weights_folder(run_dir: Path, point: Point) -> Path:
    """Where the weights of a trained policy lie."""
    if point.step:
        return run_dir / "checkpoints" / f"snapshot-{_name(point)}"
    return policy_folder(run_dir, point.iteration)


def publication_folder(run_dir: Path, point: Point) -> Path:
    """Where weights lie that samplers take within an iteration."""
    return run_dir / "checkpoints" / f"publication-{_name(point)}"


def drop_publications(home: Home, keep: Path | None = None) -> None:
    """Drop all, or those before the newest."""
    for folder in (home.folder / "checkpoints").glob("publication-*[0-9]"):
        if folder != keep:
            home.discard(folder)


def result_file(run_dir: Path, point: Point) -> Path:
    """Where the held-out result of a policy lies."""
    return run_dir / "evaluation" / f"iteration-{_name(point)}.json"


def _name(point: Point) -> str:
    return f"{point.iteration:04d}" + (f"-step-{point.step:08d}" if point.step else "")


def _point(name: str) -> Point:
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name} is not the name of a policy's folder or result")
    return Point(int(found[1]), int(found[2] or 0))


def snapshots(run_dir: Path) -> list[Point]:
    """The snapshots that are on disk, in order of step; one that was cut off while it was written is none."""
    found = (run_dir / "checkpoints").glob("snapshot-*[0-9]/manifest.json")
    return sorted(_point(path.parent.name.removeprefix("snapshot-")) for path in found)


def evaluated_points(run_dir: Path) -> list[Point]:
    """The policies that have a result, in order."""
    found = (run_dir / "evaluation").glob("iteration-*.json")
    return sorted(_point(path.stem.removeprefix("iteration-")) for path in found)


def is_written(run_dir: Path, point: Point) -> bool:
    return (weights_folder(run_dir, point) / "manifest.json").exists()


def highest_version(run_dir: Path) -> int:
    """The highest weight version of the policies on disk; 0 when there are none."""
    kinds = ("policy", "snapshot", "publication")
    folders = [path for kind in kinds for path in (run_dir / "checkpoints").glob(f"{kind}-*[0-9]")]
    versions = [0]
    for folder in folders:
        with suppress(FileNotFoundError):  # dropped meanwhile
            versions.append(published_version(folder))
    return max(versions)


def roll_back(home: Home, iteration: int, step: int) -> None:
    """The run goes on from a checkpoint in `iteration`, after `step`: what lay behind it never was.

    A snapshot comes after a checkpoint of its own step, so this finds nothing unless a checkpoint was damaged.
    """
    for point in snapshots(home.folder):
        if point.step > step:
            home.discard(weights_folder(home.folder, point))
    for point in evaluated_points(home.folder):
        if point.step > step or point.iteration > iteration:
            home.discard(result_file(home.folder, point))


def drop_policies(home: Home, iteration: int, keep: int, best: Point | None) -> None:
    """Drop what neither a resumed run nor its end needs, when the behaviour policy of `iteration` is written.

    Kept are the policies of iterations that the newest `keep` checkpoints go on from (an iteration ends with one at
    least), snapshots that wait for their evaluation, and the best policy so far.
    """
    evaluated = evaluated_points(home.folder)
    old = [Point(number) for number in range(1, iteration + 1 - keep)]
    for point in [*old, *(snapshot for snapshot in snapshots(home.folder) if snapshot in evaluated)]:
        folder = weights_folder(home.folder, point)
        if point != best and folder.exists():
            home.discard(folder)
