"""Rewards by a ranker that compares two responses at a time, such as PairRM."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from larpo.chat import plain_text
from larpo.comparisons import design, fit
from larpo.conversations import Conversation, longest_conversation
from larpo.errors import DataError
from larpo.hub import find_model
from larpo.model_folder import reader_fingerprint
from larpo.pairrm import ARCHITECTURE, load_pairrm, pairrm_row, token_ids
from larpo.reward_config import Ranker
from larpo.rewards import Request, Reward
from larpo.row_batches import pick_device, score_rows
from larpo.types import Prompt, stable_hash

Forward = Callable[[dict[str, torch.Tensor]], torch.Tensor]


class PairwiseReward:
    """One score a response, from comparisons in both orders (`larpo.comparisons`); a list's rewards have mean 0.

    Two kinds of models: PairRM, and any sequence classifier of one output over a text that holds prompt and both
    responses (`template`), whose logit says how much better the first is. What is too long is cut. A logit that is not
    finite costs the rewards of its list.

    Raises ConfigError or DataError as `ranker_folder`.
    """

    joint = True

    def __init__(self, section: Ranker, *, failed_reward: float = 0.0) -> None:
        from transformers import AutoConfig, AutoTokenizer

        folder = ranker_folder(section)
        shared: dict[str, Any] = {"local_files_only": True, "trust_remote_code": section.trust_remote_code}
        self._section, self._failed = section, failed_reward
        self._device = pick_device(section.device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **shared)
        config = AutoConfig.from_pretrained(folder, **shared)
        self._pad = config.pad_token_id
        self._is_pairrm = is_pairrm(config)
        most = section.max_tokens
        self._limit = most if self._is_pairrm else longest_conversation(config, self._tokenizer, most)
        self._model: Any = (
            load_pairrm(folder, config, self._tokenizer, getattr(torch, section.dtype))
            if self._is_pairrm
            else _classifier(folder, section, shared)
        )
        self._model.to(self._device).eval()
        knobs = (section.dtype, section.max_tokens, section.comparisons, section.template)
        self.fingerprint = f"{stable_hash('pairwise', reader_fingerprint(folder), *knobs):016x}"

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[Reward]:
        return self.score_lists([(prompt, responses)])[0]

    def score_lists(self, requests: Sequence[Request]) -> list[list[Reward]]:
        """All comparisons of all lists, in batches of similar length."""
        designs = [design(len(texts), self._section.comparisons) for _, texts in requests]
        rows = [
            self._row(prompt, texts[first], texts[second])
            for (prompt, texts), pairs in zip(requests, designs, strict=True)
            for i, j in pairs
            for first, second in ((i, j), (j, i))
        ]
        logits = iter(score_rows(rows, self._logits, batch_tokens=self._section.batch_tokens, pad=self._pad))
        margins = [[(next(logits) - next(logits)) / 2 for _ in pairs] for pairs in designs]
        return [
            self._rewards(len(texts), pairs, margin)
            for (_, texts), pairs, margin in zip(requests, designs, margins, strict=True)
        ]

    def close(self) -> None:
        del self._model

    def _rewards(self, count: int, pairs: Sequence[tuple[int, int]], margins: Sequence[float]) -> list[Reward]:
        strange = [margin for margin in margins if not math.isfinite(margin)]
        if strange:
            return [Reward(self._failed, f"a comparison of the list is not finite ({strange[0]})")] * count
        return [Reward(score) for score in fit(count, pairs, margins)]

    def _row(self, prompt: Prompt, first: str, second: str) -> Conversation:
        single = len(prompt.messages) == 1
        text, limit = prompt.messages[0].content if single else plain_text(prompt.messages), self._limit
        if self._is_pairrm:
            return pairrm_row(self._tokenizer, text, first, second, limit)
        return template_row(self._tokenizer, self._section.template, text, first, second, limit)

    def _logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        placed = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        if self._is_pairrm:
            return self._model(placed)
        if "token_type_ids" not in self._tokenizer.model_input_names:
            del placed["token_type_ids"]
        return self._model(**placed).logits[:, 0]


def template_row(tokenizer: Any, template: str, prompt: str, first: str, second: str, max_tokens: int) -> Conversation:
    """The row of one comparison as the template says it; what is too long is cut at its end, each text to a third."""
    texts = {"{prompt}": prompt, "{first}": first, "{second}": second}

    def filled(texts: dict[str, str]) -> Conversation:
        row = tokenizer(re.sub(r"{(?:prompt|first|second)}", lambda place: texts[place[0]], template))
        ids = tuple(row["input_ids"])
        return Conversation(ids, tuple(row.get("token_type_ids", [0] * len(ids))))

    whole = filled(texts)
    if len(whole) <= max_tokens:
        return whole
    third = max(0, max_tokens - len(filled(dict.fromkeys(texts, "")))) // 3
    cut = filled({place: _cut(tokenizer, text, third) for place, text in texts.items()})
    return Conversation(cut.ids[:max_tokens], cut.types[:max_tokens])


def _cut(tokenizer: Any, text: str, tokens: int) -> str:
    """The first tokens of a text, as text."""
    ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(ends) <= tokens else text[: ends[tokens - 1][1] if tokens else 0]


def is_pairrm(config: Any) -> bool:
    """By its architecture's name or, in a config without one, by the ids of its tokens."""
    named = ARCHITECTURE in (config.architectures or []) or hasattr(config, "cand1_prefix_id")
    return config.model_type == "deberta-v2" and named


def _classifier(folder: Path, section: Ranker, shared: dict[str, Any]) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=getattr(torch, section.dtype), use_safetensors=True, **shared
    )


def ranker_folder(section: Ranker) -> Path:
    """The ranker's folder, checked: PairRM, or a sequence classifier of one output with a fast tokenizer.

    Raises:
        DataError: it cannot be had, or is neither.
        ConfigError: it needs code that is not trusted.
    """
    from transformers import AutoConfig, AutoTokenizer

    from larpo.classifier_reward import check_scalar_head

    folder = find_model("reward.ranker", str(section.model), section.revision, own_code=section.trust_remote_code)
    shared: dict[str, Any] = {"local_files_only": True, "trust_remote_code": section.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(folder, **shared)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **shared)
    except (OSError, ValueError) as error:
        raise DataError(f"reward.ranker.model = {section.model!r}: {folder} cannot be read: {error}") from error
    if is_pairrm(config):
        token_ids(folder, tokenizer)
        return folder
    check_scalar_head("reward.ranker", str(section.model), folder, config, section.trust_remote_code)
    if not tokenizer.is_fast:
        raise DataError(f"reward.ranker.model = {section.model!r}: its tokenizer is not a fast one; add tokenizer.json")
    return folder
