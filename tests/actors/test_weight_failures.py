"""Weights that do not get through: one sampler of a real run does not take them, or the object store has no room."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from larpo.errors import CheckpointError
from tests.actors.test_failures import LIMIT_S, SLOW_REWARD
from tests.toy_runs import Runs, check_exactly_once, command_of

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


def test_weights_that_find_no_room_in_the_object_store_end_with_what_to_do(tmp_path):
    """Ray spills to disk by itself; here it is told that the disk is full."""
    script = "import sys; from tests.actors.test_weight_failures import fill; fill(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has no room for 32 MiB of weights" in done.stdout
    assert "--object-store-memory" in done.stdout


def fill(folder: str) -> None:
    """In a process of its own, whose Ray has 80 MB for objects."""
    import numpy
    import ray

    from actors.placement import place_store
    from actors.published import PublishedFolder

    for version, count in ((1, 1), (2, 4)):
        target = PublishedFolder(Path(folder) / str(version), version)
        for _ in range(count):
            target.add(numpy.zeros(2**25, dtype=numpy.uint8))
        target.close()
    ray.init(
        address="local",
        object_store_memory=80 * 10**6,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={"local_fs_capacity_threshold": 0.0},
    )
    store = place_store()
    ray.get(store.publish_folder.remote(1, f"{folder}/1"))
    try:
        ray.get(store.publish_folder.remote(2, f"{folder}/2"))
    except CheckpointError as error:
        print(error)
    assert ray.get(store.newest.remote()) == 1
    ray.shutdown()
