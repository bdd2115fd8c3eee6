"""The frozen model that the policy is compared with, on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from actors.sharding import deepspeed_config, gathered
from actors.weights import published_tensors
from larpo.config import Config
from larpo.log_probs import PackedLogProbs
from larpo.packed_scorer import PackedScorer, scored
from larpo.packing import PackedRow


class Reference:
    """Whole on every rank, or in pieces under ZeRO stage 3, as the policy is."""

    def __init__(self, model: torch.nn.Module, config: Config, ranks: int) -> None:
        self._config = config
        self._scorer = PackedScorer(model.eval().requires_grad_(False), config.training.chunk_tokens)
        self._engine: Any = self._scorer
        if config.training.zero_stage == 3:
            import deepspeed

            settings = deepspeed_config(config, ranks) | {"zero_optimization": {"stage": 3}}
            self._engine, *_ = deepspeed.initialize(model=self._scorer, config=settings, dist_init_required=False)

    def score(self, row: PackedRow) -> PackedLogProbs:
        return scored(self._engine, row)

    @property
    def head_calls(self) -> int:
        """See `PackedScorer`."""
        return self._scorer.head_calls

    @head_calls.setter
    def head_calls(self, calls: int) -> None:
        self._scorer.head_calls = calls

    @torch.no_grad()
    def fill(self, weights: Path) -> None:
        """Become the policy that was published in the folder `weights`; every rank calls it."""
        parameters = dict(self._scorer.model.named_parameters())
        for name, value in published_tensors(weights):
            with gathered([parameters[name]], self._config, modifier_rank=0):
                if parameters[name].shape == value.shape:
                    parameters[name].copy_(value)
