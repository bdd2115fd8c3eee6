"""A trainer as a plain script has it: transformers, AdamW, one padded batch a list, full logits.

M candidates, T tokens of the longest row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from larpo.baselines import ListBatch
from larpo.bound_objective import bind
from larpo.config import Config
from larpo.policy import load_policy, load_tokenizer
from larpo.schedule import learning_rate
from larpo.types import CandidateList
from scripts.benchmarks.logits import picked


class PlainTrainer:
    """A policy, its optimizer and, where the objective asks for one, the reference."""

    def __init__(self, config: Config, policy: Path, reference: Path) -> None:
        self._config, self._source = config, policy
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._objective = bind(config.objective)
        self._type = getattr(torch, config.policy.dtype)
        self._model = load_policy(policy, dtype="float32").to(self._device).train()
        self._reference = None
        if self._objective.spec.reference:
            base = policy if config.objective.reference == "iteration" else reference
            self._reference = load_policy(base, dtype=config.policy.dtype).to(self._device)
        knobs = config.training.optimizer
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), betas=knobs.betas, eps=knobs.eps, weight_decay=knobs.weight_decay
        )

    def step(self, lists: Sequence[CandidateList], share: float) -> float:
        """One optimizer step on the mean loss of these lists, which it returns."""
        knobs, total = self._config.training.optimizer, 0.0
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(knobs, share)
        for item in lists:
            loss = self._loss(item) / len(lists)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), knobs.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total

    def write(self, folder: Path) -> None:
        """A model folder in the recipe's type, for transformers and vLLM."""
        self._model.to(self._type).save_pretrained(folder)
        load_tokenizer(self._source).save_pretrained(folder)

    def _loss(self, item: CandidateList) -> Tensor:
        lengths = torch.tensor([[len(c.token_ids) for c in item.candidates]], device=self._device)
        rewards_LM = torch.tensor([[c.reward for c in item.candidates]], device=self._device)
        reference_M = None
        if self._reference is not None:
            with torch.no_grad():
                reference_M = self._log_probs(self._reference, item)[None]
        log_probs_M = self._log_probs(self._model, item)
        return self._objective.loss(ListBatch(log_probs_M[None], rewards_LM, lengths, reference_M)).sum()

    def _log_probs(self, model: Any, item: CandidateList) -> Tensor:
        """`log pi(y_m | x)`, [M], of rows that are padded on the right."""
        prompt = len(item.prompt_token_ids)
        rows = [torch.tensor([*item.prompt_token_ids, *c.token_ids]) for c in item.candidates]
        ids_MT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._device)
        lengths_M = torch.tensor([len(row) for row in rows], device=self._device)
        real_MT = torch.arange(ids_MT.shape[1], device=self._device)[None] < lengths_M[:, None]
        with torch.autocast(self._device, torch.bfloat16, enabled=self._type == torch.bfloat16):
            logits_MTV = model(input_ids=ids_MT, attention_mask=real_MT.long(), use_cache=False).logits
        log_probs_MN = picked(logits_MTV[:, prompt - 1 : -1], ids_MT[:, prompt:])
        return log_probs_MN.masked_fill(~real_MT[:, prompt:], 0.0).sum(1)
