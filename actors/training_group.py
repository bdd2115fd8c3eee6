"""The training group: Ray Train's start, for a policy and for a reward model, and how its end is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from actors.reward_trainer import RewardSpec, reward_loop
from actors.trainer import TrainSpec, train_loop
from larpo.config import Training
from larpo.errors import TrainingError
from larpo.reward_training_config import RewardFit


async def train(spec: TrainSpec) -> None:
    """Run the Ray Train group to the end of the stream, off the event loop; raises TrainingError with the cause."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not finished.done():
            finished.set_exception(error) if error else finished.set_result(None)

    def fit() -> None:
        error: BaseException | None = None
        try:
            _fit(spec)
        except BaseException as caught:
            error = caught
        with suppress(RuntimeError):  # the loop is closed: the run is over
            loop.call_soon_threadsafe(settle, error)

    # A daemon, unlike the loop's own threads: a run that ends early does not wait for the step in progress.
    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    await finished


def _fit(spec: TrainSpec) -> None:
    training, limit = spec.config.training, spec.config.timeouts.step_s
    fit_group(train_loop, spec, spec.checkpoints, training, step_s=limit, tell=spec.stream.group_failed)


def fit_reward_model(spec: RewardSpec) -> None:
    """Run the Ray Train group of a reward model's training to its end; raises TrainingError with the cause."""
    training, limit = spec.config.training, spec.config.timeouts.step_s
    fit_group(reward_loop, spec, spec.checkpoints, training, step_s=limit, tell=spec.desk.group_failed)


def fit_group(
    loop: Callable, spec: Any, storage: Path, training: Training | RewardFit, *, step_s: float, tell: Any = None
) -> None:
    """Run a Ray Train group whose ranks call `loop({"spec": spec})`, restarting it as `training` says.

    With a range of workers the group is started again, from its checkpoint, with as many as have room. Ray Train looks
    at what living nodes have in all, which it learns with a delay of up to 20 s: a start for which there is no room
    ends after RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S, and is tried again.
    `tell` is an actor's method that hears of the ranks that ended before their time.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = dict(training.resources_per_worker)
    gpu = resources.get("GPU", 0) > 0
    trainer = TorchTrainer(
        loop,
        train_loop_config={"spec": spec},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=int(step_s)),
        scaling_config=ScalingConfig(**_workers(training), use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=training.max_failures),
            callbacks=[_listener(tell)] if tell is not None else None,
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise TrainingError(f"the training group failed: {error}") from error


def _listener(tell: Any) -> Any:
    """Lives in Ray Train's controller, and passes on how ranks ended."""
    from ray.train import UserCallback

    class Listener(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            from actors.obituary import rank_failures

            tell.remote(rank_failures(worker_exceptions))

    return Listener()


def _workers(training: Training | RewardFit) -> dict[str, Any]:
    """A number of workers, or a range of it, in Ray Train's words."""
    if isinstance(training, RewardFit) or training.least == training.workers:
        return {"num_workers": training.workers}
    return {
        "num_workers": (training.least, training.workers),
        "elastic_resize_monitor_interval_s": training.resize_s,
    }
