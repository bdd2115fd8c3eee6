"""A training group on nodes that come and go: Ray's own simulated nodes, in a process of their own.

The session's embedded Ray is another one, so the cluster and its driver live in a process that the test starts.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from actors.checkpoints import newest_checkpoint
from larpo.config import Config
from tests.toy_runs import train_workers

ROOT = Path(__file__).parents[2]
START = "from tests.actors.test_elastic_trainer import drive; drive()"
LISTS, STEP = 15, 3
PATIENCE_S = 300.0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("stage", "rank"), [(0, 4), (3, 0)], ids=["0-lora", "3"])
def test_a_group_that_loses_a_node_goes_on_smaller_and_grows_when_one_comes(
    trainer_config, tiny_policy, tmp_path, stage, rank
):
    """The whole policy, or adapters of that rank."""
    config = trainer_config(
        policy={"lora": {"rank": rank}},
        training={
            "workers": 2,
            "min_workers": 1,
            "resize_s": 2.0,
            "resources_per_worker": {"trainer": 1},
            "zero_stage": stage,
            "lists_per_step": STEP,
            "prompts_per_iteration": LISTS,
        },
        checkpoints={"every_steps": 1},
        timeouts={"trainer_start_s": PATIENCE_S},
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # of a start with a node that is gone, before the next one
        "RAY_raylet_start_wait_time_s": "180",  # on a machine that is busy
    }
    command = [sys.executable, "-c", START, str(tmp_path), str(tiny_policy)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["workers"] == [2, 1, 2]
    assert "the trainer goes on with 1 of 2 workers" in told["alarms"], done.stderr[-6000:]
    _, state, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert Counter(state.journal.consumed["0/0"]) == Counter(f"p{number}" for number in range(LISTS))
    assert state.step == LISTS // STEP


def drive() -> None:
    """The driver's process: a head, two nodes for trainers, a run during which one goes and another comes."""
    import ray
    from ray.cluster_utils import Cluster

    from actors import training_group
    from actors.placement import ENVIRONMENT
    from tests.actors.conftest import train_on
    from tests.conftest import make_candidate_list
    from tests.toy_runs import free_ports

    run_dir, policy = Path(sys.argv[1]), Path(sys.argv[2])
    config = Config.model_validate_json((run_dir / "config.json").read_text())
    with tempfile.TemporaryDirectory(prefix="lr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder  # short: sockets lie in it
        head = {"num_cpus": 2, "include_dashboard": False, "dashboard_port": free_ports(1)[0]}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        nodes = [cluster.add_node(num_cpus=1, resources={"trainer": 1}) for _ in range(2)]
        ray.init(cluster.address, runtime_env={"env_vars": ENVIRONMENT | {"HF_HUB_OFFLINE": "1"}}, log_to_driver=False)
        workers: list[int] = []

        async def lose_a_node() -> None:
            await _until(lambda: _position(run_dir) >= 2)
            ranks = train_workers()
            workers.append(len(ranks))
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            await _until(lambda: sum(rank.is_running() for rank in ranks) < 2)  # else it may train one step more

        async def gain_a_node() -> None:
            await _until(lambda: _position(run_dir) >= 3)
            workers.append(len(train_workers()))
            nodes.append(cluster.add_node(num_cpus=1, resources={"trainer": 1}))
            await _until(lambda: len(train_workers()) == 2)

        lists = [make_candidate_list(number, (5 + number % 3, 3)) for number in range(LISTS)]
        parts = [lists[:6], lose_a_node, lists[6:9], gain_a_node, lists[9:]]
        trained = asyncio.run(train_on(training_group.train, config, run_dir, [parts], policy))
        workers.append(2)
        ray.shutdown()
        cluster.shutdown()
    if trained.error is not None:
        raise trained.error
    (run_dir / "told.json").write_text(json.dumps({"workers": workers, "alarms": trained.alarms}))


def _position(run_dir: Path) -> int:
    """Of the newest committed checkpoint."""
    found = sorted((run_dir / "checkpoints").glob("position-*/manifest.json"))
    return int(found[-1].parent.name.rpartition("-")[2]) if found else 0


async def _until(condition) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.2)
