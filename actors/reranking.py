"""Rewards by another reward model, `evaluation.sweep.reranker`: retrieval with one, reranking with the other.

They are on disk after every batch, under a name that changes with the reranker's section.
"""

from __future__ import annotations

from collections.abc import Callable

from actors.evaluation_inputs import PreparedEvaluation
from actors.reward_pool import RewardPool
from actors.scoring import Scores, read_scores, write_scores
from larpo.types import CandidateList


def reranked(evaluation: PreparedEvaluation) -> dict[str, Scores]:
    """Model name -> the reranker's rewards that are on disk; nothing for a recipe without a reranker."""
    if evaluation.config.evaluation.sweep.reranker is None:
        return {}
    return {model.name: read_scores(evaluation.reranks_of(model)) for model in evaluation.models}


def unreranked(evaluation: PreparedEvaluation) -> dict[str, list[CandidateList]]:
    """Model name -> the lists that the reranker has not seen, of models that have any."""
    todo = {}
    for model in evaluation.models:
        there = reranked(evaluation).get(model.name)
        if there is not None:
            lists = evaluation.recorded(model).values()
            todo[model.name] = [item for item in lists if any(c.id not in there for c in item.candidates)]
    return {name: lists for name, lists in todo.items() if lists}


async def rerank_all(evaluation: PreparedEvaluation, say: Callable[[str], None]) -> None:
    """Until the reranker has given every response its reward. Raises RewardError with the cause."""
    todo, config = unreranked(evaluation), evaluation.config
    if not todo:
        return
    own = config.model_copy(update={"reward": config.evaluation.sweep.reranker})
    pool = RewardPool(own, lambda name, reason: say(f"the reranker {name} ended and is replaced: {reason}"))
    try:
        await pool.start()
        for model in evaluation.models:
            lists, file = todo.get(model.name, []), evaluation.reranks_of(model)
            if lists:
                say(f"{model.name}: reranking the responses to {len(lists)} prompts")
            rewards, batch = read_scores(file), config.stream.lists_per_part
            for start in range(0, len(lists), batch):
                part = lists[start : start + batch]
                found = await pool.rank([(item.prompt, [c.text for c in item.candidates]) for item in part])
                failures = [reward.failure for values in found for reward in values if reward.failure]
                if failures:
                    what = f"{len(failures)} of its responses could not be scored and get failed_reward"
                    say(f"{model.name}: {what} of the reranker; the first: {failures[0]}")
                for item, values in zip(part, found, strict=True):
                    rewards |= {c.id: reward.value for c, reward in zip(item.candidates, values, strict=True)}
                write_scores(file, rewards)
    finally:
        await pool.stop()
