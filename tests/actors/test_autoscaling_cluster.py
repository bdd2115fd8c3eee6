"""The cluster that tests of autoscaling stand on: Ray's own autoscaler brings nodes, and takes them away."""

import os
import subprocess
import sys

import pytest

from tests.autoscaling_cluster import AutoscalingCluster, nodes_of
from tests.toy_runs import REPOSITORY, until


def ask_and_go() -> None:
    """In a process of its own, so that the tests' Ray is not left."""
    import ray

    address = os.environ["RAY_ADDRESS"]
    ray.init(address=address, log_to_driver=False)
    assert nodes_of(address) == {}

    class Asking:
        def where(self) -> str:
            return ray.get_runtime_context().get_node_id()

    asking = [ray.remote(Asking).options(num_cpus=0, resources={"slot": 1}).remote() for _ in range(2)]
    places = ray.get([actor.where.remote() for actor in asking], timeout=120)
    assert len(set(places)) == 2
    assert nodes_of(address) == {"slot_node": 2}
    del asking
    until(lambda: not nodes_of(address), 90)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nodes_come_as_actors_ask_for_them_and_go_with_them(tmp_path):
    cluster = AutoscalingCluster(tmp_path, {"slot_node": {"resources": {"slot": 1}, "max_workers": 2}}, idle_s=3)
    try:
        command = [sys.executable, "-c", "import tests.actors.test_autoscaling_cluster as own; own.ask_and_go()"]
        environment = cluster.environment | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=REPOSITORY)
        assert done.returncode == 0, done.stdout + done.stderr + cluster.log()
    finally:
        cluster.close()
