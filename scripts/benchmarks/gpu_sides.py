"""The ways of the `gpu` benchmark to the loss of one list and its gradient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from larpo.objectives import lambdarank
from larpo.packed_scorer import PackedScorer, scored
from larpo.packing import pack_list
from larpo.types import CandidateList
from scripts.benchmarks.logits import picked

BETA = 0.1
CHUNK_TOKENS = 512  # as `training.chunk_tokens` is by default
PAIRS_A_PASS = 4


def dense_attention(config: Any) -> str:
    """SDPA, or "eager" for a model whose cap on attention scores SDPA leaves out."""
    return "sdpa" if getattr(config, "attn_logit_softcapping", None) is None else "eager"


def packed_row(model: Any, item: CandidateList) -> float:
    """The loss of the list as one packed row, and its gradient."""
    row = pack_list(item.prompt_token_ids, [candidate.token_ids for candidate in item.candidates])
    loss = _list_loss(scored(PackedScorer(model, CHUNK_TOKENS), row).log_probs_M, item)
    loss.backward()
    return loss.item()


def row_a_response(model: Any, item: CandidateList) -> float:
    """The same from a batch of one row a response, each with its own copy of the prompt."""
    loss = _list_loss(_row_log_probs(model, item, range(len(item.candidates))), item)
    loss.backward()
    return loss.item()


def all_pairs(model: Any, item: CandidateList) -> float:
    """The same as a sum over pairs, some of them a pass, their gradients added up."""
    pairs = list(itertools.combinations(range(len(item.candidates)), 2))  # better first: the list is ranked
    total = 0.0
    for start in range(0, len(pairs), PAIRS_A_PASS):
        some = pairs[start : start + PAIRS_A_PASS]
        better_P, worse_P = _row_log_probs(model, item, [i for pair in some for i in pair]).view(-1, 2).unbind(1)
        loss = -F.logsigmoid(BETA * (better_P - worse_P)).sum()
        loss.backward()
        total += loss.item()
    return total


def _list_loss(log_probs_M: Tensor, item: CandidateList) -> Tensor:
    rewards_LM = torch.tensor([[candidate.reward for candidate in item.candidates]], device=log_probs_M.device)
    return lambdarank(BETA * log_probs_M[None], rewards_LM).sum()


def _row_log_probs(model: Any, item: CandidateList, numbers: Sequence[int]) -> Tensor:
    """`log pi(y | x)` of these candidates from full logits, [rows]; all responses have one length."""
    prompt = item.prompt_token_ids
    rows = [[*prompt, *item.candidates[number].token_ids] for number in numbers]
    ids_BT = torch.tensor(rows, device=model.device)
    logits_BTV = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits
    start = len(prompt)
    return picked(logits_BTV[:, start - 1 : -1], ids_BT[:, start:]).sum(1)
