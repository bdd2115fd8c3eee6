"""Rewards by a Hugging Face model with a head of one output, such as a Bradley-Terry reward model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from larpo.conversations import encode_conversation, longest_conversation
from larpo.errors import ConfigError, DataError
from larpo.gpu_attention import plain_attention
from larpo.hub import find_model
from larpo.model_folder import reader_fingerprint
from larpo.recipe import bundled_recipes
from larpo.reward_config import Classifier, Pooling
from larpo.rewards import Request, Reward, finite
from larpo.row_batches import pick_device, score_rows
from larpo.types import Prompt, stable_hash


class ClassifierReward:
    """Scores the whole conversation, prompt and response, with the model's own tokenizer and chat template.

    Without a chat template the tokenizer gets prompt and response as a pair of texts, as cross-encoders are trained. A
    conversation of more than `max_tokens` tokens, and a score that is not finite, cost that one reward.

    Raises ConfigError or DataError as `classifier_folder`.
    """

    joint = False

    def __init__(self, section: Classifier, *, failed_reward: float = 0.0) -> None:
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        folder = classifier_folder(section)
        shared: dict[str, Any] = {"local_files_only": True, "trust_remote_code": section.trust_remote_code}
        self._section, self._failed = section, failed_reward
        self._device = pick_device(section.device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **shared)
        shape = AutoConfig.from_pretrained(folder, **shared)
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=getattr(torch, section.dtype),
            use_safetensors=True,
            attn_implementation=plain_attention(shape, self._device.type, section.dtype),
            **shared,
        )
        self._model.to(self._device).eval()
        model = reader_fingerprint(folder)
        self.fingerprint = f"{stable_hash('classifier', model, section.dtype, section.max_tokens):016x}"

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[Reward]:
        return self.score_lists([(prompt, responses)])[0]

    def score_lists(self, requests: Sequence[Request]) -> list[list[Reward]]:
        """All conversations of all lists, in batches of similar length."""
        encoded = [encode_conversation(self._tokenizer, p, text) for p, texts in requests for text in texts]
        limit = longest_conversation(self._model.config, self._tokenizer, self._section.max_tokens)
        source = "reward.classifier.max_tokens" if limit == self._section.max_tokens else "what the model reaches"
        rewards = {
            number: Reward(self._failed, f"{len(conversation)} tokens, over the limit of {limit} ({source})")
            for number, conversation in enumerate(encoded)
            if len(conversation) > limit
        }
        whole = [number for number in range(len(encoded)) if number not in rewards]
        pad, batch_tokens = self._model.config.pad_token_id, self._section.batch_tokens
        scores = score_rows([encoded[n] for n in whole], self._scores, batch_tokens=batch_tokens, pad=pad)
        rewards |= {n: finite(score, self._failed) for n, score in zip(whole, scores, strict=True)}
        flat = iter(rewards[number] for number in range(len(encoded)))
        return [[next(flat) for _ in texts] for _, texts in requests]

    def close(self) -> None:
        del self._model

    def _scores(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if "token_type_ids" not in self._tokenizer.model_input_names:
            inputs = {name: tensor for name, tensor in inputs.items() if name != "token_type_ids"}
        return self._model(**{name: tensor.to(self._device) for name, tensor in inputs.items()}).logits[:, 0]


def classifier_folder(section: Classifier) -> Path:
    """The model's folder, checked: a sequence classifier of one output, with a tokenizer.

    Raises:
        DataError: it cannot be had, has no such head, or no tokenizer.
        ConfigError: it needs code that is not trusted.
    """
    return _checked("reward.classifier", section)[0]


def pooling_folder(section: Pooling) -> Path:
    """The same for a model that vLLM serves; ConfigError too for one that tells prompt from response by token types."""
    folder, tokenizer = _checked("reward.pooling", section)
    if tokenizer.chat_template is None and "token_type_ids" in tokenizer.model_input_names:
        raise ConfigError(
            f"reward.pooling.model = {section.model!r}: it has token types and no chat template, and vLLM is given "
            "token ids alone; set reward.kind=sequence_classification, with the model as reward.classifier.model"
        )
    return folder


def _checked(where: str, section: Classifier | Pooling) -> tuple[Path, Any]:
    """Folder and tokenizer of a sequence classifier of one output."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        folder = find_model(where, str(section.model), section.revision, own_code=section.trust_remote_code)
    except DataError as error:
        raise type(error)(f"{error}{_how_to_make(Path(str(section.model)))}") from error
    shared: dict[str, Any] = {"local_files_only": True, "trust_remote_code": section.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(folder, **shared)
        tokenizer = AutoTokenizer.from_pretrained(folder, **shared)
    except (OSError, ValueError) as error:
        raise DataError(f"{where}.model = {section.model!r}: {folder} cannot be read: {error}") from error
    check_scalar_head(where, str(section.model), folder, config, section.trust_remote_code)
    return folder, tokenizer


def check_scalar_head(where: str, model: str, folder: Path, config: Any, own_code: bool) -> None:
    """DataError unless the folder is a sequence classifier of one output, ConfigError where only its own code loads it.

    `where` is the section of the recipe, for messages.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    heads = [name for name in config.architectures or [] if name.endswith("ForSequenceClassification")]
    if not heads or config.num_labels != 1:
        raise DataError(
            f"{where}.model = {model!r}: {folder} is {config.architectures} with {config.num_labels} "
            "outputs; give a ForSequenceClassification model of one output"
        )
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES and not own_code:
        raise ConfigError(
            f"{where}.trust_remote_code = False: {folder} is of type {config.model_type!r}, which only the "
            "Python code in its folder can load; read that code, then set it to true, or give another model"
        )


def _how_to_make(model: Path) -> str:
    """Where a missing folder is what a bundled recipe writes: the command."""
    made_here = model.name == "model" and model.parent.name in bundled_recipes()
    return f". This one is made by: python -m scripts.train_reward {model.parent.name}" if made_here else ""
