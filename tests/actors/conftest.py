"""A training run of real parts, fed with lists that were recorded before: stream, store, Ray Train, DeepSpeed."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from larpo.config import Config
from larpo.errors import LarpoError
from larpo.policy import PreparedPolicy
from tests.toy_runs import Runs
from tests.training_groups import SharedGroups


@dataclass
class Trained:
    """What a run left, and what the conductor would have been told."""

    run_dir: Path
    steps: list[dict]
    references: dict[str, tuple[float, str]]
    alarms: list[str]
    error: LarpoError | None

    def metric(self, name: str) -> list[float]:
        return [step["metrics"][f"train/{name}"] for step in self.steps]

    def policy(self, iteration: int) -> dict[str, torch.Tensor]:
        """The weights that were published for `iteration`."""
        from actors.published import published_tensors
        from actors.trainer import policy_folder

        return dict(published_tensors(policy_folder(self.run_dir, iteration)))

    @property
    def consumed(self) -> dict[str, tuple[str, ...]]:
        """Prompt ids by "iteration/epoch", from the journal of the newest checkpoint."""
        from actors.checkpoints import newest_checkpoint

        _, state, _ = newest_checkpoint(self.run_dir / "checkpoints")
        return dict(state.journal.consumed)


@pytest.fixture(scope="session")
def trainer_config():
    """`trainer_config(training=..., policy=...)`: small, in float32, every list trained on as it is."""

    def make(**sections) -> Config:
        optimizer = {"learning_rate": 1e-2, "eps": 1e-4, "warmup": 0.0, "weight_decay": 0.1, "clip_norm": 0.5}
        training = {"iterations": 1, "prompts_per_iteration": 8, "lists_per_step": 5, "chunk_tokens": 16, "threads": 1}
        defaults = {
            "overlap": "stream",
            "policy": {"dtype": "float32"},
            "lists": {"selection": {"policy": "all"}, "near_duplicate": 1.0},
            "objective": {"name": "lambdarank", "beta": 1.0},
            "training": {**training, "optimizer": optimizer},
            "weights": {"bucket_mib": 1},
            "timeouts": {"stream_idle_s": 300.0, "step_s": 300.0},
        }
        for name, values in sections.items():
            defaults[name] = {**defaults.get(name, {}), **values} if isinstance(values, dict) else values
        return Config.model_validate(defaults)

    return make


@pytest.fixture
def runs(tmp_path, tiny_policy):
    """Whole runs that a test can kill; nothing of them is left."""
    started = Runs(tmp_path, tiny_policy)
    yield started
    for process in started.processes():
        process.kill()


@pytest.fixture(scope="module")
def shared_groups(local_ray, tmp_path_factory):
    """Training groups that take one run after the other."""
    groups = SharedGroups(tmp_path_factory.mktemp("groups"))
    yield groups
    groups.close()


@pytest.fixture(scope="module")
def train(shared_groups, tiny_policy):
    """`train(config, run_dir, iterations)`: trains on lists that are offered part by part, iteration by iteration.

    A part may be a coroutine function instead: it is awaited where it stands. An error is raised unless it `fails`.
    A `fresh` one starts a training group of its own.
    """

    def run(
        config: Config,
        run_dir: Path,
        iterations,
        *,
        policy: Path = tiny_policy,
        fails: bool = False,
        fresh: bool = False,
    ) -> Trained:
        from actors import training_group

        start = training_group.train if fresh else shared_groups[config.training.workers].train
        trained = asyncio.run(train_on(start, config, run_dir, iterations, policy))
        if trained.error is not None and not fails:
            raise trained.error
        return trained

    return run


async def train_on(start, config: Config, run_dir: Path, iterations, policy: Path) -> Trained:
    from actors import placement
    from actors.trainer import TrainSpec

    store = placement.place_store()
    stream = placement.place_stream(config, str(run_dir / "lists"))
    spec = TrainSpec(config, PreparedPolicy(policy, "tiny", config.policy), str(run_dir), stream, store)
    training = asyncio.create_task(start(spec))
    error = None
    try:
        for iteration, parts in enumerate(iterations):
            await _offer(stream, iteration, parts)
            while not await stream.wait_trained.remote(iteration, 5.0):
                if training.done():
                    await training
        await training
    except LarpoError as caught:
        error = caught
    finally:
        await stream.fail.remote("the test is over")
        await asyncio.wait({training}, timeout=60)
    status = await stream.status.remote()
    steps = [dict(record) for record in status.reports if "step" in record]
    trained = Trained(run_dir, steps, await stream.references.remote(), list(status.alarms), error)
    for actor in (store, stream):
        placement.kill(actor)
    return trained


async def _offer(stream, iteration: int, parts) -> None:
    """Offer what is not on disk yet, as the conductor does."""
    recorded = set(await stream.open_iteration.remote(iteration))
    for part in parts:
        if callable(part):
            await part()
            continue
        todo = [item for item in part if item.prompt.id not in recorded]
        if todo:
            await stream.offer.remote(todo)
    await stream.close_iteration.remote(iteration)
