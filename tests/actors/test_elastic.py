"""The elastic pool with Ray's own autoscaler and real engines: nodes come for samplers, and go with them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from actors.checkpoints import newest_checkpoint
from tests.autoscaling_cluster import AutoscalingCluster
from tests.toy_runs import REPOSITORY, Runs, check_exactly_once, train_workers

pytestmark = pytest.mark.slow
SLOT = {"sampler_slot": 1}  # a sampler asks for one; the head has one, and so has each node


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A head with room for one sampler, and the autoscaler, which may start two nodes with room for one more each."""
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{tmp_path}")
    types = {"sampler_node": {"resources": SLOT, "max_workers": 2}}
    started = AutoscalingCluster(tmp_path, types, head={"CPU": 2, **SLOT}, idle_s=5)
    yield started
    started.close()


def pool_on_the_cluster(policy: str, folder: Path) -> None:
    """In a process of its own: samples with one sampler, then two, then one again; prints what came of it."""
    import ray

    from actors.placement import ENVIRONMENT, place_store

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, runtime_env={"env_vars": ENVIRONMENT})
    store = place_store()
    ray.get(store.publish_folder.remote(1, published(policy, folder / "policy-0001")))
    print("found " + json.dumps(asyncio.run(PoolOnTheCluster(policy, store).go())), flush=True)


def published(policy: str, folder: Path) -> str:
    """The policy's own weights as version 1."""
    from safetensors.torch import load_file

    from actors.published import PublishedFolder, encode_bucket

    target = PublishedFolder(folder, 1)
    target.add(encode_bucket(load_file(Path(policy) / "model.safetensors")))
    target.close()
    return str(folder)


def nodes() -> int:
    """Beside the head."""
    import ray

    return sum(node["Alive"] for node in ray.nodes()) - 1


class PoolOnTheCluster:
    """A pool of real samplers, with one prompt more than they take at a time, for as long as it is looked at."""

    def __init__(self, policy: str, store) -> None:
        from actors.engine import EngineOptions
        from actors.placement import kill, place_sampler
        from actors.pool import SamplerPool
        from larpo.config import Config
        from larpo.policy import prepare_policy

        samplers = {"max_count": 2, "resources": SLOT, "max_model_len": 512, "max_num_seqs": 8, "enforce_eager": True}
        config = Config.model_validate(
            {"policy": {"model": policy, "dtype": "float32"}, "samplers": {**samplers, "drain_s": 0.01}}
        )
        self.failures, self.answers, self.over = [], {}, asyncio.Event()
        self.pool = SamplerPool(
            lambda name: place_sampler(config, EngineOptions.of(config), prepare_policy(config.policy), store),
            kill,
            config.samplers,
            config.timeouts,
            responses_per_sampler=8,
            on_failure=lambda name, reason: self.failures.append((name, reason)),
        )

    async def until(self, condition, limit_s: float) -> float:
        started = time.monotonic()
        async with asyncio.timeout(limit_s):
            while not condition():
                await self.pool.poll()
                await asyncio.sleep(0.2)
        return round(time.monotonic() - started, 1)

    async def answer(self, number: int) -> None:
        from actors.sampler import SampleTask

        task = SampleTask(f"0000/{number}", 0, (40, 41, 42), ((1.0, 4),), 200)
        self.answers.setdefault(task.key, []).append(await self.pool.sample(task))
        await self.pool.free_slots(4)

    async def feed(self, group: asyncio.TaskGroup) -> int:
        number = 0
        while not self.over.is_set():
            await self.pool.take_slots(4)
            group.create_task(self.answer(number))
            number += 1
        return number

    async def grow_and_shrink(self) -> dict:
        pool = self.pool
        await self.until(lambda: self.answers, 120)
        found = {"nodes_before": nodes()}
        pool.resize(2)
        found["pending"] = [member.status for member in pool.members]
        found["joined_s"] = await self.until(lambda: pool.ready == 2, 300)
        found["nodes_with_two"] = nodes()
        joiner = pool.members[1]
        await self.until(lambda: joiner.stats is not None and joiner.stats.prompts >= 3, 120)
        found["joiner_prompts"], found["joiner_version"] = joiner.stats.prompts, joiner.version
        pool.let_go(joiner)
        found["left_s"] = await self.until(lambda: len(pool.members) == 1, 60)
        found["node_gone_s"] = await self.until(lambda: nodes() == 0, 90)
        return found

    async def go(self) -> dict:
        await self.pool.start()
        await self.pool.update(1)
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(self.feed(group))
            found = await self.grow_and_shrink()
            self.over.set()
        groups = [group for answers in self.answers.values() for group in answers]
        return found | {
            "asked": feeding.result(),
            "answered": len(self.answers),
            "twice": sum(len(each) != 1 for each in self.answers.values()),
            "versions": sorted({span.version for group in groups for each in group for span in each.versions}),
            "handed_back": self.pool.handed_back,
            "against": [self.pool.requeued, self.pool.restarts, self.failures, self.pool.take_alarms()],
        }


PROMPTS = 1000  # enough work for a second sampler to be worth its start; the run is ended when both have sampled


