"""What a training step says of itself: sums over one rank's lists, which add up over ranks, and the means of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from larpo.hardness import score_gap
from larpo.list_step import ListOutcome

MAX_WEIGHT = 10.0  # of one response in the estimate of the divergence

SUMS = (
    "lists",
    "loss",
    "tokens",
    "rows",
    "response_tokens",
    "kl",
    "kl_tokens",
    "entropy",
    "score_gap",
    "ordered_pairs",
    "right_pairs",
    "fresh_tokens",
    "gap",
    "fresh_lists",
    "staleness",
)


def rank_sums(outcomes: Sequence[ListOutcome], publication: int) -> tuple[dict[str, float], float]:
    """Sums by name, and the largest staleness, of one rank's lists under weights of that publication."""
    sums, stalest = dict.fromkeys(SUMS, 0.0), 0.0
    for outcome in outcomes:
        for name, value in _list_sums(outcome).items():
            sums[name] += value
        if outcome.source.is_fresh:
            staleness = float(abs(publication - outcome.source.publication))  # ahead: of steps that were rolled back
            sums["fresh_lists"] += 1
            sums["staleness"] += staleness
            stalest = max(stalest, staleness)
    return sums, stalest


def step_metrics(
    sums: Mapping[str, float], stalest: float, *, on_policy: bool, per: Literal["list", "token"] = "list"
) -> dict[str, float]:
    """Metrics of a step from sums over all ranks; the loss is the mean over its lists or its response tokens.

    `on_policy`: the trainer's weights are those that were published last. With lists that samplers made of the same,
    the gap between their log-probabilities is numerical noise (`train/log_prob_gap`); else it holds the policy's own
    movement too (`train/policy_gap`).
    """

    def share(name: str, of: str) -> float:
        return sums[name] / sums[of] if sums[of] else 0.0

    return {
        "train/lists": sums["lists"],
        "train/tokens": sums["tokens"],
        "train/rows": sums["rows"],
        "train/loss": share("loss", "lists" if per == "list" else "response_tokens"),
        "train/entropy": share("entropy", "response_tokens"),
        **(_ranking(sums) if sums["ordered_pairs"] else {}),
        **({"train/kl_to_reference": sums["kl"] / sums["kl_tokens"]} if sums["kl_tokens"] else {}),
        **(_freshness(sums, stalest, on_policy) if sums["fresh_tokens"] else {}),
    }


def _ranking(sums: Mapping[str, float]) -> dict[str, float]:
    """Of lists with candidates of different rewards; lists of one response have none."""
    return {
        "train/score_gap": sums["score_gap"] / sums["lists"],
        "train/ranking_accuracy": sums["right_pairs"] / sums["ordered_pairs"],
    }


def _freshness(sums: Mapping[str, float], stalest: float, on_policy: bool) -> dict[str, float]:
    """Of the candidates that samplers made in this iteration; lists of a dataset have none."""
    return {
        "train/staleness_mean": sums["staleness"] / sums["fresh_lists"] if sums["fresh_lists"] else 0.0,
        "train/staleness_max": stalest,
        "train/log_prob_gap" if on_policy and not stalest else "train/policy_gap": sums["gap"] / sums["fresh_tokens"],
    }


def _list_sums(outcome: ListOutcome) -> dict[str, float]:
    rewards = [candidate.reward or 0.0 for candidate in outcome.source.candidates]
    scores = outcome.scores_M.tolist()
    pairs = [(i, j) for i in range(len(rewards)) for j in range(len(rewards)) if rewards[i] > rewards[j]]
    fresh, gap = _sampler_gap(outcome)
    tokens = sum(len(candidate.token_ids) for candidate in outcome.source.candidates)
    return {
        "lists": 1,
        "loss": outcome.loss,
        "tokens": tokens + len(outcome.source.prompt_token_ids),
        "rows": outcome.rows,
        "response_tokens": tokens,
        **_kl_sums(outcome),
        "entropy": float(outcome.token_entropies_N.sum()),
        "score_gap": score_gap(scores, rewards) if pairs else 0.0,
        "ordered_pairs": len(pairs),
        "right_pairs": sum((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for i, j in pairs),
        "fresh_tokens": fresh,
        "gap": gap,
    }


def _kl_sums(outcome: ListOutcome) -> dict[str, float]:
    """Log-ratio of policy and reference, and tokens, each response weighted by policy / sampler, at most 10.

    The responses were drawn before the policy moved, and half of them lost: the plain mean would fall below zero.
    """
    kl = tokens = 0.0
    if outcome.reference_M is None:
        return {"kl": kl, "kl_tokens": tokens}
    for candidate, log_prob, reference in zip(
        outcome.source.candidates, outcome.log_probs_M.tolist(), outcome.reference_M.tolist(), strict=True
    ):
        if len(candidate.log_probs) == len(candidate.token_ids):
            weight = math.exp(min(log_prob - sum(candidate.log_probs), math.log(MAX_WEIGHT)))
            kl += weight * (log_prob - reference)
            tokens += weight * len(candidate.token_ids)
    return {"kl": kl, "kl_tokens": tokens}


def _sampler_gap(outcome: ListOutcome) -> tuple[int, float]:
    """Tokens of freshly sampled candidates, and the sum of |sampler - trainer| log-probability over them."""
    tokens, gap, start = 0, 0.0, 0
    for candidate in outcome.source.candidates:
        length = len(candidate.token_ids)
        if candidate.origin == "sampled":
            mine = outcome.token_log_probs_N[start : start + length]
            gap += float((mine - mine.new_tensor(candidate.log_probs)).abs().sum())
            tokens += length
        start += length
    return tokens, gap
