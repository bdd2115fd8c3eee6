"""The part of a plan that says where actors lie: what each asks for, what a node must have, what shares a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from larpo.config import Config
from larpo.placement_checks import shares_gpu


@dataclass(frozen=True)
class Row:
    """Actors of one kind; each lies on one node, whole."""

    kind: str
    count: str
    resources: Mapping[str, float]
    note: str


def placement_rows(config: Config) -> list[Row]:
    """The actors of a run that ask for resources."""
    samplers, training, reward = config.samplers, config.training, config.reward
    count = _range(training.least, training.workers)
    trainer = Row("trainer worker", count, training.resources_per_worker, _trainer_note(config))
    if config.preferences.source is not None:
        return [trainer]
    return [
        Row("sampler", _range(samplers.least, samplers.most), samplers.resources, _sampler_note(config)),
        trainer,
        Row("reward", str(reward.replicas), reward.resources, _memory_note(reward.resources, _engine_share(config))),
    ]


def placement_lines(config: Config) -> list[str]:
    """A table of them, the node that the largest needs, and what one GPU may hold."""
    rows = placement_rows(config)
    cells = [("actor", "count", "each asks for", "")]
    cells += [(row.kind, row.count, asks(row.resources), row.note) for row in rows]
    widths = [max(len(cell[column]) for cell in cells) for column in range(3)]
    lines = [
        "  ".join([*(text.ljust(width) for text, width in zip(cell, widths, strict=False)), cell[3]]).rstrip()
        for cell in cells
    ]
    lines.append(f"an actor lies on one node: there must be one with {', and one with '.join(_nodes(rows))}")
    sharing = [f"{row.kind} {row.resources['GPU']:g}" for row in rows if shares_gpu(row.resources)]
    if sharing:
        lines.append(f"a GPU may hold {' + '.join(sharing)}")
    heads = ["  placement     ", *(" " * 16 for _ in lines)]
    return [head + line for head, line in zip(heads, lines, strict=False)]


def _nodes(rows: Sequence[Row]) -> list[str]:
    """What the nodes of the largest actors must have."""

    def fits(small: Mapping[str, float], large: Mapping[str, float]) -> bool:
        return all(amount <= large.get(name, 0) for name, amount in small.items())

    needs = [row.resources for row in sorted(rows, key=lambda row: -sum(row.resources.values()))]
    largest = [need for at, need in enumerate(needs) if not any(fits(need, other) for other in needs[:at])]
    return [asks(need) for need in largest]


def asks(resources: Mapping[str, float]) -> str:
    """Resources in words."""
    return " + ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"


def _range(least: int, most: int) -> str:
    return str(most) if least == most else f"{least} to {most}"


def _sampler_note(config: Config) -> str:
    samplers = config.samplers
    if samplers.sleep:
        return "by turns with the trainer worker, asleep while that works"
    if samplers.tensor_parallel_size > 1:
        return f"one engine over {samplers.tensor_parallel_size} GPUs of one node"
    return _memory_note(samplers.resources, samplers.memory_fraction)


def _trainer_note(config: Config) -> str:
    training = config.training
    if config.samplers.sleep and config.preferences.source is None:
        return "its state in the CPU's memory while the sampler is awake"
    if training.least < training.workers:
        return f"goes on with {training.least} when nodes are lost, grows when they come"
    return _memory_note(training.resources_per_worker, training.resources_per_worker.get("GPU", 0))


def _engine_share(config: Config) -> float:
    reward = config.reward
    engines = [section.pooling.memory_fraction for section in reward.sections() if section.kind == "vllm"]
    return sum(engines) or reward.resources.get("GPU", 0)


def _memory_note(resources: Mapping[str, float], share: float) -> str:
    return f"at most {share:.0%} of the GPU's memory" if shares_gpu(resources) else ""