def run_of(prompts: int, cluster: AutoscalingCluster, policy: Path, folder: Path) -> tuple[Runs, list[str]]:
    """A run on that cluster of one pass over so many prompts, not yet started, and its knobs."""
    runs = Runs(folder, policy, cluster.address)
    runs.environment = {name: value for name, value in cluster.environment.items() if name != "LARPO_TEST_MARK"}
    rows = [{"id": f"q{number}", "text": f"Say {number} in bytes."} for number in range(prompts + 2)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    knobs = [f"prompts.train_count={prompts}", f"training.prompts_per_iteration={prompts}"]
    return runs, [*knobs, "training.iterations=1", "training.epochs=1", "checkpoints.every_steps=1000"]


def prompts_by_sampler(runs: Runs) -> dict[str, float]:
    sampled = {name: 0.0 for name in ("sampler-0", "sampler-1")}
    for record in runs.records("sampler"):
        sampled[record["sampler"]] += record["sampler/prompts"]
    return sampled


@contextmanager
def slowed(processes: list[psutil.Process]) -> Iterator[None]:
    """These processes have a tenth of the time, whatever they do."""
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            for process in processes:
                with suppress(psutil.Error):
                    process.suspend()
            over.wait(0.3)
            for process in processes:
                with suppress(psutil.Error):
                    process.resume()
            over.wait(0.03)

    holding = threading.Thread(target=hold)
    holding.start()
    try:
        yield
    finally:
        over.set()
        holding.join()


@pytest.mark.timeout(1500)
def test_a_run_whose_stream_stays_full_lets_a_sampler_go_and_the_autoscaler_takes_its_node(
    cluster, tiny_policy, tmp_path
):
    """It begins with two samplers, and leave to have one; its trainer is slow, and they have little to do."""
    runs, knobs = run_of(120, cluster, tiny_policy, tmp_path)
    knobs += ["samplers.count=2", "samplers.min_count=1", "samplers.patience_s=3"]
    knobs += ["samplers.resources={sampler_slot: 1}", "sampling.max_new_tokens=4", "training.lists_per_step=1"]
    try:
        driver = runs.new("stream", *knobs)
        runs.until(lambda: sum(cluster.nodes().values()) == 1, driver)
        runs.until(lambda: runs.records("step"), driver)
        ranks = train_workers(list(psutil.process_iter()))  # the cluster's, not this run's, by their mark
        assert ranks
        with slowed(ranks):
            runs.until(lambda: any(record["wanted"] == 1 for record in runs.records("pool")), driver)
            (shrunk,) = [record for record in runs.records("pool") if record["wanted"] == 1]
            print(f"shrunk: {shrunk['reason']}")
            assert "samplers stood still for " in shrunk["reason"]
            runs.until(lambda: not cluster.nodes(), driver)
        assert driver.wait(900) == 0, runs.log()
        check_exactly_once(runs.run_dir, counts=(120,), epochs=1)
        assert not runs.records("failure")
    finally:
        for process in runs.processes():
            process.kill()


@pytest.mark.timeout(1500)
def test_a_run_whose_trainer_waits_asks_for_a_sampler_and_the_autoscaler_brings_its_node(
    cluster, tiny_policy, tmp_path
):
    """`python -m scripts.align` with one sampler, and leave to have two: its trainer is idle most of the time."""
    runs, knobs = run_of(PROMPTS, cluster, tiny_policy, tmp_path)
    knobs += ["sampling.max_new_tokens=60", "samplers.max_model_len=160", "training.lists_per_step=8"]
    knobs += ["samplers.max_count=2", "samplers.patience_s=10", "samplers.resources={sampler_slot: 1}"]
    try:
        driver = runs.new("stream", *knobs)
        runs.until(lambda: sum(cluster.nodes().values()) == 1, driver)
        runs.until(lambda: min(prompts_by_sampler(runs).values()) > 0, driver)
        print(f"prompts: {prompts_by_sampler(runs)}")
        grown = next(record for record in runs.records("pool") if record["wanted"] == 2)
        print(f"grown: {grown['reason']}")
        assert "the trainer waited for " in grown["reason"]
        driver.send_signal(signal.SIGTERM)
        driver.wait(120)
        _, state, _ = newest_checkpoint(runs.run_dir / "checkpoints")
        used = state.journal.used(0, 0)
        assert len(used) == len(set(used)) > 0
        assert not runs.records("failure")
        print(f"the node went {cluster.wait_for_nodes(0):.1f} s after the run")
    finally:
        for process in runs.processes():
            process.kill()


@pytest.mark.timeout(600)
def test_a_sampler_joins_on_a_new_node_with_the_newest_weights_and_its_node_goes_with_it(
    cluster, tiny_policy, tmp_path
):
    code = "import sys; from pathlib import Path; from tests.actors.test_elastic import pool_on_the_cluster as go;"
    command = [sys.executable, "-c", f"{code} go(sys.argv[1], Path(sys.argv[2]))", str(tiny_policy), str(tmp_path)]
    done = subprocess.run(command, env=cluster.environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-4000:] + cluster.log()
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    print(line)
    found = json.loads(line.removeprefix("found "))
    assert (found["nodes_before"], found["nodes_with_two"]) == (0, 1)
    assert found["pending"] == ["ready", "pending"]
    assert (found["joiner_version"], found["versions"]) == (1, [1])
    assert (found["answered"], found["twice"]) == (found["asked"], 0)
    assert found["handed_back"] > 0
    assert found["against"] == [0, 0, [], []]
