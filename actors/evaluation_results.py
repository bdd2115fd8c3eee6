"""What an evaluation leaves: results.json, samples.parquet, plots, a page, and files for other judges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from actors.evaluation_inputs import PreparedEvaluation
from actors.reranking import reranked
from actors.scoring import Scores, comparable, ranked_lists, read_scores
from larpo.answers import answer_reader
from larpo.judges import run_alpaca_eval, run_lm_eval
from larpo.model_outputs import is_judged_set, write_outputs
from larpo.ranking_quality import Floats, ranking_quality
from larpo.recipe import config_to_yaml
from larpo.sweep import ModelAnswers, differences, intervals, measures, rewards_of
from larpo.sweep_page import sweep_page, sweep_plots
from larpo.types import CandidateList
from larpo.win_rate import win_rates

RESULTS_FILE = "results.json"
SAMPLES_FILE = "samples.parquet"
REPORT_FILE = "report.html"


def finish(evaluation: PreparedEvaluation, *, outputs: bool = False) -> dict[str, Any]:
    """Everything that comes after the last response and score; returns what results.json holds."""
    answers = answers_of(evaluation)
    results = summarize_evaluation(evaluation, answers)
    write_samples(evaluation, answers)
    write_results(evaluation, results)  # before judges, who may take hours
    results["judges"] = judged(evaluation, answers, wanted=outputs)
    write_results(evaluation, results)
    write_page(evaluation, results, answers)
    return results


def answers_of(evaluation: PreparedEvaluation) -> list[ModelAnswers]:
    """Every model's responses from disk, the prompts in one order."""
    sweep = evaluation.config.evaluation.sweep
    recorded = ((model.name, list(evaluation.recorded(model).values())) for model in evaluation.models)
    return [ModelAnswers.of(name, lists, sweep) for name, lists in recorded]


def summarize_evaluation(evaluation: PreparedEvaluation, answers: Sequence[ModelAnswers]) -> dict[str, Any]:
    """The numbers of results.json: docs/evaluation.md says what each is."""
    config = evaluation.config
    drawn = {"resamples": config.evaluation.bootstrap, "seed": config.run.seed}
    picks = reranked(evaluation)
    values = {of_model.name: measures(of_model, config, picks.get(of_model.name)) for of_model in answers}
    base, *others = answers
    models = {
        model.name: {
            "model": str(model.policy.path),
            "fingerprint": model.policy.fingerprint,
            "measures": intervals(values[model.name], **drawn),
        }
        for model in evaluation.models
    }
    ranking, ranking_notes = _ranking(evaluation, drawn)
    return {
        "prompts": len(evaluation.prompts),
        "reward": config.reward.source,
        "sweep": config.evaluation.sweep.model_dump(mode="json"),
        "models": models,
        "differences": {other.name: differences(values[base.name], values[other.name], **drawn) for other in others},
        "win_rates": {other.name: _win_rates(other, base, config.run.seed) for other in others},
        "ranking": ranking,
        "notes": [*evaluation.notes, *_voting_notes(evaluation), *ranking_notes],
    }


def _voting_notes(evaluation: PreparedEvaluation) -> list[str]:
    if answer_reader(evaluation.config.reward) is not None:
        return []
    return [f"responses have no final answer under the reward {evaluation.config.reward.source}: no majority vote"]


def _win_rates(model: ModelAnswers, base: ModelAnswers, seed: int) -> dict[str, Any]:
    """By the rewards of the greedy responses, lengths in characters."""
    rewards, lengths = zip(*((rewards_of([m.greedy_P])[0], _characters(m)) for m in (model, base)), strict=True)
    return asdict(win_rates(*rewards, *lengths, seed=seed))


def _characters(answers: ModelAnswers) -> list[int]:
    return [len(candidate.text) for candidate in answers.greedy_P]


def _ranking(evaluation: PreparedEvaluation, drawn: dict[str, int]) -> tuple[dict[str, Any], list[str]]:
    """Ranking quality of each model's scores, and notes on those that have none."""
    lists, models = ranked_lists(evaluation), comparable(evaluation)
    first = evaluation.models[0].name
    strange = sorted({model.name for model in evaluation.models} - {model.name for model in models})
    notes = [f"{name} has another vocabulary than {first}: no ranking of its responses" for name in strange]
    if not lists:
        return {}, notes
    scores = {model.name: read_scores(evaluation.scores_of(model)) for model in models}
    quality = _quality(lists, scores, first, evaluation.config.objective.beta)
    return {
        "lists": len(lists),
        "candidates": sum(len(item.candidates) for item in lists),
        "models": {
            name: {kind: intervals(values, **drawn) for kind, values in kinds.items()}
            for name, kinds in quality.items()
        },
        "differences": {
            name: differences(quality[first]["log_pi"], kinds["log_pi"], **drawn)
            for name, kinds in quality.items()
            if name != first
        },
    }, notes


