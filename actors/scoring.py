"""Scores of recorded lists by every model: what ranking quality is measured on.

The lists are the first model's own samples at the first temperature, so that every model ranks the same responses.
Scores are on disk after every batch: an evaluation that goes on computes what is missing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actors import placement
from actors.evaluation_inputs import EvaluatedModel, PreparedEvaluation
from actors.obituary import obituary
from actors.published import write_durably
from actors.remote import answer
from larpo.errors import EvaluationError, LarpoError
from larpo.ranking_quality import lists_to_rank
from larpo.types import CandidateList

Scores = dict[str, float]  # candidate id -> log pi


def ranked_lists(evaluation: PreparedEvaluation) -> list[CandidateList]:
    """The lists that every model's scores rank; none where `evaluation.sweep.list_size` is 0."""
    sweep = evaluation.config.evaluation.sweep
    if not sweep.list_size:
        return []
    recorded = evaluation.recorded(evaluation.models[0])
    return lists_to_rank(recorded.values(), sweep.temperatures[0], sweep.list_size)


def comparable(evaluation: PreparedEvaluation) -> list[EvaluatedModel]:
    """The models that can score the first one's responses: those with its vocabulary."""
    first = evaluation.models[0].vocabulary
    return [model for model in evaluation.models if model.vocabulary == first]


def read_scores(file: Path) -> Scores:
    """The scores that are on disk: candidate id -> number."""
    return json.loads(file.read_text()) if file.is_file() else {}


def write_scores(file: Path, scores: Mapping[str, float]) -> None:
    """Replace them, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(file.with_suffix(".partial"), json.dumps(scores, allow_nan=False).encode())
    file.with_suffix(".partial").rename(file)


def unscored(evaluation: PreparedEvaluation) -> dict[str, list[CandidateList]]:
    """Model name -> the lists that it has not scored yet, of models that have any."""
    lists = ranked_lists(evaluation)
    todo = {}
    for model in comparable(evaluation):
        there = read_scores(evaluation.scores_of(model))
        todo[model.name] = [item for item in lists if any(c.id not in there for c in item.candidates)]
    return {name: missing for name, missing in todo.items() if missing}


async def score_all(evaluation: PreparedEvaluation, say: Callable[[str], None]) -> None:
    """Until every model has scored every list. Raises EvaluationError with the cause."""
    todo = unscored(evaluation)
    for model in evaluation.models:
        if model.name in todo:
            say(f"{model.name}: scoring {len(todo[model.name])} lists")
            await _score(evaluation, model, todo[model.name])


async def _score(evaluation: PreparedEvaluation, model: EvaluatedModel, lists: list[CandidateList]) -> None:
    config, scores = evaluation.config, read_scores(evaluation.scores_of(model))
    batch, limits = config.stream.lists_per_part, config.timeouts
    scorer = placement.place_scorer(config, model.policy)
    try:
        await _answer(model, scorer, scorer.load.remote(), limits.trainer_start_s, "timeouts.trainer_start_s")
        for start in range(0, len(lists), batch):
            part = lists[start : start + batch]
            asked = [(model.token_ids[item.prompt.id], [c.token_ids for c in item.candidates]) for item in part]
            found = await _answer(model, scorer, scorer.score.remote(asked), limits.step_s, "timeouts.step_s")
            for item, values in zip(part, found, strict=True):
                scores |= {c.id: value for c, value in zip(item.candidates, values, strict=True)}
            write_scores(evaluation.scores_of(model), scores)
    finally:
        placement.kill(scorer)


async def _answer(model: EvaluatedModel, scorer: Any, reference: Any, limit: float, knob: str) -> Any:
    try:
        return await asyncio.wait_for(answer(reference), limit)
    except TimeoutError as error:
        raise EvaluationError(f"the scorer of {model.name} did not answer within {limit:g} s ({knob})") from error
    except LarpoError:
        raise
    except Exception as error:
        raise EvaluationError(f"the scorer of {model.name} failed: {await obituary(error, scorer)}") from error
