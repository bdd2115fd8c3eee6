"""A conversation as a reward model reads it: training and scoring both encode here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from larpo.chat import plain_text
from larpo.types import Prompt


@dataclass(frozen=True)
class Conversation:
    """Token ids of a prompt and its response, or two that are compared, and their types (0 where there are none)."""

    ids: tuple[int, ...]
    types: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


def encode_conversation(tokenizer: Any, prompt: Prompt, response: str) -> Conversation:
    """By the model's own chat template; without one, prompt and response are a pair of texts."""
    if tokenizer.chat_template is None:
        pair = tokenizer(plain_text(prompt.messages), response)
        ids = tuple(pair["input_ids"])
        return Conversation(ids, tuple(pair.get("token_type_ids", [0] * len(ids))))
    turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
    turns.append({"role": "assistant", "content": response})
    ids = tuple(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"])
    return Conversation(ids, (0,) * len(ids))


def padded_batch(batch: Sequence[Conversation], *, pad: int | None, types: bool) -> dict[str, Tensor]:
    """The model's inputs, padded on the right: a decoder's head reads the last token that is not padding."""
    rows = [torch.tensor(conversation.ids) for conversation in batch]
    inputs = {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad or 0),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }
    if types:
        inputs["token_type_ids"] = pad_sequence([torch.tensor(c.types) for c in batch], batch_first=True)
    return inputs


def longest_conversation(config: Any, tokenizer: Any, max_tokens: int) -> int:
    """`max_tokens`, or fewer where the model has fewer positions: it cannot be asked about a longer conversation."""
    positions = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min([max_tokens, *(int(limit) for limit in positions if limit)])
