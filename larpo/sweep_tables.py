"""What an evaluation of several models came to, as text tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from larpo.config import Sweep
from larpo.evaluation import columns
from larpo.sweep import Interval, cutoffs_of

Rows = list[tuple[str, ...]]
Results = Mapping[str, Any]  # results.json: see docs/evaluation.md

_OF_N = {  # measures that have an N -> what a table calls them
    "recall": "Recall@N",
    "best_reward": "best reward of N",
    "reranked": "reranked best right",
    "majority": "majority vote right",
}


def shown(interval: Sequence[float] | None, form: str = ".3f") -> str:
    """`0.512 [0.430, 0.590]`, or a dash."""
    if interval is None:
        return "-"
    mean, low, high = (format(number, form) for number in interval)
    return f"{mean} [{low}, {high}]"


def reward_rows(results: Results, sweep: Sweep) -> Rows:
    """A header, then a row a model and temperature: mean reward of the samples, and the greedy response."""
    rows: Rows = [("model", "T", "reward", "greedy reward", "greedy correct")]
    for name, model in results["models"].items():
        of_model: Mapping[str, Interval] = model["measures"]
        for t in sweep.temperatures:
            keys = (f"T={t:g}/reward", "greedy/reward", "greedy/correct")
            rows.append((name, f"{t:g}", *(shown(of_model[key]) for key in keys)))
    return rows


def recall_rows(results: Results, sweep: Sweep) -> Rows:
    """A header, then a row a model, temperature and N: Recall@N, as the paper's Table 6, and each pick of N samples.

    N goes down the rows, since intervals of every N beside each other are wider than a terminal. A pick that no model
    has, such as a vote over answers where responses have none, is no column.
    """
    every = {key.rpartition("/")[2] for model in results["models"].values() for key in model["measures"]}
    kinds = [kind for kind in _OF_N if any(name.startswith(f"{kind}@") for name in every)]
    rows: Rows = [("model", "T", "N", *(_OF_N[kind] for kind in kinds))]
    for name, model in results["models"].items():
        of_model: Mapping[str, Interval] = model["measures"]
        for t in sweep.temperatures:
            for n in cutoffs_of(sweep):
                found = (shown(of_model.get(f"T={t:g}/{kind}@{n}")) for kind in kinds)
                rows.append((name, f"{t:g}", f"{n}", *found))
    return rows


def difference_rows(results: Results, sweep: Sweep) -> Rows:
    """A header, then the paired differences from the first model; the header alone when there is one model."""
    top = cutoffs_of(sweep)[-1]
    rows: Rows = [("difference", "T", "reward", "greedy reward", "greedy correct", f"Recall@{top}")]
    first = next(iter(results["models"]))
    for name, of_model in results["differences"].items():
        for t in sweep.temperatures:
            names = (f"T={t:g}/reward", "greedy/reward", "greedy/correct", f"T={t:g}/recall@{top}")
            rows.append((f"{name} - {first}", f"{t:g}", *(shown(of_model[key], "+.3f") for key in names)))
    return rows


def win_rows(results: Results) -> Rows:
    """A header, then each model's win rates against the first, in the form of the paper's Tables 3 and 4."""
    rows: Rows = [("greedy response wins", "against", "length-controlled", "win rate")]
    first = next(iter(results["models"]))
    for name, rates in results["win_rates"].items():
        rows.append((name, first, shown(rates["length_controlled"], ".1%"), shown(rates["raw"], ".1%")))
    return rows


def ranking_rows(results: Results) -> Rows:
    """A header, then how well each model's scores rank the first model's responses."""
    rows: Rows = [("model as a ranker", "score", "nDCG", "MRR", "Kendall tau")]
    for name, kinds in results["ranking"].get("models", {}).items():
        for kind, quality in kinds.items():
            rows.append((name, kind.replace("_", " "), *(shown(quality[key]) for key in ("ndcg", "rr", "tau"))))
    return rows


def sweep_tables(results: Results, sweep: Sweep) -> list[Rows]:
    """Those that have rows, each with its header."""
    tables = [
        reward_rows(results, sweep),
        recall_rows(results, sweep),
        difference_rows(results, sweep),
        win_rows(results),
        ranking_rows(results),
    ]
    return [rows for rows in tables if len(rows) > 1]


def headline(results: Results, sweep: Sweep, over: str = "prompts") -> str:
    """What the tables are of; `over` is what the intervals hold."""
    return (
        f"{results['prompts']} held-out prompts, {sweep.samples} samples each; correct from reward"
        f" {sweep.acceptable:g}; 95% intervals over {over} in brackets."
    )


def format_results(results: Results, sweep: Sweep, over: str = "prompts") -> str:
    """All tables as plain text."""
    tables = sweep_tables(results, sweep)
    parts = [headline(results, sweep, over), *("\n".join(_ruled(rows)) for rows in tables)]
    return "\n\n".join([*parts, *(f"Note: {note}." for note in results["notes"])])


def _ruled(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = columns(rows)
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
