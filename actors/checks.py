"""What the doctor makes of what it has seen: one line a check. Pure functions, nothing here knows Ray."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from actors.probe import NodeReport

GIB = 2**30
MUST_AGREE = ("python", "ray", "torch", "larpo")  # where nodes that differ cannot work together
LATE_S, WRONG_S = 2.0, 300.0  # clocks: logs are hard to read; S3 refuses requests from 15 minutes on
FULL = 0.95  # of a disk: Ray spills no object onto one that is fuller
LITTLE_DISK, LITTLE_SHM = 10 * GIB, GIB // 4
DRIVER = 580  # NVIDIA's for CUDA 13, which locks/gpu.lock brings


@dataclass(frozen=True)
class Line:
    """One check: what was seen, and beside a failure or a warning what to do."""

    level: Literal["ok", "warn", "FAIL"]
    check: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<5} {self.check:<13} {self.text}" + (f". {self.advice}" if self.advice else "")


def ok(check: str, text: str) -> Line:
    return Line("ok", check, text)


def warn(check: str, text: str, advice: str) -> Line:
    return Line("warn", check, text, advice)


def fail(check: str, text: str, advice: str) -> Line:
    return Line("FAIL", check, text, advice)


def check_versions(reports: Sequence[NodeReport], needed: Sequence[str]) -> list[Line]:
    """`needed`: packages that the plan cannot do without on the nodes where its actors run."""
    lines = []
    for package in reports[0].versions:
        by_version: dict[str, list[str]] = {}
        for report in reports:
            by_version.setdefault(_public(report.versions.get(package, "")), []).append(report.node)
        lines += _versions_of(package, by_version, needed)
    gpu_nodes = [report.node for report in reports if report.gpus and not report.versions.get("flash-attn")]
    if gpu_nodes:
        text = f"flash-attn is not on {_some(gpu_nodes)}"
        lines.append(
            warn("versions", text, "Install locks/gpu.lock there: plain causal rows take a slower kernel without it")
        )
    for driver, nodes in _old_drivers(reports).items():
        advice = f"CUDA 13 of locks/gpu.lock wants {DRIVER} or newer: renew it there"
        lines.append(fail("versions", f"NVIDIA's driver is {driver} on {_some(nodes)}", advice))
    if all(line.level == "ok" for line in lines):
        said = ", ".join(f"{name} {version}" for name, version in reports[0].versions.items() if version)
        return [ok("versions", f"{said}; the same on {_count(reports)}")]
    return [line for line in lines if line.level != "ok"]


def _old_drivers(reports: Sequence[NodeReport]) -> dict[str, list[str]]:
    """{version: nodes that have it}, of those that are too old."""
    found: dict[str, list[str]] = {}
    for report in reports:
        major = report.driver.partition(".")[0]
        if major.isdigit() and int(major) < DRIVER:
            found.setdefault(report.driver, []).append(report.node)
    return found


def _versions_of(package: str, by_version: Mapping[str, Sequence[str]], needed: Sequence[str]) -> list[Line]:
    missing, lines = by_version.get("", ()), []
    if missing and package in needed:
        advice = "Install locks/cpu.lock or locks/gpu.lock there"
        lines.append(fail("versions", f"{package} is not on {_some(missing)}", advice))
    there = {version: nodes for version, nodes in by_version.items() if version}
    if len(there) > 1:
        text = f"{package} differs: " + ", ".join(f"{version} on {_some(nodes)}" for version, nodes in there.items())
        if package == "larpo":
            lines.append(fail("versions", text, "Give every node the same code: submit it with --working-dir"))
        elif package in MUST_AGREE:
            lines.append(fail("versions", text, "Give every node the same image, or install the same lock file"))
        else:
            lines.append(warn("versions", text, "Install the same lock file on every node"))
    return lines or [ok("versions", package)]


def _public(version: str) -> str:
    """Without the build: a head without GPUs may have torch's CPU build."""
    return version.partition("+")[0]


