"""`rounding`: how much of a change of float32 weights a bfloat16 model shows.

Either the weights began at random places of their rounding cells, as in training here (`larpo.rounding`), or their sum
with the change is rounded to the nearest, as mixed precision has it.

Measured by the policy's own log-probabilities. A few steps in float32 give a change; it is added to the weights, these
are rounded in either way, and a float32 model with the rounded weights tells what is left of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from larpo.attention import attention_implementation
from larpo.log_probs import plain_log_probs
from larpo.objectives import lambdarank
from larpo.packed_scorer import PackedScorer, scored
from larpo.packing import pack_list
from larpo.policy import load_policy
from larpo.rounding import spread_in_cells_
from larpo.types import CandidateList, stable_hash
from scripts.benchmarks.measuring import Comparison, Result, Series, in_own_process
from scripts.benchmarks.rows import ShortLists
from scripts.benchmarks.trainer import BETA, prepared_policy

RATE, STEPS = 2e-5, 12  # the quickstart's, and about as many as its iteration has
KEPT = "of float32's"


def run_rounding(policy: str, repetitions: int) -> Result:
    """One row; a repetition is a seed of the places, and of what is rounded to the nearest there is one value."""
    folder, _ = prepared_policy(policy, "float32")
    work = ShortLists(str(folder), "bfloat16", repetitions, lists=4, warm_ups=0)
    found = in_own_process(rounding_side, vars(work))
    spread, nearest = (Series(label, tuple(found[label])) for label in ("larpo", "to the nearest"))
    what = f"change of log-probabilities by {STEPS} steps at {RATE:g}"
    notes = (
        f"root mean square of the error, of that of the change: {found['error']:.3f}, {found['nearest error']:.3f}",
    )
    settings = {**vars(work), "policy": folder.name, "rate": RATE, "steps": STEPS}
    return Result("rounding", settings, (Comparison(what, KEPT, spread, nearest),), notes)


def rounding_side(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Shares of the change by least squares, and errors: the largest over seeds, and to the nearest."""
    work = ShortLists(**settings)
    lists = work.step()
    base = load_policy(Path(work.policy), dtype=work.dtype).float()  # as bfloat16 training begins
    moved = _stepped(base, lists)
    before, after = (_log_probs(model, lists) for model in (base, moved))
    change = after - before

    def left_of(rounded: Callable[[str, Tensor, Tensor], Tensor]) -> tuple[float, float]:
        found = _log_probs(_with_weights(base, moved, rounded), lists) - before
        return float(found @ change / (change @ change)), float((found - change).norm() / change.norm())

    nearest = left_of(lambda name, begun, ended: ended.bfloat16())
    spread = [left_of(_from_places(seed)) for seed in range(work.repetitions)]
    shares, errors = zip(*spread, strict=True)
    return {"larpo": shares, "to the nearest": [nearest[0]], "error": max(errors), "nearest error": nearest[1]}


def _stepped(base: Any, lists: Sequence[CandidateList]) -> Any:
    """The model after steps of AdamW on these lists, all in float32."""
    attention = attention_implementation(base.config, "cpu")
    model = copy.deepcopy(base).train()
    model.set_attn_implementation(attention)
    scorer = PackedScorer(model, 1024)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        for item in lists:
            row = pack_list(item.prompt_token_ids, [candidate.token_ids for candidate in item.candidates])
            rewards_LM = torch.tensor([[candidate.reward for candidate in item.candidates]])
            lambdarank(BETA * scored(scorer, row).log_probs_M[None], rewards_LM).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval()


@torch.no_grad()
def _log_probs(model: Any, lists: Sequence[CandidateList]) -> Tensor:
    """Of every response, by the model's own forward pass."""
    return torch.stack(
        [
            plain_log_probs(model, item.prompt_token_ids, candidate.token_ids).sum().double()
            for item in lists
            for candidate in item.candidates
        ]
    )


@torch.no_grad()
def _with_weights(base: Any, moved: Any, rounded: Callable[[str, Tensor, Tensor], Tensor]) -> Any:
    model = copy.deepcopy(base)
    begun, ended = (dict(side.named_parameters()) for side in (base, moved))
    for name, parameter in model.named_parameters():
        parameter.copy_(rounded(name, begun[name], ended[name]))
    return model


def _from_places(seed: int) -> Callable[[str, Tensor, Tensor], Tensor]:
    def rounded(name: str, begun: Tensor, ended: Tensor) -> Tensor:
        places = spread_in_cells_(begun.detach().clone(), seed=stable_hash(name, seed))
        return (places + (ended - begun)).bfloat16()

    return rounded
