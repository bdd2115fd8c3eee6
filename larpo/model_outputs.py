"""Greedy responses in the files that AlpacaEval 2 and MixEval read, for their own judges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from larpo.types import Prompt

MIXEVAL_MARK = "problem_type"  # a field that every MixEval entry has
MIXEVAL_MODEL = "local_chat"  # the name under which MixEval knows a model that it does not list; it skips others


def is_judged_set(source: str, prompts: Sequence[Prompt]) -> bool:
    """Whether the prompts are AlpacaEval's or MixEval's, whose scores come from a judge."""
    return source == "alpaca_eval" or MIXEVAL_MARK in prompts[0].answer_key


def alpaca_eval_rows(prompts: Sequence[Prompt], responses: Sequence[str], name: str, source: str) -> list[dict]:
    """What `alpaca_eval --model_outputs` reads: a list of {instruction, output, generator, dataset}."""
    return [
        {
            "instruction": prompt.messages[-1].content,
            "output": response,
            "generator": name,
            "dataset": prompt.answer_key.get("dataset", source),
        }
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def mixeval_rows(prompts: Sequence[Prompt], responses: Sequence[str], source: str) -> list[dict]:
    """What MixEval's `compute_metrics` reads, a JSON object a line: its own entry with a field `response`.

    The entry is the prompt's answer key. Prompts of other sets become free-form entries, with the gold answer as the
    target where there is one.
    """
    return [
        {**_entry(prompt, source), "response": response} for prompt, response in zip(prompts, responses, strict=True)
    ]


def _entry(prompt: Prompt, source: str) -> Mapping[str, Any]:
    if MIXEVAL_MARK in prompt.answer_key:
        return {"id": prompt.id, **prompt.answer_key}
    gold = prompt.answer_key.get("answer")
    return {
        "id": prompt.id,
        MIXEVAL_MARK: "free-form",
        "context": None,
        "prompt": prompt.messages[-1].content,
        "target": [] if gold is None else [str(gold)],
        "benchmark_name": source,
    }


def mixeval_benchmark(source: str) -> tuple[str, str]:
    """MixEval's `--benchmark` and `--version`: those that the file of prompts is named by, else its whole name.

    >>> mixeval_benchmark("data/mixeval_hard-2024-08-11.jsonl"), mixeval_benchmark("mine.jsonl")
    (('mixeval_hard', '2024-08-11'), ('mixeval', 'mine'))
    """
    name = PurePath(source).stem
    benchmark, _, version = name.partition("-")
    return (benchmark, version) if benchmark in ("mixeval", "mixeval_hard") and version else ("mixeval", name)


def _write_mixeval(folder: Path, rows: Sequence[Mapping[str, Any]], source: str) -> None:
    """A file for free-form entries and one for those with options, each where there are any, as MixEval finds them.

    That is `MODEL/BENCHMARK/VERSION/MODEL_SPLIT.jsonl` below its `--model_response_dir`, which is the folder.
    """
    benchmark, version = mixeval_benchmark(source)
    hard = "_hard" if benchmark == "mixeval_hard" else ""
    place = folder / MIXEVAL_MODEL / benchmark / version
    place.mkdir(parents=True, exist_ok=True)
    for split, has_options in (("close_freeform", False), ("close_multichoice", True)):
        lines = [json.dumps(row) + "\n" for row in rows if bool(row.get("options")) is has_options]
        if lines:
            (place / f"{MIXEVAL_MODEL}_{split}{hard}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_outputs(folder: Path, name: str, prompts: Sequence[Prompt], responses: Sequence[str], source: str) -> Path:
    """Write NAME.alpaca_eval.json into the folder, and MixEval's files below NAME/mixeval; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    alpaca = folder / f"{name}.alpaca_eval.json"
    rows = alpaca_eval_rows(prompts, responses, name, source)
    alpaca.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    _write_mixeval(folder / name / "mixeval", mixeval_rows(prompts, responses, source), source)
    return alpaca
