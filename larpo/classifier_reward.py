"""Rewards by a Hugging Face model with a head of one output, such as a Bradley-Terry reward model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from larpo.attention import plain_attention
from larpo.config import Classifier
from larpo.conversations import Conversation, encode_conversation, longest_conversation, padded_batch
from larpo.errors import ConfigError, DataError
from larpo.hub import find_model
from larpo.model_folder import fingerprint
from larpo.recipe import bundled_recipes
from larpo.rewards import Request, Reward, finite
from larpo.types import Prompt, stable_hash


class ClassifierReward:
    """Scores the whole conversation, prompt and response, with the model's own tokenizer and chat template.

    Without a chat template the tokenizer gets prompt and response as a pair of texts, as cross-encoders are trained. A
    conversation of more than `max_tokens` tokens, and a score that is not finite, cost that one reward.

    Raises ConfigError or DataError as `classifier_folder`.
    """

    joint = False

    def __init__(self, section: Classifier, *, failed_reward: float = 0.0) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = classifier_folder(section)
        shared: dict[str, Any] = {"local_files_only": True, "trust_remote_code": section.trust_remote_code}
        self._section, self._failed = section, failed_reward
        self._device = torch.device(_device(section))
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **shared)
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=getattr(torch, section.dtype),
            use_safetensors=True,
            attn_implementation=plain_attention(self._device.type, section.dtype),
            **shared,
        )
        self._model.to(self._device).eval()
        self.fingerprint = f"{stable_hash('classifier', fingerprint(folder), section.dtype, section.max_tokens):016x}"

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
        for batch in self._batches({n: item for n, item in enumerate(encoded) if n not in rewards}):
            scores = self._scores([encoded[number] for number in batch])
            rewards |= {n: finite(score, self._failed) for n, score in zip(batch, scores, strict=True)}
        flat = iter(rewards[number] for number in range(len(encoded)))
        return [[next(flat) for _ in texts] for _, texts in requests]

    def close(self) -> None:
        del self._model

    def _batches(self, encoded: dict[int, Conversation]) -> Iterator[list[int]]:
        """Numbers of the conversations of each batch; of one length only where the model has no padding token."""
        pads = self._model.config.pad_token_id is not None
        batch: list[int] = []
        longest = 0
        for number in sorted(encoded, key=lambda n: len(encoded[n])):
            length = len(encoded[number])
            if batch and (length * (len(batch) + 1) > self._section.batch_tokens or (length != longest and not pads)):
                yield batch
                batch = []
            batch.append(number)
            longest = length
        if batch:
            yield batch

    @torch.no_grad()
    def _scores(self, batch: Sequence[Conversation]) -> list[float]:
        types = "token_type_ids" in self._tokenizer.model_input_names
        inputs = padded_batch(batch, pad=self._model.config.pad_token_id, types=types)
        logits = self._model(**{name: tensor.to(self._device) for name, tensor in inputs.items()}).logits
        return logits[:, 0].float().tolist()


def classifier_folder(section: Classifier) -> Path:
    """The model's folder, checked: a sequence classifier of one output, with a tokenizer.

    Raises:
        DataError: it cannot be had, has no such head, or no tokenizer.
        ConfigError: it needs code that is not trusted.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    name = str(section.model)
    try:
        folder = find_model("reward.classifier", name, section.revision, own_code=section.trust_remote_code)
    except DataError as error:
        raise DataError(f"{error}{_how_to_make(Path(name))}") from error
    shared: dict[str, Any] = {"local_files_only": True, "trust_remote_code": section.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(folder, **shared)
        AutoTokenizer.from_pretrained(folder, **shared)
    except (OSError, ValueError) as error:
        raise DataError(f"reward.classifier.model = {section.model!r}: {folder} cannot be read: {error}") from error
    heads = [name for name in config.architectures or [] if name.endswith("ForSequenceClassification")]
    if not heads or config.num_labels != 1:
        raise DataError(
            f"reward.classifier.model = {section.model!r}: {folder} is {config.architectures} with {config.num_labels} "
            "outputs; give a ForSequenceClassification model of one output"
        )
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES and not section.trust_remote_code:
        raise ConfigError(
            f"reward.classifier.trust_remote_code = False: {folder} is of type {config.model_type!r}, which only the "
            "Python code in its folder can load; read that code, then set it to true, or give another model"
        )
    return folder


def _how_to_make(model: Path) -> str:
    """Where a missing folder is what a bundled recipe writes: the command."""
    made_here = model.name == "model" and model.parent.name in bundled_recipes()
    return f". This one is made by: python -m scripts.train_reward {model.parent.name}" if made_here else ""


def _device(section: Classifier) -> str:
    if section.device != "auto":
        return section.device
    return "cuda" if torch.cuda.is_available() else "cpu"
