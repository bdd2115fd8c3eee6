"""Greedy responses in the files that AlpacaEval 2 and MixEval read, for their own judges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from larpo.types import Prompt

MIXEVAL_MARK = "problem_type"  # a field that every MixEval entry has


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


def write_outputs(folder: Path, name: str, prompts: Sequence[Prompt], responses: Sequence[str], source: str) -> Path:
    """Write NAME.alpaca_eval.json and NAME.mixeval.jsonl into the folder; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    alpaca = folder / f"{name}.alpaca_eval.json"
    rows = alpaca_eval_rows(prompts, responses, name, source)
    alpaca.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in mixeval_rows(prompts, responses, source)]
    (folder / f"{name}.mixeval.jsonl").write_text("".join(lines), encoding="utf-8")
    return alpaca
