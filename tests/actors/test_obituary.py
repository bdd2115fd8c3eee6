"""What is told of an actor that died, without a dashboard."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from actors import placement, training_group
from actors.cast import TrainingCast
from actors.obituary import Remains, how_it_ended, obituary, read_log
from actors.vitals import memory_of_this_process
from larpo.config import Config
from larpo.errors import TrainingError
from larpo.events import failure_kind


class Mortal:
    def say(self) -> int:
        print("the last thing it did")
        print("and what went wrong", file=sys.stderr, flush=True)
        return memory_of_this_process()

    def kill_itself(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self) -> None:
        sys.exit(7)

    def stumble(self) -> None:
        raise ValueError("a stone")

    def pid(self) -> int:
        return os.getpid()


LOG = ["    stderr: and what went wrong", "    stdout: the last thing it did"]


@pytest.mark.parametrize(
    ("method", "says"),
    [("kill_itself", "its process ended (SYSTEM_ERROR)"), ("leave", "exit code 7")],
)
def test_a_dead_actor_is_told_of_with_its_exit_memory_and_log(local_ray, method, says):
    actor = local_ray.remote(Mortal).options(num_cpus=0).remote()
    memory = local_ray.get(actor.say.remote())
    assert 10 * 2**20 < memory < 2**31
    with pytest.raises(local_ray.exceptions.RayActorError) as caught:
        local_ray.get(getattr(actor, method).remote())
    told = asyncio.run(obituary(caught.value, memory_bytes=3 * 2**29))
    first, *log = told.splitlines()
    assert says in first
    assert first.endswith("; it last held 1.5 GiB of memory")
    assert "common causes" not in told
    assert log == LOG


def test_an_error_of_a_living_actor_is_passed_on_with_its_log(local_ray):
    actor = local_ray.remote(Mortal).options(num_cpus=0).remote()
    local_ray.get(actor.say.remote())
    with pytest.raises(ValueError, match="a stone") as caught:
        local_ray.get(actor.stumble.remote())
    told = asyncio.run(obituary(caught.value, actor)).splitlines()
    assert told == ["ValueError: a stone", *LOG]
    assert asyncio.run(obituary(TimeoutError())) == "TimeoutError"


def test_an_actor_that_ray_has_started_again_is_told_of_by_its_first_process(local_ray):
    actor = local_ray.remote(Mortal).options(num_cpus=0, max_restarts=1, max_task_retries=-1).remote()
    local_ray.get(actor.say.remote())
    first = local_ray.get(actor.pid.remote())
    os.kill(first, signal.SIGKILL)
    assert local_ray.get(actor.pid.remote()) != first
    told = asyncio.run(obituary(None, actor)).splitlines()
    assert told[0].startswith("its process ended (SYSTEM_ERROR): ")
    assert told[1:] == LOG


def test_without_rays_words_it_says_so():
    assert how_it_ended("") == "it died, and Ray does not say why"
    assert how_it_ended("The actor died.\n\tclass_name: A\nIts node has died.") == "Its node has died."


def test_an_actor_out_of_reach_whose_node_goes_while_it_is_asked_for_its_log_was_lost_with_it(local_ray, monkeypatch):
    """Ray's tables show the node for a moment more."""
    other = Remains("0" * 56, "1" * 56, "", 0)

    def unschedulable(*_):
        raise local_ray.exceptions.TaskUnschedulableError("the node does not exist any more")

    monkeypatch.setattr("actors.obituary._remains", lambda _: other)
    monkeypatch.setattr(local_ray, "nodes", lambda: [{"NodeID": other.node, "Alive": True}])
    monkeypatch.setattr(placement, "on_node", unschedulable)
    error = local_ray.exceptions.ActorUnavailableError("RPC error: Connection refused", b"2" * 16)
    told = asyncio.run(obituary(error))
    assert told.splitlines()[0] == "its node 000000000000 is gone, and its log with it"
    assert "Connection refused" in told
    assert failure_kind("sampler-1", told) == "node"


@pytest.mark.slow
def test_the_log_is_read_on_the_actors_node_and_a_node_that_is_gone_is_told_of(tmp_path):
    """Two Ray nodes on this machine; the log files of the second are found through it alone."""
    script = "import tests.actors.test_obituary as own; own.on_two_nodes()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def on_two_nodes() -> None:
    """In a process of its own: the tests' Ray must not be left for this one."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        other = cluster.add_node(num_cpus=1, resources={"other": 1})
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        actor = ray.remote(Mortal).options(num_cpus=0, resources={"other": 0.1}).remote()
        ray.get(actor.say.remote())
        worker = ray.get(placement.on_node(other.node_id, read_log, "no such worker"))
        assert worker == ["its log is empty"]
        try:
            ray.get(actor.kill_itself.remote())
        except ray.exceptions.RayActorError as caught:
            error = caught
        assert asyncio.run(obituary(error)).splitlines()[1:] == LOG
        cluster.remove_node(other)
        gone = f"its node {other.node_id[:12]} is gone, and its log with it"
        assert asyncio.run(obituary(error)).splitlines()[1].strip() == gone
        unreached = ray.exceptions.ActorUnavailableError("no connection", actor._actor_id.binary())
        assert asyncio.run(obituary(unreached, actor)).splitlines()[0] == gone
        try:
            ray.get(placement.on_node(other.node_id, read_log, "no such worker"))
        except ray.exceptions.TaskUnschedulableError:
            return
        raise AssertionError("a task ran on a node that is gone")
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_group_that_gave_up_is_told_of_rank_by_rank(monkeypatch):
    """Without what Ray Train wraps around an error of the loop, and around the death of a worker."""
    from ray.exceptions import RayActorError
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

    died = "The actor died.\nWorker exit type: SYSTEM_ERROR Worker exit detail: Gone. Some common causes include: (1)"
    failures = {
        1: WorkerHealthCheckFailedError("A worker health check failed.", RayActorError(error_msg=died)),
        0: UserExceptionWithTraceback(ValueError("a stone"), "Traceback (most recent call last): ..."),
    }

    async def gives_up(spec):
        raise TrainingError("the training group failed") from WorkerGroupError("all at once", failures)

    monkeypatch.setattr(training_group, "train", gives_up)
    cast = object.__new__(TrainingCast)
    cast.run = SimpleNamespace(config=Config.model_validate({"training": {"max_failures": 2}}))
    with pytest.raises(TrainingError) as caught:
        asyncio.run(cast._train(None))
    assert str(caught.value).splitlines() == [
        "the training group failed, after 2 restarts (training.max_failures):",
        "rank 0: ValueError: a stone",
        "rank 1: its process ended (SYSTEM_ERROR): Gone.",
    ]
