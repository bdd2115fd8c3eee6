"""An objective with a recipe's numbers: what a training step calls."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from larpo.baselines import ListBatch, log_ratios
from larpo.config import Objective as ObjectiveSection
from larpo.objective_table import ObjectiveSpec, get_spec


@dataclass(frozen=True)
class BoundObjective:
    """`loss(batch) -> loss_L`, whatever the objective takes."""

    spec: ObjectiveSpec
    beta: float
    options: Mapping[str, float] = field(default_factory=dict)

    def loss(self, batch: ListBatch) -> Tensor:
        """[L]; DataError when the batch lacks what the objective needs."""
        function = objective_function(self.spec)
        options = {**self.spec.options, **self.options}
        if self.spec.takes == "scores":
            return function(self.beta * log_ratios(batch), batch.rewards_LM, batch.where_LM, **options)
        return function(batch, **({"beta": self.beta} if self.spec.beta else {}), **options)

    def scores(self, log_probs: Tensor, reference: Tensor | None) -> Tensor:
        """The policy's scores gamma, for metrics; without a reference `beta log pi`."""
        return self.beta * (log_probs if reference is None else log_probs - reference.to(log_probs))


def bind(section: ObjectiveSection) -> BoundObjective:
    """The objective that a recipe's `objective` section names; ConfigError for an unknown name."""
    return BoundObjective(get_spec(section.name), section.beta, section.options)


def objective_function(spec: ObjectiveSpec) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"larpo.{spec.module}"), spec.function_name)
