"""The layer shapes that the `gpu` benchmark computes on, and the arithmetic that they need.

Sizes are those of the published configurations of mistralai/Mistral-7B-v0.1 and google/gemma-2-2b; the weights are
random. A forward pass of one row needs

    2 * T * layers * (H * D * (2 * heads + 2 * kv_heads) + 3 * H * F)    linear layers of T tokens
    + 4 * S * layers * heads * D                                         attention over S query-key pairs that are seen
    + 2 * N * V * H                                                      the head, for N response tokens

floating-point operations, a multiplication and an addition counted as two, and the backward pass twice as many. H
hidden size, D head dimension, F size of the feed-forward layer, V vocabulary. What a side computes beyond that
(masked-out attention, logits of prompt tokens, logits computed again) is not counted: it lowers its share of the rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from larpo.errors import ConfigError

MODELS: dict[str, dict[str, Any]] = {
    "Mistral-7B": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "Gemma-2-2b": {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
}
_WIDTHS = ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "query_pre_attn_scalar")


@dataclass(frozen=True)
class Layout:
    """What one side runs to score a list once: tokens, query-key pairs that are seen, response tokens."""

    tokens: int
    seen: int
    predicted: int

    @staticmethod
    def packed(prompt: int, response: int, candidates: int) -> Layout:
        """The prompt once; each response sees it and itself."""
        seen = _causal(prompt) + candidates * (response * prompt + _causal(response))
        return Layout(prompt + candidates * response, seen, candidates * response)

    @staticmethod
    def rows(prompt: int, response: int, count: int) -> Layout:
        """`count` sequences, each a prompt and a response."""
        length = prompt + response
        return Layout(count * length, count * _causal(length), count * response)


def _causal(length: int) -> int:
    return length * (length + 1) // 2


def sized(name: str, layers: int, divisor: int) -> dict[str, Any]:
    """The fields of a model's configuration with so many layers at most, every width divided by `divisor`.

    Raises ConfigError for a divisor that does not divide half of the head dimension, which rotary positions pair up.
    """
    fields = dict(MODELS[name])
    half = fields["head_dim"] // 2
    if layers < 1 or divisor < 1 or half % divisor:
        raise ConfigError(
            f"--layers {layers} --width-divisor {divisor}: {name} takes 1 layer or more and a divisor of {half}"
        )
    fields["num_hidden_layers"] = min(layers, fields["num_hidden_layers"])
    return fields | {width: fields[width] // divisor for width in _WIDTHS if width in fields}


def operations(fields: dict[str, Any], layout: Layout) -> float:
    """Floating-point operations of a forward and a backward pass."""
    hidden, layers, heads = fields["hidden_size"], fields["num_hidden_layers"], fields["num_attention_heads"]
    head_dim, feed_forward = fields["head_dim"], fields["intermediate_size"]
    attention_weights = hidden * head_dim * (2 * heads + 2 * fields["num_key_value_heads"])
    linear = 2 * layout.tokens * layers * (attention_weights + 3 * hidden * feed_forward)
    attention = 4 * layout.seen * layers * heads * head_dim
    head = 2 * layout.predicted * fields["vocab_size"] * hidden
    return 3.0 * (linear + attention + head)


def check_lengths(prompt: int, response: int, candidates: int) -> None:
    """Raises ConfigError where a window would hide what `Layout` counts, or a list has no pair."""
    window = min(fields["sliding_window"] for fields in MODELS.values())
    if min(prompt, response) < 1 or prompt + response > window:
        raise ConfigError(
            f"--shape {prompt},{response}: takes 1 token or more of each, and {window} of both at most, the layers'"
            " sliding window"
        )
    if math.comb(candidates, 2) < 1:
        raise ConfigError(f"--sizes {candidates}: a list takes 2 candidates or more")
