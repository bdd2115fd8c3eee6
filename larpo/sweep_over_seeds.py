"""The models of an experiment's arms side by side: sweeps of several seeds as one, in the form of a single one.

A number is the mean over seeds, its interval a t-interval over seeds (`larpo.experiment.t_interval`); those of a single
seed keep its own intervals, over prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from larpo.errors import DataError
from larpo.experiment import t_interval
from larpo.sweep_tables import Results

_NUMBERS = ("models", "differences", "win_rates", "ranking")


@dataclass(frozen=True)
class SweepResult:
    """One evaluation of arms that are evaluated alike, under one seed; `name` is the first arm's.

    `results` is what `results.json` holds (docs/evaluation.md), without what is of the machine. `arms` tells what each
    arm's model is: a hash of the arm's result, or the policy that was not trained.
    """

    name: str
    seed: int
    arms: Mapping[str, str]
    results: Results
    knobs: Mapping[str, Any]
    made: Mapping[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, file: Path) -> SweepResult:
        """DataError when the file holds no result."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{file} holds no result of a sweep ({error}); remove it to have it made again") from error


def over_seeds(seeds: Sequence[SweepResult]) -> dict[str, Any]:
    """Sweeps of the same models under several seeds, as one of them alone would be told."""
    first = seeds[0].results
    return {**first, **{key: _joined([seed.results[key] for seed in seeds]) for key in _NUMBERS}}


def _joined(values: Sequence[Any]) -> Any:
    """Of the same place in every seed: tables key by key, intervals as one over seeds, anything else from the first."""
    there = [value for value in values if value is not None]
    if there and isinstance(there[0], Mapping):
        keys = [key for key in there[0] if all(key in value for value in there)]
        return {key: _joined([value[key] for value in there]) for key in keys}
    if len(there) < 2 or not isinstance(there[0], Sequence) or isinstance(there[0], str):
        return there[0] if there else None
    found = t_interval([mean for mean, _, _ in there])
    return [found.mean, found.low, found.high]
