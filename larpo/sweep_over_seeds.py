"""The models of an experiment's arms side by side: sweeps of several seeds as one, in the form of a single one.

A number is the mean over seeds, its interval a t-interval over seeds (`larpo.experiment.t_interval`), which does not
hold what other held-out prompts would change: seeds share them. What no seed changes, the base policy and all of a
single seed, keeps intervals over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from larpo.experiment import KeptResult, t_interval
from larpo.sweep_tables import Results

_COMPARED = ("differences", "win_rates", "ranking")  # with the first model


@dataclass(frozen=True)
class SweepResult(KeptResult):
    """One evaluation of arms that are evaluated alike, under one seed; `name` is the first arm's.

    `results` is what `results.json` holds (docs/evaluation.md), without what is of the machine. `fingerprints`
    tell what each arm's model is: a hash of the arm's result, or the policy that was not trained.
    """

    name: str
    seed: int
    fingerprints: Mapping[str, str]
    results: Results
    knobs: Mapping[str, Any]
    made: Mapping[str, Any]


def over_seeds(seeds: Sequence[SweepResult]) -> dict[str, Any]:
    """Sweeps of the same models under several seeds, as one of them alone would be told."""
    every = [seed.results for seed in seeds]
    models = {name: _model([results["models"][name] for results in every]) for name in every[0]["models"]}
    joined = {key: _joined([results[key] for results in every], _over_seeds) for key in _COMPARED}
    return {**every[0], "models": models, **joined}


def _model(of_seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    same = len({model["fingerprint"] for model in of_seeds}) == 1
    return _joined(of_seeds, _mean_ends if same else _over_seeds)


def _joined(values: Sequence[Any], join: Callable[[Sequence[Sequence[float]]], list[float]]) -> Any:
    """Of the same place in every seed: tables key by key, intervals by `join`, anything else from the first."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _joined([value[key] for value in values], join) for key in first if all(key in v for v in values)}
    if len(values) < 2 or not isinstance(first, Sequence) or isinstance(first, str):
        return first
    return join(values)


def _over_seeds(intervals: Sequence[Sequence[float]]) -> list[float]:
    found = t_interval([mean for mean, _, _ in intervals])
    return [found.mean, found.low, found.high]  # type: ignore[list-item]  # of two seeds or more


def _mean_ends(intervals: Sequence[Sequence[float]]) -> list[float]:
    """Of a model that no seed changes: the seeds differ by what was sampled of it."""
    return [fmean(values) for values in zip(*intervals, strict=True)]
