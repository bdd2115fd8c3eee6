"""A look before a run: the recipe's inputs here, then every node by a probe on it; one line a check, no run started."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors import checks, placement
from actors.access import hub_items
from actors.capacity import pack, told
from actors.checks import Line, fail, ok, warn
from actors.intended import Plan, actor_sizes, examine_recipe
from actors.probe import NodeReport, Question, delete_file, write_file
from actors.room import all_nodes, check_possible, has_autoscaler
from larpo.errors import LarpoError
from larpo.home import working_folder
from larpo.storage import is_uri

NODE_S = 60.0  # until a node has answered
PINGS = 5  # round trips behind a clock's offset: the shortest counts
NEEDED = ("ray", "torch", "transformers", "deepspeed", "vllm", "larpo")

Say = Callable[[Line], None]


def examine(recipe: str | None, overrides: Sequence[str], say: Say, *, limit_s: float = NODE_S) -> bool:
    """Whether a run could succeed, as far as that can be seen; tells each check as it is done."""
    failed = False

    def tell(lines: Sequence[Line]) -> None:
        nonlocal failed
        for line in lines:
            failed = failed or line.level == "FAIL"
            say(line)

    plan, lines = examine_recipe(recipe, overrides) if recipe is not None else (None, [])
    tell(lines)
    try:
        address = placement.connect("larpo-doctor")
    except Exception as error:  # Ray raises whatever kept it from starting or joining
        where = os.environ.get("RAY_ADDRESS")
        advice = "Correct RAY_ADDRESS, or look at the head" if where else "Look at what Ray says above"
        tell([fail("cluster", f"{where or 'a local Ray'} gave no answer: {type(error).__name__}: {error}", advice)])
        return False
    try:
        tell(examine_cluster(plan, address, limit_s))
    finally:
        import ray

        ray.shutdown()
    return not failed


def examine_cluster(plan: Plan | None, address: str, limit_s: float) -> list[Line]:
    """Every check that needs the nodes."""
    location = plan.config.run.output_dir if plan else ""
    with_file = _write_question(location, plan) if plan else Question()
    lines = []
    if isinstance(with_file, Line):
        lines.append(with_file)
        with_file = Question()
    try:
        reports, probes, silent = ask_nodes(with_file, limit_s)
    finally:
        _forget(with_file)
    lines += checks.check_silent(silent, len(reports))
    lines += checks.check_dashboard(address, has_token=has_token(), alone=not os.environ.get("RAY_ADDRESS"))
    if reports:
        lines += _judged(reports, plan, with_file)
        lines += _between(probes, limit_s)
    lines += check_plan(plan) if plan else []
    return lines


def _between(probes: Mapping[str, Any], limit_s: float) -> list[Line]:
    """Ports between the nodes, and their clocks."""
    import ray

    try:
        reached = checks.check_reach(*_reached(probes, limit_s), len(probes))
        return [*reached, *checks.check_clocks({name: clock_offset(p, limit_s) for name, p in probes.items()})]
    except ray.exceptions.RayError as error:
        return [fail("nodes", f"one stopped answering meanwhile: {_last_line(error)}", "Look at its raylet's log")]


def _judged(reports: Sequence[NodeReport], plan: Plan | None, question: Question) -> list[Line]:
    """What the nodes' answers come to."""
    needed = [name for name in NEEDED if name != "vllm" or plan is None or plan.samples]
    sizes = plan.sizes if plan else None
    lines = checks.check_versions(reports, needed)
    if plan is not None and sizes is not None:
        for on_gpus in (True, False):
            needs, more = actor_sizes(plan, on_gpus=on_gpus), has_autoscaler()
            lines += checks.check_memory(reports, needs, on_gpus=on_gpus, more_may_come=more)
    lines += checks.check_disk(reports)
    weights, bucket = (plan.weights, plan.bucket) if plan else (0.0, 0.0)
    lines += checks.check_shared_memory(reports, _own_store(), weights, bucket, _sampler_nodes(plan))
    if question.storage:
        lines += checks.check_storage(reports, question.storage)
        lines += checks.check_folders(reports)
    if sizes is not None and question.storage:
        here = working_folder(question.storage) if is_uri(question.storage) else Path(question.storage)
        above = next(place for place in (here, *here.parents) if place.exists())
        lines += checks.check_run_disk(shutil.disk_usage(above).free, sizes.disk, str(above))
    without = [report.node for report in reports if not report.has_hub_token]
    if plan is not None and hub_items(plan.config) and 0 < len(without) < len(reports):
        advice = "Set HF_TOKEN in every node's environment if the model is gated"
        lines.append(warn("hub", f"a token is on this node, but not on {', '.join(without)}", advice))
    return lines


