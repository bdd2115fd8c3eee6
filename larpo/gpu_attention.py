"""Which attention kernels of a GPU serve a model, and what they have to be told. None of it has run on a GPU yet.

What is said of FlexAttention is of torch 2.13, read from its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

FLEX = "flex_attention"
# Fewer queries get a kernel of another kind, which serves few head counts and has no gradient; one block is a case too.
FLEX_TOKENS = 256
WIDE_HEAD, WIDE_HEAD_BYTES = 128, 114_688  # dimensions of a head, above which the backward kernel takes so many of SRAM
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")


def serves_flex(config: PreTrainedConfig) -> bool:
    """Whether a causal language model can run on FlexAttention, in training too: transformers refuses dropout there."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    drops = any(getattr(config, name, None) for name in _DROPOUTS)
    return not drops and _supports(MODEL_FOR_CAUSAL_LM_MAPPING, config, "_supports_flex_attn")


def flex_options(config: PreTrainedConfig, device: torch.device) -> dict[str, Any]:
    """What a backbone's call is told beside its inputs: smaller blocks where a GPU's SRAM holds none of the usual."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if device.type != "cuda" or head <= WIDE_HEAD:
        return {}
    gpu = torch.cuda.get_device_properties(device)
    if getattr(gpu, "shared_memory_per_block_optin", WIDE_HEAD_BYTES) >= WIDE_HEAD_BYTES:
        return {}
    blocks = {f"bwd_BLOCK_{side}": 32 for side in ("M1", "N1", "M2", "N2")}
    return {"kernel_options": {**blocks, "bwd_num_stages": 1}}


def plain_attention(config: PreTrainedConfig, device_type: str, dtype: str) -> str | None:
    """The `attn_implementation` for a classifier's plain rows: flash-attn where it is installed and fits.

    None: the default.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    from transformers.utils import is_flash_attn_2_available

    fits = device_type == "cuda" and dtype in ("bfloat16", "float16") and is_flash_attn_2_available()
    known = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return "flash_attention_2" if fits and _supports(known, config, "_supports_flash_attn") else None


def _supports(models: Mapping[type, Any], config: PreTrainedConfig, what: str) -> bool:
    """Whether the class of such a model says so; not, where transformers knows none: code of the model's own."""
    return type(config) in models and bool(getattr(models[type(config)], what, False))