def check_memory(
    reports: Sequence[NodeReport],
    needed: Mapping[str, tuple[int, float]],
    *,
    on_gpus: bool,
    more_may_come: bool = False,
) -> list[Line]:
    """`needed`: {actor: (how many, bytes of each)}, of the actors that are on GPUs, or those that are not.

    What is needed is an estimate, so that only what is there in all, used or not, makes it a failure; and not even that
    where an autoscaler may bring more nodes.
    """
    kind, advice = "memory", "Lower what the recipe asks for (samplers.cpu_kv_cache_gib, training.chunk_tokens, LoRA)"
    wanted = sum(count * size for count, size in needed.values())
    if not wanted:
        return []
    told = ", ".join(f"{count} x {name} {_gib(size)}" for name, (count, size) in needed.items())
    largest = max(size for _, size in needed.values())
    if on_gpus:
        rooms = [size for report in reports for size in report.gpus]
        free, kind = sum(rooms), "GPU memory"
    else:
        rooms, free = [report.memory for report in reports], sum(report.memory_free for report in reports)
    if not rooms:
        return [warn(kind, f"no GPU is there yet; {told} will be needed", "The autoscaler has to bring some")]
    if wanted > sum(rooms) or largest > max(rooms):
        text = f"{told} needed by estimate, {_gib(sum(rooms))} there in all, {_gib(max(rooms))} at most in one place"
        if more_may_come:
            return [warn(kind, text, "The autoscaler has to bring more")]
        return [fail(kind, text, f"{advice}, raise training.zero_stage, or use more or larger nodes")]
    if wanted > free:
        text = f"{told} needed by estimate, {_gib(free)} of {_gib(sum(rooms))} free"
        return [warn(kind, text, "End what else runs there")]
    return [ok(kind, f"{told} needed by estimate, {_gib(free)} free")]


def check_disk(reports: Sequence[NodeReport]) -> list[Line]:
    """Where Ray keeps its logs, and objects that do not fit into memory."""
    lines = []
    for report in reports:
        told = f"{_gib(report.disk_free)} of {_gib(report.disk)} free on {report.node}"
        if report.disk and report.disk_free < (1 - FULL) * report.disk:
            advice = "Free some, or start Ray with another --temp-dir: onto a disk this full it spills nothing"
            lines.append((fail if report.disk_free < GIB else warn)("disk", told, advice))
        elif report.disk_free < LITTLE_DISK:
            lines.append(warn("disk", told, "Logs and spilled objects go there; free some"))
    least = min(reports, key=lambda report: report.disk_free)
    return lines or [ok("disk", f"{_gib(least.disk_free)} free for Ray on {least.node}, which has least")]


def check_run_disk(free: int, wanted: float, where: str) -> list[Line]:
    """Whether a run's folder has room to the end."""
    told = f"about {_gib(wanted)} needed for the run in {where}, {_gib(free)} free"
    if wanted > free:
        return [fail("run folder", told, "Give another run.output_dir, or lower checkpoints.keep")]
    return [ok("run folder", told)]


def check_shared_memory(
    reports: Sequence[NodeReport], store: float, weights: float, bucket: float, samplers: Collection[str]
) -> list[Line]:
    """`store`: of the driver's node, where weights lie; `weights`: bytes of one version, 0 when not known.

    They come in buckets of `bucket` bytes to the nodes that may have `samplers`, by name.
    """
    lines = []
    for report in reports:
        wanted = max(weights, LITTLE_SHM) if report.node in samplers else LITTLE_SHM
        told = f"{_gib(report.shm_free)} of {_gib(report.shm)} of /dev/shm free on {report.node}"
        if report.shm_free < wanted:
            advice = "Give the container more (--shm-size), weights are handed to an engine through it"
            lines.append(fail("shared memory", told, advice))
    held, advice = f"the driver's node holds {_gib(store)} of objects", "--object-store-memory"
    if store < min(weights, bucket):
        text = f"{held}, and weights come in buckets of {_gib(min(weights, bucket))}"
        lines.append(fail("object store", text, f"Start Ray there with a larger {advice}, or lower weights.bucket_mib"))
    elif store < 2 * weights:
        text = f"{held}, less than two weight versions of {_gib(weights)}"
        lines.append(warn("object store", text, f"Ray will spill to disk; start it there with a larger {advice}"))
    least = min(report.shm_free for report in reports)
    return lines or [
        ok("shared memory", f"/dev/shm has {_gib(least)} free or more, the driver's object store {_gib(store)}")
    ]