def check_plan(plan: Plan) -> list[Line]:
    """Whether each actor has a place."""
    try:
        check_possible(plan.bundles)
    except LarpoError as error:
        return [fail("placement", str(error), "")]
    left = pack(plan.bundles, all_nodes()).left
    if left:
        text = f"no place yet for {told(left)}"
        limit = plan.config.timeouts.placement_s
        return [warn("placement", text, f"The autoscaler is asked for it, and waited for {limit:g} s")]
    more = ", and an autoscaler is at work" if has_autoscaler() else ""
    asking = [bundle for bundle in plan.bundles if any(bundle.resources.values())]
    return [ok("placement", f"{told(asking) or 'actors that ask for nothing'} have a place{more}")]


# --- Nodes


def ask_nodes(question: Question, limit_s: float) -> tuple[list[NodeReport], dict[str, Any], dict[str, str]]:
    """Answers of the nodes, the probes on them by name, and why others gave none; at most `limit_s`."""
    import ray

    names = node_names(ray.nodes())
    payload = ray.put(os.urandom(2**21))
    probes = {name: placement.place_probe(node) for node, name in names.items()}
    asked = {probe.look.remote(question, payload): name for name, probe in probes.items()}
    ray.wait(list(asked), num_returns=len(asked), timeout=limit_s)
    reports, silent = [], {}
    for reference, name in asked.items():
        try:
            reports.append(replace(ray.get(reference, timeout=0), node=name))
        except Exception as error:  # it did not answer, or cannot run our code
            late = isinstance(error, ray.exceptions.GetTimeoutError)
            silent[name] = f"not within {limit_s:g} s" if late else _last_line(error)
    return reports, {name: probe for name, probe in probes.items() if name not in silent}, silent


def node_names(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Node id -> a name that a person can find it by; simulated nodes on one machine are told apart by their ids."""
    alive = [node for node in nodes if node["Alive"]]
    hosts = [node["NodeManagerHostname"] for node in alive]
    return {
        node["NodeID"]: host if hosts.count(host) == 1 else f"{host}/{node['NodeID'][-6:]}"
        for node, host in zip(alive, hosts, strict=True)
    }


def clock_offset(probe: Any, limit_s: float) -> tuple[float, float]:
    """(seconds by which a node's clock is ahead of this one's, half of the shortest round trip)."""
    import ray

    best = (0.0, float("inf"))
    for _ in range(PINGS):
        sent = time.time()
        there = ray.get(probe.now.remote(), timeout=limit_s)
        back = time.time()
        best = min(best, (there - (sent + back) / 2, (back - sent) / 2), key=lambda offset: offset[1])
    return best


def _reached(probes: Mapping[str, Any], limit_s: float) -> tuple[dict[str, str], str]:
    """What kept each node from opening a connection to the first, and the first's name."""
    import ray

    first, *others = probes
    address = ray.get(probes[first].listen.remote(), timeout=limit_s)
    tries = {name: probes[name].reach.remote(address) for name in others}
    return {name: ray.get(tried, timeout=limit_s) for name, tried in tries.items()}, first


def _sampler_nodes(plan: Plan | None) -> set[str]:
    """Names of the nodes that could hold a sampler, were they empty."""
    import ray

    asked = [bundle for bundle in plan.bundles if bundle.name == "sampler"][:1] if plan else []
    names = node_names(ray.nodes())
    return {names[node.name] for node in all_nodes() if asked and not pack(asked, [node]).left}


def _own_store() -> float:
    """Object store of the driver's node in bytes: the weight store is there."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return sum(node.resources.get("object_store_memory", 0.0) for node in all_nodes() if node.name == own)


def has_token() -> bool:
    """Whether Ray's own authentication is on, in the Ray that was joined: without a token it turns itself off."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return is_token_auth_enabled()


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


# --- Storage


def _write_question(location: str, plan: Plan) -> Question | Line:
    """A file of the driver where run folders go, and where the nodes look for it; a line when that fails."""
    where = location if is_uri(location) else str(Path(location).resolve())
    file, content = f".larpo-doctor-{uuid.uuid4().hex[:8]}", json.dumps({"written": time.time()})
    try:
        if not is_uri(where):
            Path(where).mkdir(parents=True, exist_ok=True)
        write_file(where, file, content)
    except Exception as error:  # whatever the file system raises
        advice = "Give another run.output_dir, or the credentials that it needs"
        return fail("storage", f"{where}: cannot be written from here ({type(error).__name__}: {error})", advice)
    given = [Path(name).expanduser() for name in plan.models]
    return Question(where, file, content, tuple(str(folder.resolve()) for folder in given if folder.is_dir()))


def _forget(question: Question) -> None:
    """Take the file away again, and the folder when it holds nothing else."""
    if not question.storage:
        return
    with suppress(Exception):
        delete_file(question.storage, question.file)
    if not is_uri(question.storage):
        with suppress(OSError):
            Path(question.storage).rmdir()
