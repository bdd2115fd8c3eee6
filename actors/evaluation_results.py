"""What an evaluation leaves: results.json, samples.parquet, plots and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from actors.evaluation_inputs import PreparedEvaluation
from actors.evaluator import recorded
from larpo.answers import answer_reader
from larpo.sweep import ModelAnswers, differences, intervals, measures

RESULTS_FILE = "results.json"
SAMPLES_FILE = "samples.parquet"


def answers_of(evaluation: PreparedEvaluation) -> list[ModelAnswers]:
    """Every model's responses from disk, the prompts in one order."""
    found = []
    for model in evaluation.models:
        lists = recorded(evaluation, model)
        ordered = [lists[prompt.id] for prompt in evaluation.prompts]
        found.append(ModelAnswers.of(model.name, ordered, evaluation.config.evaluation.sweep))
    return found


def summarize_evaluation(evaluation: PreparedEvaluation, answers: list[ModelAnswers]) -> dict[str, Any]:
    """The numbers of results.json."""
    config = evaluation.config
    drawn = {"resamples": config.evaluation.bootstrap, "seed": config.run.seed}
    values = {of_model.name: measures(of_model, config) for of_model in answers}
    (first, base), *others = values.items()
    models = {
        model.name: {
            "model": str(model.path),
            "fingerprint": model.fingerprint,
            "measures": intervals(values[model.name], **drawn),
        }
        for model in evaluation.models
    }
    notes = list(evaluation.notes)
    if answer_reader(config.reward) is None:
        notes.append(f"responses have no final answer under the reward {config.reward.source}: no majority vote")
    return {
        "prompts": len(evaluation.prompts),
        "reward": config.reward.source,
        "first": first,
        "sweep": config.evaluation.sweep.model_dump(mode="json"),
        "models": models,
        "differences": {name: differences(base, other, **drawn) for name, other in others},
        "notes": notes,
    }


def write_results(folder: Path, results: dict[str, Any]) -> None:
    partial = folder / (RESULTS_FILE + ".partial")
    partial.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    partial.rename(folder / RESULTS_FILE)


def write_samples(folder: Path, evaluation: PreparedEvaluation, answers: list[ModelAnswers]) -> None:
    """One row a response: `pandas.read_parquet` reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    read = answer_reader(evaluation.config.reward)
    rows = []
    for of_model in answers:
        for number, prompt_id in enumerate(of_model.prompt_ids):
            groups = (group[number] for group in of_model.sampled_PN.values())
            for candidate in (of_model.greedy_P[number], *(c for group in groups for c in group)):
                rows.append(
                    {
                        "model": of_model.name,
                        "prompt_id": prompt_id,
                        "temperature": candidate.temperature,
                        "reward": candidate.reward,
                        "answer": read(candidate.text) if read else None,
                        "tokens": len(candidate.token_ids),
                        "finish_reason": candidate.finish_reason,
                        "text": candidate.text,
                    }
                )
    partial = folder / (SAMPLES_FILE + ".partial")
    pq.write_table(pa.Table.from_pylist(rows), partial, compression="zstd")
    partial.rename(folder / SAMPLES_FILE)
