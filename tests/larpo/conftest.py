"""Tiny random models of several families, and random lists for them."""

import random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

VOCABULARY = 97
_SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,
    eos_token_id=2,
    pad_token_id=0,
)

# Windows of 6 tokens are shorter than every prompt and most responses of `random_list`, so that they matter.
CONFIGS = {
    "llama": lambda: LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_SIZES),
    "qwen2-mixed-windows": lambda: Qwen2Config(
        **_SIZES, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "mistral-window": lambda: MistralConfig(**_SIZES, sliding_window=6),
    "gemma2": lambda: Gemma2Config(
        **_SIZES,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=6,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=6.0,
    ),
}


@pytest.fixture
def tiny_model():
    """`tiny_model(family or config, attn_implementation)`: the same weights for the same family, float32."""

    def make(family: str | PreTrainedConfig, attn_implementation: str, seed: int = 0):
        torch.manual_seed(seed)
        config = CONFIGS[family]() if isinstance(family, str) else family
        return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # On a busy machine, threads that wait for one another take longer than the work.
    yield make
    torch.set_num_threads(threads)


@pytest.fixture
def random_list():
    """`random_list(count)`: prompt ids and `count` responses of unequal length, one of a single token."""

    def make(count: int, seed: int = 0) -> tuple[list[int], list[list[int]]]:
        generator = random.Random(seed)
        lengths = ([9, 1, 14, 5, 11, 2, 7, 3, 12, 8] * 7)[:count]
        prompt, *responses = ([generator.randrange(VOCABULARY) for _ in range(n)] for n in (10, *lengths))
        return prompt, responses

    return make
