"""The frozen model that the policy is compared with, on one rank: a second model, or the same one, adapters off."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from actors.published import published_tensors, read_beside
from actors.sharding import deepspeed_config, gathered, start_deepspeed
from larpo.config import Config
from larpo.log_probs import PackedLogProbs
from larpo.lora import ADAPTER_WEIGHTS, KEPT, adapter_in_use, adapter_parameters
from larpo.packed_scorer import PackedScorer, scored
from larpo.packing import PackedRow


class Reference(Protocol):
    """Scores rows as the initial model does, or as a published policy that it was filled with."""

    head_calls: int  # see `PackedScorer`

    def score(self, row: PackedRow) -> PackedLogProbs: ...

    def fill(self, weights: Path) -> None:
        """Become the policy that was published in the folder `weights`; every rank calls it."""

    def move(self, device: str) -> None:
        """To another device, where it has weights of its own and they are whole."""


class WholeReference:
    """A second model: whole on every rank, or in pieces under ZeRO stage 3, as the policy is."""

    def __init__(self, model: torch.nn.Module, config: Config, ranks: int) -> None:
        self._config = config
        self._scorer = PackedScorer(model.eval().requires_grad_(False), config.training.chunk_tokens)
        self._engine: Any = self._scorer
        if config.training.stage == 3:
            settings = deepspeed_config(config, ranks) | {"zero_optimization": {"stage": 3}}
            self._engine = start_deepspeed(model=self._scorer, config=settings)

    def score(self, row: PackedRow) -> PackedLogProbs:
        return scored(self._engine, row)

    @property
    def head_calls(self) -> int:
        return self._scorer.head_calls

    @head_calls.setter
    def head_calls(self, calls: int) -> None:
        self._scorer.head_calls = calls

    def move(self, device: str) -> None:
        self._scorer.to(device)

    @torch.no_grad()
    def fill(self, weights: Path) -> None:
        parameters = dict(self._scorer.model.named_parameters())
        for name, value in published_tensors(weights):
            with gathered([parameters[name]], self._config, modifier_rank=0):
                if parameters[name].shape == value.shape:
                    parameters[name].copy_(value)


class AdapterReference:
    """The policy's own model, its trained adapters off: the initial model, with no second copy of its weights.

    With `objective.reference = iteration` a second, frozen adapter is on, a copy of the one that the iteration began
    with. Passes go through the policy's engine, where ZeRO stage 3 keeps its books; `head_calls` is the policy's.
    """

    def __init__(self, engine: Any, config: Config) -> None:
        self._engine, self._config = engine, config
        self._model = engine.module.model
        self._adapter = KEPT if config.objective.reference == "iteration" else None
        self.head_calls = 1

    @torch.no_grad()
    def score(self, row: PackedRow) -> PackedLogProbs:
        with adapter_in_use(self._model, self._adapter):
            return scored(self._engine, row)

    def move(self, device: str) -> None:
        """Its weights are the policy's."""

    @torch.no_grad()
    def fill(self, weights: Path) -> None:
        from safetensors.torch import load

        values = load(read_beside(weights)[ADAPTER_WEIGHTS])
        parameters = adapter_parameters(self._model, KEPT)
        with gathered(list(parameters.values()), self._config, modifier_rank=0):
            for name, parameter in parameters.items():
                if parameter.shape == values[name].shape:  # elsewhere its pieces come from rank 0
                    parameter.copy_(values[name])
