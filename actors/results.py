"""What a run leaves: the aligned model as a Hugging Face folder, the table, the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.policies import weights_folder
from actors.preparation import PreparedRun
from actors.published import published_tensors, read_beside
from larpo.best_policy import Ending, Point
from larpo.chat import PLAIN_TEMPLATE
from larpo.evaluation import HeldoutResult, chosen_text, done_record, format_table, is_chosen, rows_of_record, summary
from larpo.home import Home
from larpo.list_evaluation import format_list_table
from larpo.lora import save_adapter
from larpo.model_card import model_card
from larpo.model_folder import save_model_folder
from larpo.run_log import Record, read_run_log

NOTHING = "no held-out prompts (prompts.heldout_count = 0): nothing to compare"


@dataclass(frozen=True)
class Results:
    """Where things are, and the numbers and fields of the last record."""

    folder: Path
    metrics: dict[str, float]
    table: str
    fields: dict[str, Any] = field(default_factory=dict)


def write_model(run: PreparedRun, metrics: dict[str, float], taken: Point | None = None, chosen: str = "") -> Path:
    """Export the last published weights, or those of `taken`; the folder appears whole or not at all.

    `chosen` tells the model card why it is not the last policy.
    """
    weights = run.home.pull_published(weights_folder(run.folder, taken or Point(run.config.training.iterations)))
    destination = run.folder / "model"
    base, notes = run.config.policy.model, run.policy.notes
    card = model_card(run.config, metrics, base, name=run.name, notes=notes, chosen=chosen)
    template = None if run.has_chat_template else PLAIN_TEMPLATE
    save_model_folder(destination, run.policy.path, published_tensors(weights), card, chat_template=template)
    card = model_card(run.config, metrics, base, name=run.name, notes=notes, chosen=chosen, adapter_only=True)
    save_adapter(run.folder / "adapter", read_beside(weights), card)
    return destination


def summarize(
    run: PreparedRun, base: HeldoutResult | None, aligned: HeldoutResult | None, last: HeldoutResult | None, end: Ending
) -> Results:
    """Numbers and table of the run; without held-out prompts there are none, and the table says so."""
    said = {"best_metric": run.config.evaluation.best_metric, "stopped": end.stopped}
    fields: dict[str, Any] = {"taken": _place(end.taken)} | {key: text for key, text in said.items() if text}
    if base is None or aligned is None or last is None:
        return Results(run.folder, {}, NOTHING, fields)
    metrics = done_record(base, aligned, resamples=run.config.evaluation.bootstrap, seed=run.config.run.seed)
    fields["last"] = {**_place(end.last), **summary(last)}
    return Results(run.folder, metrics, results_table({**metrics, **fields}), fields)


def _place(point: Point) -> dict[str, Any]:
    return {"label": point.label, "iteration": point.iteration, "step": point.step}


def results_table(done: Record) -> str:
    """The table of a run, from its last record."""
    if "given/lists" in done:
        return format_list_table(done)
    if "heldout/reward_after" not in done:
        return NOTHING
    lines = [format_table(rows_of_record(done))]
    if is_chosen(done):
        lines.append(chosen_text(done))
    if "stopped" in done:
        lines.append(f"Stopped early: {done['stopped']}.")
    return "\n\n".join(lines)


def finished(folder: Path, home: Home | None = None) -> Results | None:
    """The results of a run that is over, as its folder tells them; None when something is left to do.

    The model may lie at the run's home alone.
    """
    done = read_run_log(folder / "metrics.jsonl").done
    if done is None:
        return None
    if not (folder / "model").is_dir() and not (home and home.elsewhere and home.storage.sizes("model")):
        return None
    metrics = {name: value for name, value in done.items() if "/" in name}
    return Results(folder, metrics, results_table(done))