def check_storage(reports: Sequence[NodeReport], location: str) -> list[Line]:
    bad = {report.node: report.storage for report in reports if report.storage}
    if not bad:
        return [ok("storage", f"{location}: written by the driver, read and written on {_count(reports)}")]
    shared = "://" in location
    advice = (
        "Give every node credentials and a way there"
        if shared
        else "A folder must be shared by all nodes (NFS), or give a URI as run.output_dir, such as s3://BUCKET/PREFIX"
    )
    return [fail("storage", f"{location} on {node}: {cause}", advice) for node, cause in bad.items()]


def check_folders(reports: Sequence[NodeReport]) -> list[Line]:
    """Folders that a recipe names, on every node."""
    bad = {report.node: report.missing for report in reports if report.missing}
    advice = "Put it where every node sees it, or give a hub id"
    return [fail("model", f"{', '.join(missing)} is not on {node}", advice) for node, missing in bad.items()]


def check_clocks(offsets: Mapping[str, tuple[float, float]]) -> list[Line]:
    """`offsets`: {node: (seconds ahead of the driver, how far off that may be)}."""
    lines = []
    for node, (ahead, unsure) in offsets.items():
        off, told = abs(ahead) - unsure, f"{node} is {ahead:+.2f} s from the driver (within {unsure:.2f} s)"
        if off > WRONG_S:
            lines.append(
                fail("clocks", told, "Set the clock there (chrony): storage refuses requests from another time")
            )
        elif off > LATE_S:
            lines.append(warn("clocks", told, "Set the clock there (chrony): logs and spans would not line up"))
    most = max((abs(ahead) for ahead, _ in offsets.values()), default=0.0)
    return lines or [ok("clocks", f"at most {most:.2f} s apart on {_nodes(len(offsets))}")]


def check_silent(silent: Mapping[str, str], answered: int) -> list[Line]:
    """`silent`: {node: why it gave no answer}."""
    advice = "Look at its raylet's log, and whether larpo and Ray's ports are open there; or take it out of the cluster"
    lines = [fail("nodes", f"{node} gave no answer: {cause}", advice) for node, cause in silent.items()]
    return lines or [ok("nodes", f"{_nodes(answered)} answered")]


def check_dashboard(address: str, *, has_token: bool, alone: bool = False) -> list[Line]:
    """`address`: host and port, empty without a dashboard; `has_token`: Ray's own authentication is on.

    `alone`: this Ray has no other node, and all of its ports are on loopback.
    """
    if not address:
        return [warn("dashboard", "there is none", "Start Ray with its dashboard (ray[default]) to submit and watch")]
    host = address.rpartition(":")[0].strip("[]")
    if host in ("127.0.0.1", "localhost", "::1"):
        if has_token or alone:
            return [ok("dashboard", f"http://{address}, on loopback")]
        text = (
            f"http://{address} is on loopback, but Ray's other ports ask for no token: who reaches them runs code here"
        )
        return [warn("dashboard", text, "Turn Ray's token on before the head starts (docs/security.md)")]
    advice = "Start the head with --dashboard-host 127.0.0.1, and reach it through ssh -L or kubectl port-forward"
    if has_token:
        return [warn("dashboard", f"http://{address} can be reached by others, who need Ray's token", advice)]
    text = f"http://{address} can be reached by others, without a token: who reaches it runs code here"
    return [warn("dashboard", text, f"{advice}; turn Ray's token on (RAY_AUTH_MODE=token)")]


def check_reach(failures: Mapping[str, str], to: str, count: int) -> list[Line]:
    """`failures`: {node: why it could not open a connection to `to`}."""
    advice = "Open all ports between the nodes: ranks of a training group choose theirs freely"
    lines = [fail("ports", f"{node} cannot reach {to}: {cause}", advice) for node, cause in failures.items() if cause]
    return lines or [ok("ports", f"{_nodes(count)} opened a connection to {to}, and took an object from the driver's")]


def _some(nodes: Sequence[str], most: int = 4) -> str:
    more = f" and {len(nodes) - most} others" if len(nodes) > most else ""
    return ", ".join(nodes[:most]) + more


def _count(reports: Sequence[NodeReport]) -> str:
    return _nodes(len(reports))


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
