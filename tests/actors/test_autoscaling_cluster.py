"""The cluster that tests of autoscaling stand on: Ray's own autoscaler brings nodes, and takes them away."""

import pytest

from tests.autoscaling_cluster import AutoscalingCluster


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nodes_come_as_actors_ask_for_them_and_go_with_them(tmp_path):
    cluster = AutoscalingCluster(tmp_path, {"slot_node": {"resources": {"slot": 1}, "max_workers": 2}}, idle_s=3)
    try:
        ray = cluster.connect()
        assert cluster.nodes() == {}

        @ray.remote(num_cpus=0, resources={"slot": 1})
        class Asking:
            def where(self) -> str:
                return ray.get_runtime_context().get_node_id()

        asking = [Asking.remote() for _ in range(2)]
        places = ray.get([actor.where.remote() for actor in asking], timeout=120)
        assert len(set(places)) == 2
        assert cluster.nodes() == {"slot_node": 2}
        del asking
        cluster.wait_for_nodes(0)
        ray.shutdown()
    finally:
        cluster.close()
