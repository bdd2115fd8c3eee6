"""Held-out numbers: what a policy earns on prompts it never trained on, and how sure the difference is.

Shapes: P held-out prompts, N sampled responses a prompt. `reward` is the mean over prompts of the mean of
the N samples; `fully met` is the share of prompts whose greedy response has reward 1. The interval of a
difference is a percentile bootstrap over prompts, paired between the two policies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from larpo.errors import DataError

FULL_REWARD = 1.0
_BLOCK = 4_000_000  # resampled prompt indices that exist at one time


@dataclass(frozen=True)
class HeldoutResult:
    """What one policy did on the held-out prompts.

    `rewards_PN` and `response_tokens_PN` are of the sampled responses, `greedy_rewards_P` of the greedy one;
    `cut_off_share` is the share of sampled responses cut at the length limit.
    """

    label: str
    prompt_ids: tuple[str, ...]
    rewards_PN: tuple[tuple[float, ...], ...]
    greedy_rewards_P: tuple[float, ...]
    response_tokens_PN: tuple[tuple[int, ...], ...]
    cut_off_share: float

    def __post_init__(self) -> None:
        _check_shapes(self)

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> HeldoutResult:
        data: dict[str, Any] = json.loads(text)
        return cls(**{key: _tuples(value) for key, value in data.items()})


@dataclass(frozen=True)
class HeldoutRow:
    """One line of the final table; the differences are against the base policy, None on its own line."""

    label: str
    prompts: int
    samples: int
    reward: float
    greedy: float
    fully_met: float
    response_tokens: float
    diff: float | None = None
    diff_low: float | None = None
    diff_high: float | None = None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _check_shapes(result: HeldoutResult) -> None:
    """Every prompt has the same number of samples, and every reward is finite."""
    name, prompts = f"held-out result {result.label!r}", len(result.prompt_ids)
    if not prompts:
        raise DataError(f"{name} has no prompts; set prompts.heldout_count to at least 1")
    if len(set(result.prompt_ids)) != prompts:
        raise DataError(f"{name} names a prompt twice; prompt ids are unique")
    for field in ("rewards_PN", "greedy_rewards_P", "response_tokens_PN"):
        if len(getattr(result, field)) != prompts:
            raise DataError(f"{name}: {field} has {len(getattr(result, field))} rows for {prompts} prompts")
    sizes = {len(row) for row in (*result.rewards_PN, *result.response_tokens_PN)}
    if len(sizes) != 1 or 0 in sizes:
        raise DataError(f"{name}: prompts have {sorted(sizes)} samples; each needs the same number, at least 1")
    rewards = [*result.greedy_rewards_P, *(reward for row in result.rewards_PN for reward in row)]
    if not all(math.isfinite(reward) for reward in rewards):
        raise DataError(f"{name} holds a reward that is not finite; the reward actor replaces those by failed_reward")


def prompt_rewards(result: HeldoutResult) -> NDArray[np.float64]:
    """Mean reward of each prompt's samples, [P]."""
    return np.asarray(result.rewards_PN, dtype=np.float64).mean(axis=1)


def summary(result: HeldoutResult) -> dict[str, float]:
    """The `heldout/*` metrics of one policy."""
    rewards_P, rewards_PN = prompt_rewards(result), np.asarray(result.rewards_PN, dtype=np.float64)
    greedy_P, prompts = np.asarray(result.greedy_rewards_P, dtype=np.float64), len(result.prompt_ids)
    spread = float(rewards_P.std(ddof=1)) if prompts > 1 else 0.0
    return {
        "heldout/reward": float(rewards_P.mean()),
        "heldout/reward_stderr": spread / math.sqrt(prompts),
        "heldout/greedy": float(greedy_P.mean()),
        "heldout/fully_met": float((greedy_P >= FULL_REWARD).mean()),
        "heldout/fully_met_any": float((rewards_PN >= FULL_REWARD).any(axis=1).mean()),
        "heldout/fully_met_samples": float((rewards_PN >= FULL_REWARD).mean()),
        "heldout/response_tokens": float(np.mean(result.response_tokens_PN)),
        "heldout/cut_off_share": float(result.cut_off_share),
        "heldout/prompts": prompts,
        "heldout/samples": rewards_PN.shape[1],
    }


