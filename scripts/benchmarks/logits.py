"""Log-probabilities from a full logit tensor: what a plain script computes, beside larpo's chunks.

N response tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def full_log_probs(head: nn.Module, hidden_NH: Tensor, targets_N: Tensor, softcap: float | None = None) -> Tensor:
    """`log softmax(cap(head(hidden)))[target]`, float32 [N], through [N, V] logits that the backward pass keeps."""
    return picked(capped(head(hidden_NH), softcap), targets_N)


def picked(logits: Tensor, targets: Tensor) -> Tensor:
    """`log softmax(logits)[target]` in float32: [..., V] and [...] -> [...]."""
    return logits.float().log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """`softcap * tanh(logits / softcap)`, or the logits themselves."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap
