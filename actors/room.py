"""Room for a plan on a Ray cluster: refused at once where there can never be any, else waited for, up to a limit.

Which nodes may still be started only the autoscaler knows for sure. So the plan is held before it as one request, a
placement group of everything that is asked for; it starts the nodes, or says that it never will.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from actors.capacity import NEXT_STEP, Bundle, Node, NodeType, check_fits, pack, refusal, told, told_nodes
from larpo.errors import ConfigError, PhaseTimeout

LOOK_S = 1  # between two looks at the cluster; whole seconds are what Ray takes
TELL_S = 30.0  # between two lines while nothing changes
NO_AUTOSCALER = "no autoscaler is there to start nodes (Ray's own, version 2, is what `ray up` and KubeRay start)"

Say = Callable[[str], None]


def make_room(bundles: Sequence[Bundle], limit_s: float, say: Say = print) -> float:
    """Seconds until the cluster that this process is connected to has room for all of `bundles` at one time.

    Raises:
        ConfigError: it never will, with what is missing.
        PhaseTimeout: it had none within `limit_s`, with what was missing and what the autoscaler had to say.
    """
    bundles = [bundle for bundle in bundles if any(bundle.resources.values())]
    started = time.monotonic()
    if not pack(bundles, free_nodes()).left:
        return 0.0
    check_possible(bundles)
    with _requested(bundles) as (group, number):
        told_before, told_at = "", -TELL_S
        while not (group.wait(LOOK_S) or not pack(bundles, free_nodes()).left):
            waited, state = time.monotonic() - started, autoscaling_state()
            _check_verdict(bundles, state, number)
            lacking = _lacking(bundles, state)
            if waited > limit_s:
                raise PhaseTimeout(
                    f"no room for this run's actors after {waited:.0f} s (timeouts.placement_s): {lacking}. Start or"
                    f" free nodes, or raise the limit. {NEXT_STEP}"
                )
            if lacking != told_before or waited - told_at >= TELL_S:
                say(f"waiting for room: {lacking}; {waited:.0f} s of {limit_s:g} s (timeouts.placement_s)")
                told_before, told_at = lacking, waited
    return time.monotonic() - started


def check_possible(bundles: Sequence[Bundle]) -> None:
    """Raises ConfigError for what can never be placed, as far as that is known without asking the autoscaler."""
    there = all_nodes()
    if not has_autoscaler():
        return check_fits(bundles, there, more=NO_AUTOSCALER)
    types = startable_types()
    if types is not None:
        check_fits(bundles, there, types)


def _check_verdict(bundles: Sequence[Bundle], state: Any, number: str) -> None:
    """Raises ConfigError when the autoscaler says that no nodes of its can hold them, and nothing else is in the way.

    What it says holds for what is free: while others use nodes, they may leave.
    """
    refused = any(
        asked.details.startswith(number) for asked in state.autoscaling_state.infeasible_gang_resource_requests
    )
    if not refused or is_used(state):
        return
    left = pack(bundles, free_nodes()).left
    more = f"the autoscaler cannot start nodes for {told(left)}"
    raise ConfigError(refusal(bundles, left, all_nodes(), more=more))


def _lacking(bundles: Sequence[Bundle], state: Any) -> str:
    """What has no place yet, and what is done about it."""
    left = pack(bundles, free_nodes()).left
    if not left:
        return "all have a place, Ray is about to give it"
    parts = [f"no place for {told(left)} on {told_nodes(free_nodes())}"]
    own = state.autoscaling_state
    starting = [f"{one.count} x {one.ray_node_type_name}" for one in own.pending_instance_requests]
    starting += [f"{one.ray_node_type_name} {one.details or one.instance_id}" for one in own.pending_instances]
    if starting:
        parts.append("being started: " + ", ".join(starting))
    failed = [f"{one.count} x {one.ray_node_type_name}: {one.reason}" for one in own.failed_instance_requests]
    if failed:
        parts.append("could not be started: " + ", ".join(failed))
    if is_used(state):
        parts.append("others use a part of the cluster")
    return "; ".join(parts)


@contextmanager
def _requested(bundles: Sequence[Bundle]) -> Iterator[tuple[Any, str]]:
    """The request before Ray and its autoscaler, with its number; taken back at the end, so that actors may come."""
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([dict(bundle.resources) for bundle in bundles], strategy="PACK")
    try:
        yield group, group.id.hex()
    finally:
        remove_placement_group(group)


# --- What Ray knows


def all_nodes() -> list[Node]:
    """The nodes that are alive, with all that they have."""
    import ray

    return [Node(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]


def free_nodes() -> list[Node]:
    """The same, with what nobody uses now."""
    from ray._private import state

    free = state.available_resources_per_node()
    return [Node(node.name, free.get(node.name, {})) for node in all_nodes()]


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes that are told to go, with some time left: before a spot machine is taken back, for one."""
    from ray._private.state import state

    return frozenset(state.get_draining_nodes())


def has_autoscaler() -> bool:
    """Whether Ray's autoscaler is at work; one that was started without node types is none."""
    return autoscaling_state().autoscaling_state.autoscaler_state_version > 0


def autoscaling_state() -> Any:
    """What the cluster's nodes and the autoscaler last reported (Ray's GetClusterStatusReply)."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(address=ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    return reply


def startable_types() -> list[NodeType] | None:
    """Node types of the cluster's configuration, with how many are not there yet; None where it is not published.

    Ray's launcher and KubeRay leave it unpublished, and only the autoscaler can be asked.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None
    alive = [node.ray_node_type_name for node in _alive(autoscaling_state())]
    return [
        NodeType(
            kind.name,
            dict(kind.resources),
            None if kind.max_count == -1 else max(0, kind.max_count - alive.count(kind.name)),
        )
        for kind in config.node_group_configs
    ]


def is_used(state: Any) -> bool:
    """Whether anything runs on the cluster: a node has less free than it has."""
    return any(
        amount > node.available_resources.get(name, 0.0) + 1e-6
        for node in _alive(state)
        for name, amount in node.total_resources.items()
        if name not in ("memory", "object_store_memory")
    )


def _alive(state: Any) -> list[Any]:
    from ray.core.generated.autoscaler_pb2 import NodeStatus  # type: ignore[attr-defined]

    return [node for node in state.cluster_resource_state.node_states if node.status != NodeStatus.DEAD]
