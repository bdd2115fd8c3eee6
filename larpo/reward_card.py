"""The model card of a trained reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import larpo
from larpo.reward_model import base_id
from larpo.reward_results import results_table
from larpo.reward_training_config import RewardTraining

_ADAPTERS = "These are its adapters and its head alone, which `peft.PeftModel.from_pretrained` puts on the base."
_USE = ["", "In a recipe: `reward: {kind: sequence_classification, classifier: {model: PATH}}`."]


def reward_card(
    config: RewardTraining,
    metrics: Mapping[str, float],
    *,
    name: str,
    notes: Sequence[str] = (),
    adapter_only: bool = False,
) -> str:
    """Front matter for the hub, then how the model was made, what was measured, and how it is used.

    `adapter_only`: the folder holds LoRA's adapters and the head alone.
    """
    base = base_id(config.base)
    is_id = base.count("/") <= 1 and not base.startswith(("/", ".", "~")) and not Path(base).exists()
    front = ["---", *([f"base_model: {base}"] if is_id else [])]
    front += [f"library_name: {'peft' if adapter_only else 'transformers'}"]
    front += ["pipeline_tag: text-classification", "tags:", "- reward-model", "- larpo", "---"]
    training, data = config.training, config.preferences
    story = [
        f"# {name}",
        "",
        *([config.description, ""] if config.description else []),
        f"{base} with a head of one output, trained with larpo to give a response its reward; the higher, the better.",
        *(f"{note[:1].upper()}{note[1:]}." for note in notes),
        *([_ADAPTERS] if adapter_only else []),
        "",
        "| | |",
        "|---|---|",
        f"| preferences | {data.source}{', with degenerate answers as the worst' if config.degenerate else ''} |",
        f"| loss | {training.loss} |",
        f"| trained | {'its head alone' if config.base.trained == 'head' else 'all of it'}, {training.epochs} epochs, "
        f"{training.lists_per_step} lists a step, learning rate {training.optimizer.learning_rate} |",
        f"| seed | {config.run.seed} |",
        f"| made with | larpo {larpo.__version__} |",
        "",
    ]
    header, *rows = results_table(metrics)
    table = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    use = [] if adapter_only else _USE
    return "\n".join([*front, "", *story, "Measured on held-out prompts:", "", *table, *use]) + "\n"
