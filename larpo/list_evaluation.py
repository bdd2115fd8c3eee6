"""Held-out numbers without a sampler: what a policy makes of lists that it never trained on.

P lists. `loss` is the objective's own, over what it would train on of each list. Accuracy is the share of pairs of a
list, one with a strictly higher reward, that the policy orders the same way (a tie counts half), the mean over lists:
by its scores (gamma, against the reference) and by its log-probabilities. The interval of a difference is a percentile
bootstrap over lists, paired between the two policies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from larpo.errors import DataError
from larpo.evaluation import columns

MEASURES = ("loss", "score_accuracy", "log_prob_accuracy")
ENDS = ("diff", "diff_low", "diff_high")
_BLOCK = 4_000_000  # resampled list indices that exist at one time


@dataclass(frozen=True)
class ListResult:
    """What one policy makes of the held-out lists.

    `weights_P` are what the losses are weighted by: 1, or the response tokens where the objective is a mean over
    tokens. The accuracies are empty where the lists hold one response each.
    """

    label: str
    list_ids: tuple[str, ...]
    losses_P: tuple[float, ...]
    weights_P: tuple[float, ...]
    score_accuracy_P: tuple[float, ...]
    log_prob_accuracy_P: tuple[float, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ListResult:
        data: dict[str, Any] = json.loads(text)
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        return cls(**fields)

    def values(self, measure: str) -> tuple[float, ...]:
        """One number a list."""
        return self.losses_P if measure == "loss" else getattr(self, f"{measure}_P")

    def weights(self, measure: str) -> tuple[float, ...]:
        return self.weights_P if measure == "loss" else (1.0,) * len(self.list_ids)

    @property
    def measures(self) -> tuple[str, ...]:
        """Those that there are numbers of."""
        return tuple(measure for measure in MEASURES if self.values(measure))


def pair_accuracy(values: Sequence[float], rewards: Sequence[float]) -> float | None:
    """Share of pairs of different rewards whose values are in the same order, a tie half; None without a pair.

    >>> pair_accuracy([0.5, 0.2, 0.2], [3.0, 2.0, 1.0])
    0.8333333333333334
    """
    pairs = [(i, j) for i, high in enumerate(rewards) for j, low in enumerate(rewards) if high > low]
    right = sum(1.0 if values[i] > values[j] else 0.5 if values[i] == values[j] else 0.0 for i, j in pairs)
    return right / len(pairs) if pairs else None


def list_summary(result: ListResult) -> dict[str, float]:
    """The `given/*` metrics of one policy."""
    means = {f"given/{m}": _mean(result.values(m), result.weights(m)) for m in result.measures}
    return {**means, "given/lists": float(len(result.list_ids))}


def list_done_record(before: ListResult, after: ListResult, *, resamples: int, seed: int) -> dict[str, float]:
    """The metrics of a run's last record: both policies, and each difference with its interval."""
    if before.list_ids != after.list_ids:
        raise DataError(
            f"{before.label!r} and {after.label!r} were evaluated on different lists; remove the run's evaluation/ "
            "folder and resume"
        )
    record = {"given/lists": float(len(after.list_ids))}
    for measure in after.measures:
        values, weights = (before.values(measure), after.values(measure)), after.weights(measure)
        interval = weighted_bootstrap(*values, weights, resamples=resamples, seed=seed)
        record |= {
            f"given/{measure}_before": _mean(values[0], weights),
            f"given/{measure}_after": _mean(values[1], weights),
            **{f"given/{measure}_{end}": value for end, value in zip(ENDS, interval, strict=True)},
        }
    return record


def weighted_bootstrap(
    before_P: ArrayLike, after_P: ArrayLike, weights_P: ArrayLike, *, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float, float]:
    """Weighted mean of `after - before` over lists, and its percentile-bootstrap interval.

    A resample draws lists with replacement and divides by the weights that it drew. With equal weights this is
    `larpo.evaluation.paired_bootstrap`.

    >>> weighted_bootstrap([0.0, 0.0], [1.0, 1.0], [3.0, 1.0], resamples=100, seed=0)
    (1.0, 1.0, 1.0)
    """
    diff_P = np.asarray(after_P, dtype=np.float64) - np.asarray(before_P, dtype=np.float64)
    weights = np.asarray(weights_P, dtype=np.float64)
    rng, lists = np.random.default_rng(seed), diff_P.size
    block = max(1, _BLOCK // lists)
    means: list[NDArray[np.float64]] = []
    for start in range(0, resamples, block):
        drawn = rng.integers(0, lists, (min(block, resamples - start), lists))
        means.append((diff_P * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return _mean(diff_P, weights), float(low), float(high)


def _mean(values_P: ArrayLike, weights_P: ArrayLike) -> float:
    return float(np.average(np.asarray(values_P, dtype=np.float64), weights=np.asarray(weights_P, dtype=np.float64)))


TITLES = {"loss": "loss", "score_accuracy": "accuracy by score", "log_prob_accuracy": "accuracy by log-probability"}


def list_rows(record: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Header and lines of the result table, from a run's last record; the header alone where there is none."""
    header = ("", "base policy", "trained policy", "difference [95% interval]")
    rows = [
        (
            TITLES[measure],
            f"{record[f'given/{measure}_before']:.4f}",
            f"{record[f'given/{measure}_after']:.4f}",
            "{:+.4f} [{:+.4f}, {:+.4f}]".format(*(record[f"given/{measure}_{e}"] for e in ENDS)),
        )
        for measure in MEASURES
        if record.get(f"given/{measure}_after") is not None
    ]
    return [header, *rows]


def format_list_table(record: Mapping[str, Any]) -> str:
    """The result as plain text that fits 100 columns."""
    lines = columns(list_rows(record))
    title = f"Held-out: {record['given/lists']:.0f} lists of other prompts than those trained on."
    return "\n".join([title, "", lines[0], "-" * len(lines[0]), *lines[1:]])