def paired_bootstrap(
    before_P: ArrayLike, after_P: ArrayLike, *, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of `after - before` over prompts, and its percentile-bootstrap interval.

    Args:
        before_P, after_P: one number a prompt, the same prompts in the same order, [P].
        resamples: how many times P prompts are drawn with replacement.
        level: probability that the interval is built for.

    >>> paired_bootstrap([0.0, 0.0], [1.0, 1.0], resamples=100, seed=0)
    (1.0, 1.0, 1.0)
    """
    before, after = np.asarray(before_P, dtype=np.float64), np.asarray(after_P, dtype=np.float64)
    if before.ndim != 1 or before.shape != after.shape or not before.size:
        raise DataError(f"a paired bootstrap needs two equal, non-empty [P] arrays, got {before.shape}, {after.shape}")
    if not 0 < level < 1:
        raise DataError(f"bootstrap level {level} is outside (0, 1)")
    if resamples < 1:
        raise DataError(f"bootstrap resamples {resamples} is below 1; set evaluation.bootstrap")
    diff_P = after - before
    means = _resampled_means(diff_P, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(diff_P.mean()), float(low), float(high)


def _resampled_means(values_P: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of `resamples` draws of P values with replacement, in blocks of bounded memory."""
    prompts = values_P.size
    block = max(1, _BLOCK // prompts)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([values_P[rng.integers(0, prompts, (size, prompts))].mean(axis=1) for size in sizes])


def heldout_table(
    before: HeldoutResult, after: HeldoutResult, *, resamples: int, seed: int
) -> tuple[HeldoutRow, HeldoutRow]:
    """Base policy, then aligned policy with the interval of its difference in reward."""
    base, aligned = rows_of_record(done_record(before, after, resamples=resamples, seed=seed))
    return base, aligned


def _check_same_prompts(before: HeldoutResult, after: HeldoutResult) -> None:
    """A paired interval needs the same prompts in the same order."""
    if before.prompt_ids == after.prompt_ids:
        return
    pairs = zip_longest(before.prompt_ids, after.prompt_ids, fillvalue="(none)")
    index, (left, right) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise DataError(
        f"prompt {index} is {left!r} for {before.label!r} and {right!r} for {after.label!r}; "
        "evaluate both policies on the same held-out prompts in the same order"
    )


def done_record(before: HeldoutResult, after: HeldoutResult, *, resamples: int, seed: int) -> dict[str, float]:
    """The metrics of a run's last record: both policies, the difference and its interval."""
    _check_same_prompts(before, after)
    diff = paired_bootstrap(prompt_rewards(before), prompt_rewards(after), resamples=resamples, seed=seed)
    nouns = (
        "reward",
        "greedy",
        "fully_met",
        "fully_met_any",
        "fully_met_samples",
        "response_tokens",
        "cut_off_share",
    )
    policies = {"before": summary(before), "after": summary(after)}
    numbers = {
        f"heldout/{noun}_{when}": policy[f"heldout/{noun}"] for when, policy in policies.items() for noun in nouns
    }
    names = ("heldout/reward_diff", "heldout/reward_diff_low", "heldout/reward_diff_high")
    counts = {name: policies["after"][name] for name in ("heldout/prompts", "heldout/samples")}
    return {**numbers, **dict(zip(names, diff, strict=True)), **counts}


def rows_of_record(done: Mapping[str, Any]) -> list[HeldoutRow]:
    """The rows of the final table from a run's last record: base, aligned and, where it is another, the last policy."""
    interval = [done[f"heldout/{name}"] for name in ("reward_diff", "reward_diff_low", "reward_diff_high")]
    rows = [_row_of("base policy", done, "_before"), _row_of("aligned policy", done, "_after", *interval)]
    if is_chosen(done):
        rows.append(_row_of("last policy", done["last"], ""))
    return rows


def is_chosen(done: Mapping[str, Any]) -> bool:
    """Whether a run left another policy than its last."""
    return "last" in done and any(done["last"][key] != place for key, place in done["taken"].items())


def chosen_text(done: Mapping[str, Any]) -> str:
    """Which policy a run left where that is not its last, as a sentence."""
    taken, last = done["taken"]["label"], done["last"]["label"]
    metric = done["best_metric"]
    return f"The aligned policy ({taken}) is the best by {metric}; the last policy ({last}) stands beside it."


def _row_of(label: str, numbers: Mapping[str, Any], suffix: str, *interval: float) -> HeldoutRow:
    counts = (int(numbers[f"heldout/{noun}"]) for noun in ("prompts", "samples"))
    nouns = ("reward", "greedy", "fully_met", "response_tokens")
    return HeldoutRow(label, *counts, *(numbers[f"heldout/{noun}{suffix}"] for noun in nouns), *interval)


def format_table(rows: Sequence[HeldoutRow]) -> str:
    """The rows as plain text that fits 80 columns."""
    header = ("", "mean reward", "difference [95% interval]", "fully met", "mean length")
    cells = [header, *(_cells(row) for row in rows)]
    lines = columns(cells)
    title = f"Held-out: {rows[0].prompts} prompts, {rows[0].samples} samples each; fully met by the greedy response."
    return "\n".join([title, "", lines[0], "-" * len(lines[0]), *lines[1:]])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text, the first column set left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _cells(row: HeldoutRow) -> tuple[str, str, str, str, str]:
    diff = ""
    if row.diff is not None:
        diff = f"{row.diff:+.3f} [{row.diff_low:+.3f}, {row.diff_high:+.3f}]"
    return (row.label, f"{row.reward:.3f}", diff, f"{row.fully_met:.1%}", f"{row.response_tokens:.1f} tokens")
