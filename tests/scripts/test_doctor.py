"""The doctor on a real Ray of three simulated nodes, and what it says of recipes and nodes that cannot do."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from tests.toy_runs import REPOSITORY, write_toy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
EXAMINE = """
import json, sys
from actors.doctor import examine
for name, arguments in json.loads(sys.argv[1]).items():
    told = []
    good = examine(arguments[0], arguments[1:], told.append, limit_s=90)
    print("CASE", json.dumps([name, good, [(line.level, line.check, str(line)) for line in told]]), flush=True)
"""


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="lr", dir="/tmp")  # short: sockets lie in it
    head = {"num_cpus": 0, "resources": {"desk": 1.0}, "temp_dir": folder, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=0, resources={"slot": 2.0})
    yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def environment(cluster) -> dict[str, str]:
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": paths}


@pytest.fixture(scope="module")
def told(cluster, tmp_path_factory, tiny_policy):
    """What the doctor says of several recipes: {case: (good, [(level, check, line)])}."""
    folder = tmp_path_factory.mktemp("doctor")
    write_toy(folder, tiny_policy)
    recipe = [
        str(folder / "recipe.yaml"),
        f"run.output_dir={folder / 'runs'}",
        "reward.name=larpo.verifiers:last_number",
        "samplers.resources={slot: 1}",
        "training.resources_per_worker={slot: 1}",
    ]
    cases = {
        "good": recipe,
        "bad knob": [*recipe, "training.iteration=3"],
        "bad storage": [*recipe, "run.output_dir=/proc/larpo"],
        "little memory": [*recipe, "samplers.cpu_kv_cache_gib=9000"],
        "too many": [*recipe, "samplers.count=4"],
        "too large": [*recipe, "samplers.resources={slot: 3}"],
        "bad model": [*recipe, "policy.model=/no/such/model"],
        "not in the cache": [*recipe, "policy.model=some/model"],
    }
    command = [sys.executable, "-c", EXAMINE, json.dumps(cases)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(cluster), capture_output=True, text=True, timeout=590
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("CASE ")]
    assert not (folder / "runs").exists()  # nothing of the doctor's stays
    return {name: (good, lines) for name, good, lines in found}


def test_a_plan_that_can_run_passes_every_check(told):
    good, lines = told["good"]
    text = "\n".join(line for _, _, line in lines)
    print(text)
    assert good, text
    assert {check for level, check, _ in lines if level == "ok"} >= {
        *("recipe", "hub", "inputs", "nodes", "versions", "memory", "disk", "shared memory", "storage", "run folder"),
        *("ports", "clocks", "placement"),
    }
    assert "3 nodes answered" in text
    assert "the same on 3 nodes" in text
    assert "written by the driver, read and written on 3 nodes" in text
    assert {level for level, _, _ in lines} <= {"ok", "warn"}


@pytest.mark.parametrize(
    ("case", "check", "says"),
    [
        ("bad knob", "recipe", "did you mean training.iterations?"),
        ("bad storage", "storage", "/proc/larpo: cannot be written from here"),
        ("little memory", "memory", "1 x sampler 9001"),
        ("too many", "placement", "5 slot needed, 4 there"),
        ("too large", "placement", "no place for 1 x sampler (3 slot), each on one node"),
        ("bad model", "inputs", "there is no such folder"),
        ("not in the cache", "hub", "offline (HF_HUB_OFFLINE), and not in the cache"),
    ],
)
def test_a_plan_that_cannot_run_fails_in_one_line(told, case, check, says):
    """... which names what is wrong; the nodes are looked at all the same."""
    good, lines = told[case]
    assert not good
    failures = [(name, line) for level, name, line in lines if level == "FAIL"]
    assert [name for name, _ in failures] == [check], failures
    assert says in failures[0][1]
    assert any("3 nodes answered" in line for _, _, line in lines)


def test_a_node_that_does_not_answer_is_a_failure_and_no_hang(cluster):
    silent = cluster.add_node(num_cpus=0)
    cluster.wait_for_nodes()
    raylet = silent.all_processes["raylet"][0].process.pid
    os.kill(raylet, signal.SIGSTOP)
    started = time.monotonic()
    try:
        command = [sys.executable, "-m", "scripts.doctor", "--timeout", "10"]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment(cluster), capture_output=True, text=True, timeout=200
        )
    finally:
        os.kill(raylet, signal.SIGCONT)
    print(f"{time.monotonic() - started:.0f} s\n{done.stdout}")
    assert done.returncode == 1, done.stdout + done.stderr[-3000:]
    (failure,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert "gave no answer" in failure
    assert silent.unique_id in failure or silent.node_id[-6:] in failure
    assert "ok    versions" in done.stdout


def test_without_a_cluster_a_local_ray_is_looked_at(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ray = tempfile.mkdtemp(prefix="lr", dir="/tmp")
    command = [sys.executable, "-m", "scripts.doctor"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment | {"RAY_TMPDIR": ray}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "1 node answered" in done.stdout
    assert "on loopback" in done.stdout
    assert "a run could succeed" in done.stdout
    shutil.rmtree(ray, ignore_errors=True)
