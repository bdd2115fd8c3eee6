"""Room for a plan under Ray's real autoscaler: refused at once, waited for, or given up after a limit."""

import json
import os
import subprocess
import sys
import time

import pytest

from actors.capacity import Bundle
from actors.room import make_room
from larpo.errors import ConfigError, LarpoError
from tests.autoscaling_cluster import AutoscalingCluster, nodes_of
from tests.toy_runs import REPOSITORY, until

SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]


def samplers(count: int, slots: float = 1.0) -> list[Bundle]:
    return [Bundle("sampler", {"slot": slots})] * count


class Idle:
    def ping(self) -> str:
        return "here"


def refused(asked: list[Bundle], limit_s: float) -> tuple[str, str, float]:
    """How `make_room` ends: the error's type and text, and the seconds that it took."""
    started = time.monotonic()
    try:
        make_room(asked, limit_s, lambda line: None)
    except LarpoError as error:
        return type(error).__name__, str(error), time.monotonic() - started
    return "", "", time.monotonic() - started


def on_the_cluster() -> None:
    """In a process of its own, so that the tests' Ray is not left: plans of every kind, and what came of each."""
    import ray

    address, lines = os.environ["RAY_ADDRESS"], []
    ray.init(address=address, log_to_driver=False)
    found: dict = {"there": make_room([Bundle("trainer worker", {"CPU": 1})] * 2, 60, lines.append)}
    found["too many"], found["too large"] = refused(samplers(5), 300), refused(samplers(2, slots=3), 300)
    found["nodes before"], found["said before"] = nodes_of(address), list(lines)
    found["waited"] = make_room([*samplers(4), Bundle("trainer worker", {"CPU": 1})], 240, lines.append)
    found["nodes"], found["said"] = nodes_of(address), lines
    holder = ray.remote(Idle).options(num_cpus=0, resources={"slot": 2})
    actors = [holder.remote() for _ in range(2)]  # they are placed at once: the request has been taken back
    found["placed"] = ray.get([actor.ping.remote() for actor in actors], timeout=60)
    found["late"] = refused(samplers(1), 6)
    for actor in actors:
        ray.kill(actor)
    found["gone after"] = until(lambda: not nodes_of(address), 90)
    print("FOUND", json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What `on_the_cluster` came to, with two nodes of two slots that may be started."""
    types = {"slot_node": {"resources": {"slot": 2}, "max_workers": 2}}
    cluster = AutoscalingCluster(tmp_path_factory.mktemp("cluster"), types, {"CPU": 2.0, "desk": 1.0}, idle_s=3)
    try:
        script = "import tests.actors.test_room as own; own.on_the_cluster()"
        environment = cluster.environment | {"PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, cwd=REPOSITORY)
        assert done.returncode == 0, done.stdout + done.stderr + cluster.log()
    finally:
        cluster.close()
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    return json.loads(line.removeprefix("FOUND "))


class TestUnderTheAutoscaler:
    pytestmark = SLOW

    def test_a_plan_that_has_room_waits_for_nothing(self, found):
        assert found["there"] == 0.0
        assert found["said before"] == []

    @pytest.mark.parametrize(
        ("case", "says"),
        [("too many", "5 slot needed, 0 there"), ("too large", "cannot start nodes for 2 x sampler (3 slot)")],
    )
    def test_a_plan_that_no_node_type_can_hold_is_refused_at_once(self, found, case, says):
        kind, text, seconds = found[case]
        assert kind == "ConfigError"
        assert says in text
        assert "can never hold" in text
        assert "the autoscaler cannot start nodes" in text
        assert seconds < 60
        assert found["nodes before"] == {}

    def test_a_plan_waits_for_new_nodes_saying_so_and_is_then_placed(self, found):
        print(f"room after {found['waited']:.1f} s", *found["said"], sep="\n")
        assert found["nodes"] == {"slot_node": 2}
        first, *_ = found["said"]
        assert first.startswith("waiting for room: no place for 4 x sampler (1 slot) on 1 node of ")
        assert any("being started: 2 x slot_node" in line for line in found["said"])
        assert all("of 240 s (timeouts.placement_s)" in line for line in found["said"])
        assert found["placed"] == ["here"] * 2

    def test_what_others_use_is_waited_for_until_the_limit(self, found):
        kind, text, seconds = found["late"]
        assert kind == "PhaseTimeout"
        for part in ("(timeouts.placement_s)", "no place for 1 x sampler (1 slot)", "others use a part"):
            assert part in text
        assert 6 <= seconds < 30


def test_without_an_autoscaler_what_does_not_fit_is_refused(local_ray):
    """Four CPUs in all, on one node."""
    assert make_room([Bundle("trainer worker", {"CPU": 2})] * 2, 5) == 0.0
    with pytest.raises(ConfigError, match=r"5 CPU needed, 4 there; no autoscaler is there to start nodes"):
        make_room([Bundle("trainer worker", {"CPU": 1})] * 5, 60)
