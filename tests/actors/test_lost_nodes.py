"""Real runs on simulated nodes: one told to go, one that is gone, the head with all on it, and a notice to the run."""

import os
import signal
import subprocess
import sys
import time

import pytest

from actors.checkpoints import newest_checkpoint
from tests.actors.test_failures import LIMIT_S, SLOW_REWARD
from tests.toy_runs import REPOSITORY, Runs, check_exactly_once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class SimulatedCluster:
    """A head with the trainer's cores, and a node for the sampler, which can be taken away."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 2**28}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self.add_sampler_node()

    def add_sampler_node(self) -> None:
        self.node = self._cluster.add_node(num_cpus=0, resources={"sampler": 1}, object_store_memory=2**28)

    def tell_sampler_node_to_go(self) -> None:
        """Ray's own command, which a cloud's notice ends in too; the node may work for another while."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--node-id", self.node.node_id]
        command += ["--address", self.address, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "the machine is taken back", "--deadline-remaining-seconds", "300"]
        subprocess.run(command, check=True, timeout=60)

    def remove(self, node) -> None:
        """As when its machine is gone: no process of it is asked first."""
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


def test_a_run_outlives_two_nodes_and_its_successor_outlives_the_head(tmp_path, tiny_policy, monkeypatch):
    """The sampler's node is told to go; the next one is removed, and a third comes; then the head goes with all on it.

    A new cluster on the same storage goes on, from the checkpoint before the newest, of which a byte has changed.
    """
    for name, value in {"worker_niceness": "0", "gcs_rpc_server_reconnect_timeout_s": "10"}.items():
        monkeypatch.setenv(f"RAY_{name}", value)
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{tmp_path}")  # of the nodes, whose workers look for the reward
    cluster = SimulatedCluster()
    runs = Runs(tmp_path, tiny_policy, cluster.address)
    try:
        (tmp_path / "toy_reward.py").write_text(SLOW_REWARD)
        driver = runs.new("stream", "samplers.resources={sampler: 1}", "reward.cache=false", "training.max_failures=20")
        runs.until(lambda: len(runs.records("lists")) >= 1, driver)
        noticed = time.time()
        cluster.tell_sampler_node_to_go()
        first = cluster.node
        cluster.add_sampler_node()
        runs.until(lambda: prompts_of(runs, "sampler-1"), driver)
        print(f"a node that is told to go: the next sampler had answered after {time.time() - noticed:.1f} s")
        alarms = [record["message"] for record in runs.records("alarm")]
        assert any("sampler-0 leaves its node, which is told to go" in alarm for alarm in alarms), alarms
        cluster.remove(first)
        assert not runs.records("failure")

        removed = time.time()
        cluster.remove(cluster.node)
        cluster.add_sampler_node()
        runs.until(lambda: any(r["actor"] == "sampler-1" for r in runs.records("failure")), driver)
        told = next(r for r in runs.records("failure") if r["actor"] == "sampler-1")
        runs.until(lambda: any(r["time"] > told["time"] for r in runs.records("lists")), driver)
        went_on = next(r["time"] for r in runs.records("lists") if r["time"] > told["time"])
        print(f"a node that is gone: {went_on - removed:.1f} s\n{told['reason']}")
        assert told["kind"] == "node"
        assert "does not answer" in told["reason"] or "is gone, and its log with it" in told["reason"]

        runs.until(lambda: len(list(runs.run_dir.glob("checkpoints/position-*/manifest.json"))) >= 2, driver)
        stopped = time.time()
        cluster.close()
        assert driver.wait(LIMIT_S) != 0
        print(f"the head is gone: the driver ended after {time.time() - stopped:.1f} s")
        newest, _, _ = newest_checkpoint(runs.run_dir / "checkpoints")
        flip_a_byte(newest)

        cluster = SimulatedCluster()
        runs.join(cluster.address)
        again = runs.start("--resume", str(runs.run_dir))
        assert again.wait(LIMIT_S) == 0, runs.log()
        alarms = [record["message"] for record in runs.records("alarm")]
        assert any(f"a checkpoint was passed over: {newest.name}: " in alarm for alarm in alarms), alarms
        resumed = min(record["time"] for record in runs.records("step") if record["time"] > stopped)
        print(f"the head is gone: the next step came {resumed - stopped:.1f} s after it, in another cluster")
        check_exactly_once(runs.run_dir)
    finally:
        cluster.close()
        for process in runs.processes():
            process.kill()


def prompts_of(runs: Runs, sampler: str) -> float:
    return sum(record["sampler/prompts"] for record in runs.records("sampler") if record["sampler"] == sampler)


def flip_a_byte(checkpoint) -> None:
    """In the middle of its largest file."""
    path = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_a_run_that_hears_of_its_end_leaves_a_checkpoint_of_its_last_step(tmp_path, tiny_policy):
    """SIGTERM, as a machine's owner sends it before the machine goes; no periodic checkpoint was due."""
    runs = Runs(tmp_path, tiny_policy)
    (tmp_path / "toy_reward.py").write_text(SLOW_REWARD.replace("0.5", "0.1"))  # else the iteration's end is there
    try:
        driver = runs.new("stream", "checkpoints.every_steps=1000", "training.lists_per_step=1")
        runs.until(lambda: len(runs.records("step")) >= 3, driver)
        assert not list(runs.run_dir.glob("checkpoints/position-*"))
        noticed = time.time()
        driver.send_signal(signal.SIGTERM)
        driver.wait(120)
        print(f"a notice of preemption: ended {time.time() - noticed:.1f} s after it")
        _, state, _ = newest_checkpoint(runs.run_dir / "checkpoints")
        assert state.step >= len(runs.records("step")) >= 3
        assert runs.start("--resume", str(runs.run_dir)).wait(LIMIT_S) == 0, runs.log()
        steps = [record["step"] for record in runs.records("step")]
        print(f"steps done again: {len(steps) - len(set(steps))}")
        assert len(steps) == len(set(steps))
        check_exactly_once(runs.run_dir)
    finally:
        for process in runs.processes():
            process.kill()
