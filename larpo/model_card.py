"""The model card of an aligned policy: how it was made, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import larpo
from larpo.config import Config, Lora
from larpo.policy import base_id


def model_card(
    config: Config,
    results: Mapping[str, float],
    base: str,
    *,
    name: str = "",
    notes: Sequence[str] = (),
    chosen: str = "",
    adapter_only: bool = False,
) -> str:
    """A model card: front matter for the hub, then how the model was made and what was measured.

    `base` is a bundled name, hub id or folder; a folder is told in the text only, since the hub takes ids. `notes` say
    what is worth knowing of the base model's weights; `chosen`, why it is not the last policy of its run;
    `adapter_only`, that the folder holds LoRA's adapters alone.
    """
    library = "peft" if adapter_only else "transformers"
    model = base_id(base)
    is_id = model.count("/") <= 1 and not model.startswith(("/", ".", "~")) and not Path(model).exists()
    front = ["---", *([f"base_model: {model}"] if is_id else []), f"library_name: {library}"]
    front += ["pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in _tags(config)), "---"]
    story = [*_story(config, model, name, notes, adapter_only), *([chosen, ""] if chosen else [])]
    return "\n".join([*front, "", *story, *_numbers(results), *_CITATION]) + "\n"


def _tags(config: Config) -> tuple[str, ...]:
    return ("alignment", "preference-optimization", "larpo", config.objective.name)


_LORA_MERGED = "Trained with LoRA; the adapters are merged into these weights, which need no peft."
_LORA_ALONE = "Trained with LoRA; these are the adapters, which `peft.PeftModel.from_pretrained` puts on the base."


def _lora_row(lora: Lora) -> list[str]:
    on = ", ".join(lora.target_modules)
    row = f"| LoRA | rank {lora.rank}, alpha {lora.alpha}, dropout {lora.dropout:g}, on {on} |"
    return [row] if lora.rank else []


def _story(config: Config, base: str, name: str, notes: Sequence[str], adapter_only: bool) -> list[str]:
    training, sampling, lists = config.training, config.sampling, config.lists
    return [
        f"# {name or config.run.name or 'A policy aligned as a retriever'}",
        "",
        *([config.description, ""] if config.description else []),
        f"{base}, aligned with larpo: the policy samples candidates as a retriever does, a reward model ranks",
        "them, and the policy is trained on the ranked lists (Jin et al. 2025, Algorithm 1).",
        *(f"Of the base model: {note}." for note in notes),
        *([_LORA_ALONE if adapter_only else _LORA_MERGED] if config.policy.lora.rank else []),
        "",
        "| | |",
        "|---|---|",
        f"| prompts | {config.prompts.source}, {training.prompts_per_iteration} an iteration |",
        f"| reward | {config.reward.kind} {config.reward.source} |",
        f"| responses a prompt | {sampling.k}, up to {sampling.max_new_tokens} tokens |",
        f"| selection and memory | {lists.selection.policy}, {lists.memory} |",
        f"| objective | {config.objective.name}, beta {config.objective.beta}, reference "
        f"{config.objective.reference} |",
        f"| training | {training.iterations} iterations of {training.epochs} epochs, "
        f"{training.lists_per_step} lists a "
        f"step, learning rate {training.optimizer.learning_rate} |",
        *_lora_row(config.policy.lora),
        f"| seed | {config.run.seed} |",
        f"| made with | larpo {larpo.__version__} |",
        "",
    ]


def _numbers(results: Mapping[str, float]) -> list[str]:
    if not results:
        return ["No numbers were measured on held-out prompts.", ""]
    rows = [f"| {name} | {value:.4g} |" for name, value in results.items()]
    return ["Measured on held-out prompts:", "", "| measure | value |", "|---|---|", *rows, ""]


_CITATION = (
    "Method: Jin et al., LLM Alignment as Retriever Optimization: An Information Retrieval Perspective,",
    "ICML 2025, https://arxiv.org/abs/2502.03699.",
)
