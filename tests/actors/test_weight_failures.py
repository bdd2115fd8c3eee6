"""Real runs whose weights do not get through: one sampler does not take them, or the object store has no room."""

import os
import re
import subprocess
import sys
import time

import psutil
import pytest

from tests.actors.test_failures import LIMIT_S, SLOW_REWARD
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
        return sum(samples for _, samples in idle_samplers(runs).values()) == 12 * 4

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


FILL = """
import sys

import numpy
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

ray.init(address=sys.argv[1], log_to_driver=False)
sys.stdin.readline()
held = []
for size in (2**22, 2**19):
    try:
        while True:
            held.append(ray.put(numpy.zeros(size, dtype=numpy.uint8)))
    except (ObjectStoreFullError, OutOfDiskError):
        continue
print("full", flush=True)
sys.stdin.read()
"""


def test_an_object_store_that_is_full_ends_the_run_which_goes_on_once_there_is_room(tmp_path, tiny_policy, monkeypatch):
    """Another driver on the cluster fills it; Ray would spill to disk, and is told that the disk is full too."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{tmp_path}")  # of the node, whose workers look for the reward
    monkeypatch.setenv("RAY_local_fs_capacity_threshold", "0.0")
    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 * 10**6}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    runs = Runs(tmp_path, tiny_policy, cluster.address)
    (tmp_path / "toy_reward.py").write_text(SLOW_REWARD)
    try:
        command = [sys.executable, "-c", FILL, cluster.address]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as filler:
            driver = runs.new("stream", "reward.cache=false", "training.prompts_per_iteration=24")
            runs.until(lambda: runs.records("lists"), driver)
            filler.stdin.write("now\n")
            filler.stdin.flush()
            assert filler.stdout.readline() == "full\n"
            filled = time.monotonic()
            assert not runs.records("iteration"), "the iteration was over before the store was full"
            assert driver.wait(LIMIT_S) == 1, runs.log()
            print(f"the run ended {time.monotonic() - filled:.1f} s after the store was full")
            filler.stdin.close()
        said = runs.log()
        assert re.search(r"object store has no room for \d+ MiB of weights", said), said
        assert "--object-store-memory" in said
        assert "--resume" in said
        runs.until_gone()
        assert runs.start("--resume", str(runs.run_dir)).wait(LIMIT_S) == 0, runs.log()
        check_exactly_once(runs.run_dir, counts=(24, 24))
    finally:
        cluster.shutdown()
        for process in runs.processes():
            process.kill()
