"""Room for a plan under Ray's real autoscaler: refused at once, waited for, or given up after a limit."""

import time

import pytest

from actors.capacity import Bundle
from actors.room import make_room
from larpo.errors import ConfigError, PhaseTimeout
from tests.autoscaling_cluster import AutoscalingCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    types = {"slot_node": {"resources": {"slot": 2}, "max_workers": 2}}
    cluster = AutoscalingCluster(tmp_path_factory.mktemp("cluster"), types, {"CPU": 2.0, "desk": 1.0}, idle_s=3)
    ray = cluster.connect()
    yield cluster
    ray.shutdown()
    cluster.close()


def samplers(count: int, slots: float = 1.0) -> list[Bundle]:
    return [Bundle("sampler", {"slot": slots})] * count


def test_a_plan_that_is_there_already_waits_for_nothing(cluster):
    lines: list[str] = []
    assert make_room([Bundle("trainer worker", {"CPU": 1})] * 2, 60, lines.append) == 0.0
    assert lines == []


@pytest.mark.parametrize(
    ("asked", "says"),
    [(samplers(5), "5 slot needed, 0 there"), (samplers(2, slots=3), "cannot start nodes for 2 x sampler (3 slot)")],
    ids=["too many", "too large"],
)
def test_a_plan_that_no_node_type_can_hold_is_refused_at_once(cluster, asked, says):
    started = time.monotonic()
    with pytest.raises(ConfigError, match="can never hold") as refused:
        make_room(asked, 300, print)
    assert says in str(refused.value)
    assert "the autoscaler cannot start nodes" in str(refused.value)
    assert time.monotonic() - started < 30
    assert cluster.nodes() == {}


def test_a_plan_waits_for_new_nodes_saying_so_and_is_then_placed(cluster):
    import ray

    lines: list[str] = []
    waited = make_room([*samplers(4), Bundle("trainer worker", {"CPU": 1})], 240, lines.append)
    print(f"room after {waited:.1f} s", *lines, sep="\n")
    assert cluster.nodes() == {"slot_node": 2}
    assert lines[0].startswith("waiting for room: no place for 4 x sampler (1 slot) on 1 node of 2 CPU + 1 desk")
    assert any("being started: 2 x slot_node" in line for line in lines)
    assert all("of 240 s (timeouts.placement_s)" in line for line in lines)

    holder = ray.remote(num_cpus=0, resources={"slot": 2})(Idle)
    actors = [holder.remote() for _ in range(2)]  # they are placed at once: the request has been taken back
    assert ray.get([actor.ping.remote() for actor in actors], timeout=60) == ["here"] * 2

    with pytest.raises(PhaseTimeout) as late:  # all slots are in use, which may end: it is waited for
        make_room(samplers(1), 6, lines.append)
    for part in ("after 6 s (timeouts.placement_s)", "no place for 1 x sampler (1 slot)", "others use a part"):
        assert part in str(late.value)
    for actor in actors:
        ray.kill(actor)
    cluster.wait_for_nodes(0)


class Idle:
    def ping(self) -> str:
        return "here"


def test_without_an_autoscaler_what_does_not_fit_is_refused(local_ray):
    """Four CPUs in all, on one node."""
    assert make_room([Bundle("trainer worker", {"CPU": 2})] * 2, 5) == 0.0
    with pytest.raises(ConfigError, match=r"5 CPU needed, 4 there; no autoscaler is there to start nodes"):
        make_room([Bundle("trainer worker", {"CPU": 1})] * 5, 60)