def _quality(
    lists: Sequence[CandidateList], scores: Mapping[str, Scores], first: str, beta: float
) -> dict[str, dict[str, dict[str, Floats]]]:
    """By model and score: log pi, and gamma = beta * (log pi - log pi of the first model), which it has not itself."""
    rewards = [[float(c.reward or 0.0) for c in item.candidates] for item in lists]
    log_pi = {name: [np.array([of[c.id] for c in item.candidates]) for item in lists] for name, of in scores.items()}
    found: dict[str, dict[str, dict[str, Floats]]] = {}
    for name, rows in log_pi.items():
        found[name] = {"log_pi": ranking_quality(list(zip(rows, rewards, strict=True)))}
        if name != first:
            gamma = [beta * (row - base) for row, base in zip(rows, log_pi[first], strict=True)]
            found[name]["gamma"] = ranking_quality(list(zip(gamma, rewards, strict=True)))
    return found


def write_results(evaluation: PreparedEvaluation, results: dict[str, Any]) -> None:
    """results.json, whole or not at all."""
    partial = evaluation.folder / (RESULTS_FILE + ".partial")
    partial.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    partial.rename(evaluation.folder / RESULTS_FILE)


def write_page(evaluation: PreparedEvaluation, results: dict[str, Any], answers: Sequence[ModelAnswers]) -> None:
    """plots/*.svg, and report.html, which needs nothing else."""
    sweep = evaluation.config.evaluation.sweep
    folder = evaluation.folder / "plots"
    folder.mkdir(exist_ok=True)
    for name, (_, svg, _) in sweep_plots(results, sweep).items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    questions = {prompt.id: prompt.messages[-1].content for prompt in evaluation.prompts}
    html = sweep_page(results, answers, questions, config_to_yaml(evaluation.config), sweep)
    (evaluation.folder / REPORT_FILE).write_text(html, encoding="utf-8")


def judged(evaluation: PreparedEvaluation, answers: Sequence[ModelAnswers], *, wanted: bool) -> list[str]:
    """Write outputs/ for other judges, if `wanted` or if the prompts are theirs, and run those that the recipe names.

    Returns a line for each that says what came of it.
    """
    config, judges = evaluation.config, evaluation.config.evaluation.judges
    source, folder, lines = config.prompts.source, evaluation.folder / "outputs", []
    writes = wanted or judges.alpaca_eval or is_judged_set(source, evaluation.prompts)
    for model, of_model in zip(evaluation.models, answers, strict=True):
        if writes:
            texts = [candidate.text for candidate in of_model.greedy_P]
            file = write_outputs(folder, model.name, evaluation.prompts, texts, source)
            lines.append(f"{model.name}: outputs for AlpacaEval and MixEval in {file.parent}")
            if judges.alpaca_eval:
                lines.append(f"{model.name}: {run_alpaca_eval(file, folder / model.name / 'alpaca_eval', judges)}")
        if judges.lm_eval_tasks:
            place, has_template = folder / model.name / "lm_eval", model.has_chat_template
            result = run_lm_eval(model.policy, config.policy.dtype, place, judges, has_template=has_template)
            lines.append(f"{model.name}: {result}")
    return lines


def write_samples(evaluation: PreparedEvaluation, answers: Sequence[ModelAnswers]) -> None:
    """samples.parquet, one row a response: `pandas.read_parquet` reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    read = answer_reader(evaluation.config.reward)
    rows = [
        {
            "model": of_model.name,
            "prompt_id": prompt.id,
            "temperature": candidate.temperature,
            "reward": candidate.reward,
            "answer": read(prompt, candidate.text) if read else None,
            "tokens": len(candidate.token_ids),
            "finish_reason": candidate.finish_reason,
            "text": candidate.text,
        }
        for of_model in answers
        for number, prompt in enumerate(of_model.prompts)
        for candidate in of_model.responses_to(number)
    ]
    partial = evaluation.folder / (SAMPLES_FILE + ".partial")
    pq.write_table(pa.Table.from_pylist(rows), partial, compression="zstd")
    partial.rename(evaluation.folder / SAMPLES_FILE)
