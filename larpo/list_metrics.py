"""What the lists of one part are like: numbers for the metrics, as a pure function of durable lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from statistics import fmean

from larpo.config import Config
from larpo.hardness import hardness
from larpo.lists import choose, is_cut
from larpo.objective_table import get_spec
from larpo.types import Candidate, CandidateList


def list_metrics(lists: Sequence[CandidateList], config: Config) -> dict[str, float]:
    """Rewards and lengths of fresh responses, what was dropped, and the hardness of what is trained on.

    A group of numbers is absent where no list of the part has any: no fresh response, or nothing to train on.
    """
    fresh = [[c for c in item.candidates if c.origin == "sampled"] for item in lists]
    given = [all(c.origin == "given" for c in item.candidates) for item in lists]  # by a dataset
    replayed = sum(not (group or of_dataset) for group, of_dataset in zip(fresh, given, strict=True))
    metrics = {"lists/replayed": float(replayed)}
    return metrics | _fresh_metrics([group for group in fresh if group]) | _training_metrics(lists, config)


def _fresh_metrics(groups: Sequence[Sequence[Candidate]]) -> dict[str, float]:
    if not groups:
        return {}
    responses = [c for group in groups for c in group]
    best = [max(_rewards(group)) for group in groups]
    return {
        "lists/reward_mean": fmean(_rewards(responses)),
        "lists/reward_best": fmean(best),
        "lists/reward_spread": fmean(_deviation(_rewards(group)) for group in groups),
        "lists/fully_met": fmean(value >= 1.0 for value in best),
        "lists/response_tokens": fmean(len(c.token_ids) for c in responses),
        "lists/cut_off_share": fmean(is_cut(c) for c in responses),
    }


def _training_metrics(lists: Sequence[CandidateList], config: Config) -> dict[str, float]:
    seed, uses = config.run.seed, get_spec(config.objective.name).uses
    found = [choose(item, config.lists, config.sampling, seed=seed, uses=uses) for item in lists]
    trained = [chosen.item for chosen in found if chosen.item is not None]
    reasons = [chosen.lost for chosen in found if chosen.item is None]
    metrics = {
        "lists/dropped_equal_rewards": float(reasons.count("all rewards equal")),
        "lists/dropped_too_few": float(len(reasons) - reasons.count("all rewards equal")),
        "lists/duplicates": float(sum(chosen.duplicates for chosen in found)),
    }
    if not trained:
        return metrics
    hard = [hardness(item.candidates) for item in trained if len(item.candidates) > 1]
    if hard:
        metrics["lists/reward_gap"] = fmean(h.reward_gap for h in hard)
        metrics["lists/overlap"] = fmean(h.overlap for h in hard)
    candidates = [c for item in trained for c in item.candidates]
    return metrics | {
        "lists/size": len(candidates) / len(trained),
        "lists/remembered_share": fmean(c.origin == "remembered" for c in candidates),
    }


def _deviation(values: Sequence[float]) -> float:
    """Of a whole population; the one in `statistics` is exact, in fractions, and takes fifty times as long.

    >>> _deviation([1.0, 3.0])
    1.0
    """
    mean = fmean(values)
    return sqrt(fmean((value - mean) ** 2 for value in values))


def _rewards(candidates: Iterable[Candidate]) -> list[float]:
    return [c.reward or 0.0 for c in candidates]
