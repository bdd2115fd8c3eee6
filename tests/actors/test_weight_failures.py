"""Real runs whose weights do not get through: one sampler does not take them, or the object store has no room."""

import os
import re

import psutil
import pytest

from tests.actors.test_failures import LIMIT_S, SLOW_REWARD
from tests.conftest import make_tiny_policy
from tests.toy_runs import REPOSITORY, Runs, check_exactly_once, command_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
UPDATE_LIMIT_S = 20
SAMPLED = re.compile(r"ray::killed/sampler-(\d+): idle, weights v(\d+), (\d+) samples")


def idle_samplers(runs: Runs) -> dict[int, tuple[psutil.Process, int]]:
    """Process and samples so far of each sampler that has nothing to do, by number."""
    titles = {process: SAMPLED.match(command_of(process)) for process in runs.processes()}
    return {int(found[1]): (process, int(found[3])) for process, found in titles.items() if found}


def test_a_sampler_that_does_not_take_weights_is_replaced_and_the_run_goes_on(runs):
    """The engine of one is held (SIGSTOP) when the first ones come; for the second ones another's memory is full."""
    (runs.folder / "toy_reward.py").write_text(SLOW_REWARD)  # the last lists are ranked while no sampler works
    knobs = ["samplers.count=2", "samplers.resources={CPU: 0.25}", "reward.cache=false", "lists.replay=false"]
    knobs += ["prompts.heldout_count=0"]  # whose evaluation would be under way at the update
    driver = runs.new("stream", *knobs, f"timeouts.weights_s={UPDATE_LIMIT_S}")

    def all_sampled() -> bool:
        found = idle_samplers(runs)  # of one that is still starting the other has done the work
        return len(found) == 2 and sum(samples for _, samples in found.values()) == 12 * 4

    runs.until(all_sampled, driver)
    (full, _), (held, _) = (idle_samplers(runs)[number] for number in (0, 1))
    no_room = f"/dev/shm/larpo-{full.pid}-v2-0.safetensors"
    os.symlink("/dev/full", no_room)
    (engine,) = (child for child in held.children() if "EngineCore" in command_of(child))
    engine.suspend()
    assert driver.wait(LIMIT_S) == 0, runs.log()
    assert not os.path.lexists(no_room)

    late, refused = runs.records("failure")
    assert (late["actor"], late["kind"]) == ("sampler-1", "weights")
    assert late["reason"].startswith(f"no weight update within {UPDATE_LIMIT_S} s (timeouts.weights_s)")
    assert refused["actor"] == "sampler-0"
    assert "/dev/shm has no room for " in refused["reason"]
    for failure in (late, refused):
        print(f"{failure['actor']}: {failure['reason'].splitlines()[0]}")
    first = next(record for record in runs.records("lists") if record["time"] > late["time"])
    updated = min(span["end"] for span in runs.records("span") if span["kind"] == "update")
    print(f"the next list after {first['time'] - updated:.1f} s, of which {UPDATE_LIMIT_S} are the limit")
    check_exactly_once(runs.run_dir, counts=(12, 12))
    assert not runs.processes()


class OneNode:
    """A cluster whose object store has so many bytes, and nowhere to spill to: Ray is told that the disk is full."""

    def __init__(self, store: int) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": store}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address

    def close(self) -> None:
        self._cluster.shutdown()


def test_an_object_store_that_is_full_ends_the_run_which_goes_on_with_a_larger_one(tmp_path, monkeypatch):
    """A policy of 134 MB, first with 80 MB for objects; what was trained is on disk."""
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{tmp_path}")  # of the node, whose workers look for the reward
    monkeypatch.setenv("RAY_local_fs_capacity_threshold", "0.0")
    make_tiny_policy(tmp_path / "policy", hidden_size=1024, intermediate_size=4096, num_attention_heads=32)
    cluster = OneNode(80 * 10**6)
    runs = Runs(tmp_path, tmp_path / "policy", cluster.address)
    try:
        assert runs.new("stream", "checkpoints.every_steps=1000").wait(LIMIT_S) == 1
        said = runs.log()
        assert re.search(r"object store has no room for 1\d\d MiB of weights", said), said
        assert "--object-store-memory" in said
        assert f"resume {runs.run_dir}" in said
        assert len(runs.records("step")) == 6
        cluster.close()
        cluster = OneNode(2**29)
        runs.join(cluster.address)
        assert runs.start("--resume", str(runs.run_dir)).wait(LIMIT_S) == 0, runs.log()
        steps = [record["step"] for record in runs.records("step")]
        assert len(steps) == len(set(steps)) > 6
        check_exactly_once(runs.run_dir)
    finally:
        cluster.close()
        for process in runs.processes():
            process.kill()
