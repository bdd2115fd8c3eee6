"""The wait for room with a cluster that a test makes up: what is asked of it, said, and raised. Ray's own messages."""

from contextlib import contextmanager

import pytest
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

from actors import placement, room
from actors.capacity import Bundle, Node
from larpo.errors import ConfigError, PhaseTimeout

SLOT = [Bundle("sampler", {"slot": 1.0})] * 2


class Cluster:
    """Nodes by what they have and what is free of it, and an autoscaler; a clock that a look moves by a second."""

    def __init__(self, *free: dict[str, float], has: dict[str, float] | None = None, autoscaler: bool = True) -> None:
        self.free, self.has, self.requests, self.clock = list(free), has, 0, 0.0
        self.reply = GetClusterStatusReply()
        self.reply.autoscaling_state.autoscaler_state_version = 7 if autoscaler else 0
        self.arrives_at = self.placed = None
        for amounts in free:
            self._report(amounts)

    def _report(self, free: dict[str, float]) -> None:
        node = self.reply.cluster_resource_state.node_states.add(status=3)
        node.total_resources.update(self.has or free)
        node.available_resources.update(free)

    def wait(self, seconds: int) -> bool:
        """What a placement group does."""
        self.clock += seconds
        if self.arrives_at is not None and self.clock >= self.arrives_at:
            self.free.append({"slot": 2.0})
            self.placed = True
        return bool(self.placed)

    @contextmanager
    def request(self, bundles):
        self.requests += 1
        try:
            yield self, "number"
        finally:
            self.requests -= 1

    def nodes(self, amounts) -> list[Node]:
        return [Node(str(number), resources) for number, resources in enumerate(amounts)]


@pytest.fixture
def on(monkeypatch):
    """Make the cluster that of `make_room`."""

    def put(cluster: Cluster) -> Cluster:
        monkeypatch.setattr(room, "free_nodes", lambda: cluster.nodes(cluster.free))
        monkeypatch.setattr(room, "all_nodes", lambda: cluster.nodes([cluster.has or free for free in cluster.free]))
        monkeypatch.setattr(room, "autoscaling_state", lambda: cluster.reply)
        monkeypatch.setattr(room, "startable_types", lambda: None)
        monkeypatch.setattr(room, "_requested", cluster.request)
        monkeypatch.setattr(room.time, "monotonic", lambda: cluster.clock)
        return cluster

    return put


def test_where_there_is_room_nothing_is_asked(on):
    cluster = on(Cluster({"slot": 2.0}))
    assert room.make_room(SLOT, 10, pytest.fail) == 0.0
    assert room.make_room([Bundle("reward", {})], 10, pytest.fail) == 0.0
    assert cluster.clock == 0.0


def test_it_waits_for_a_node_and_says_for_what_and_how_long(on):
    cluster = on(Cluster({"desk": 1.0}))
    cluster.reply.autoscaling_state.pending_instance_requests.add(ray_node_type_name="gpu", count=1)
    cluster.reply.autoscaling_state.failed_instance_requests.add(ray_node_type_name="gpu", count=1, reason="no quota")
    cluster.arrives_at, lines = 70.0, []
    assert room.make_room(SLOT, 900, lines.append) == 70.0
    assert lines[0] == (
        "waiting for room: no place for 2 x sampler (1 slot) on 1 node of 1 desk; being started: 1 x gpu;"
        " could not be started: 1 x gpu: no quota; 1 s of 900 s (timeouts.placement_s)"
    )
    assert len(lines) == 3  # at once, and every 30 s while nothing changes
    assert cluster.requests == 0  # taken back, so that the actors may come


def test_what_it_says_changes_at_once_with_what_there_is(on):
    cluster = on(Cluster({"desk": 1.0}))
    cluster.arrives_at, lines = 10.0, []

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            cluster.reply.autoscaling_state.pending_instances.add(ray_node_type_name="gpu", details="ALLOCATED")

    room.make_room(SLOT, 900, say)
    assert ["being started: gpu ALLOCATED" in line for line in lines] == [False, True]


def test_a_plan_that_the_autoscaler_calls_infeasible_is_refused(on):
    cluster = on(Cluster({"desk": 1.0}))
    cluster.reply.autoscaling_state.infeasible_gang_resource_requests.add(details="another:PACK|PENDING")
    cluster.arrives_at = 3.0
    assert room.make_room(SLOT, 900, lambda line: None) == 3.0  # another job's is none of ours
    cluster = on(Cluster({"desk": 1.0}))
    cluster.reply.autoscaling_state.infeasible_gang_resource_requests.add(details="number:PACK|PENDING")
    with pytest.raises(ConfigError, match=r"2 slot needed, 0 there; the autoscaler cannot start nodes for 2 x sampler"):
        room.make_room(SLOT, 900, pytest.fail)
    assert cluster.requests == 0


def test_while_others_use_a_part_infeasible_means_not_now(on):
    cluster = on(Cluster({"slot": 1.0}, has={"slot": 2.0}))
    cluster.reply.autoscaling_state.infeasible_gang_resource_requests.add(details="number:PACK|PENDING")
    lines: list[str] = []
    with pytest.raises(PhaseTimeout, match=r"after 6 s \(timeouts\.placement_s\): no place for 1 x sampler") as late:
        room.make_room(SLOT, 5, lines.append)
    assert "others use a part of the cluster" in str(late.value)
    assert lines
    assert cluster.requests == 0


def test_without_an_autoscaler_what_does_not_fit_in_all_is_refused_at_once(on):
    cluster = on(Cluster({"slot": 1.0}, autoscaler=False))
    with pytest.raises(ConfigError, match=r"2 slot needed, 1 there; no autoscaler is there to start nodes"):
        room.make_room(SLOT, 900, pytest.fail)
    assert cluster.clock == 0.0


def test_without_an_autoscaler_what_others_use_is_waited_for(on):
    cluster = on(Cluster({"slot": 0.0}, has={"slot": 2.0}, autoscaler=False))
    cluster.arrives_at = 4.0
    assert room.make_room(SLOT, 900, lambda line: None) == 4.0


@pytest.mark.parametrize(
    ("said", "raised"), [("The current node timed out during startup. This", PhaseTimeout), ("x", OSError)]
)
def test_a_ray_that_does_not_start_in_time_is_one_error_with_what_to_do(monkeypatch, said, raised):
    """Ray leaves its processes a fixed time, which a busy machine may need; any other error is passed on."""

    def init(**options):
        raise OSError(said)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(raised, match="start again when it is less busy" if raised is PhaseTimeout else "x"):
        placement.connect("run")
