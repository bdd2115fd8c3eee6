"""A conversation as a reward model reads it: training and scoring both encode here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


def longest_conversation(config: Any, tokenizer: Any, max_tokens: int) -> int:
    """`max_tokens`, or fewer where the model has fewer positions: it cannot be asked about a longer conversation."""
    positions = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min([max_tokens, *(int(limit) for limit in positions if limit)])
