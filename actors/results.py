"""What a run leaves: the aligned model as a Hugging Face folder, the table, the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actors.preparation import PreparedRun
from actors.trainer import policy_folder
from actors.weights import published_tensors, read_beside
from larpo.chat import PLAIN_TEMPLATE
from larpo.evaluation import HeldoutResult, done_record, format_table, heldout_table
from larpo.model_folder import new_folder, save_model_folder
from larpo.policy import model_card


@dataclass(frozen=True)
class Results:
    """Where things are, and the numbers of the last record."""

    folder: Path
    metrics: dict[str, float]
    table: str


def write_model(run: PreparedRun, metrics: dict[str, float]) -> Path:
    """Export the last published weights; the folder appears whole or not at all."""
    weights = policy_folder(run.folder, run.config.training.iterations)
    destination = run.folder / "model"
    card = model_card(run.config, metrics, run.config.policy.model, name=run.name, notes=run.policy.notes)
    template = None if run.has_chat_template else PLAIN_TEMPLATE
    save_model_folder(destination, run.policy.path, published_tensors(weights), card, chat_template=template)
    _write_adapter(run, weights, metrics)
    return destination


def _write_adapter(run: PreparedRun, weights: Path, metrics: dict[str, float]) -> None:
    """LoRA's adapters alone, as a folder that peft loads, beside the model that they are merged into."""
    files = read_beside(weights)
    if not files:
        return
    base = run.config.policy.model
    card = model_card(run.config, metrics, base, name=run.name, notes=run.policy.notes, adapter_only=True)
    with new_folder(run.folder / "adapter") as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        (folder / "README.md").write_text(card, encoding="utf-8")


def summarize(run: PreparedRun, base: HeldoutResult | None, aligned: HeldoutResult | None) -> Results:
    """Numbers and table of the run; without held-out prompts there are none, and the table says so."""
    if base is None or aligned is None:
        return Results(run.folder, {}, "no held-out prompts (prompts.heldout_count = 0): nothing to compare")
    resamples, seed = run.config.evaluation.bootstrap, run.config.run.seed
    metrics = done_record(base, aligned, resamples=resamples, seed=seed)
    return Results(run.folder, metrics, format_table(heldout_table(base, aligned, resamples=resamples, seed=seed)))
