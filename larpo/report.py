"""The report of a run: one HTML file that needs nothing else, made from what the run folder holds.

A run that was cut short gets a report too: each section that lacks its data says what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from larpo.busy import busy_shares
from larpo.errors import DataError
from larpo.evaluation import chosen_text, is_chosen
from larpo.list_evaluation import list_rows
from larpo.plots import actor_order
from larpo.report_figures import figures
from larpo.report_page import (
    details,
    missing,
    note,
    page,
    plots,
    preformatted,
    section,
    table,
)
from larpo.report_samples import sample_lists, sample_table
from larpo.run_log import Record, RunLog, read_run_log
from larpo.timeline import write_timeline

REPORT_FILE = "report.html"
_MAX_TROUBLES = 200
_DEFAULT_SAMPLES = 3


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` from config.yaml, metrics.jsonl and lists/, and return its path.

    Beside it comes `timeline.json`, from the spans that its busy shares are computed from.
    """
    if not run_dir.is_dir():
        raise DataError(f"{run_dir} is not a folder; give the folder of a run, such as runs/NAME")
    config_text = _read(run_dir / "config.yaml")
    config = _mapping(yaml.safe_load(config_text) if config_text else None)
    log = read_run_log(run_dir / "metrics.jsonl")
    gap_alarm = _knob(config, "training", "gap_alarm")
    samples = _knob(config, "telemetry", "report_samples") or _DEFAULT_SAMPLES
    *learning, busy_time = figures(log, gap_alarm).values()
    sections = [
        section("Result", *_result(log)),
        section("Learning", plots(learning)),
        section("Busy time", busy_time, _shares_table(log), _overlap_table(log)),
        section("Alarms and failures", _troubles(log)),
        section("Sample lists", *sample_lists(run_dir / "lists", int(samples))),
        section("Configuration", _configuration(config_text)),
    ]
    path = run_dir / REPORT_FILE
    hidden = path.with_name(f".{REPORT_FILE}.{os.getpid()}.tmp")
    title = f"larpo run {(config.get('run') or {}).get('name') or run_dir.resolve().name}"
    hidden.write_text(page(title, _subtitle(config, log), sections), encoding="utf-8")
    os.replace(hidden, path)
    write_timeline(run_dir, log)
    return path


def report_parts(run_dir: Path) -> tuple[dict[str, str], list[list[Any]]]:
    """What other places show of a report: its figures as HTML by name, and its sample lists as rows, the header first.

    Figures that lack their records are left out.
    """
    text = _read(run_dir / "config.yaml")
    config = _mapping(yaml.safe_load(text) if text else None)
    drawn = figures(read_run_log(run_dir / "metrics.jsonl"), _knob(config, "training", "gap_alarm"))
    samples = _knob(config, "telemetry", "report_samples") or _DEFAULT_SAMPLES
    whole = {name: html for name, html in drawn.items() if html.startswith("<figure")}
    return whole, sample_table(run_dir / "lists", int(samples))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _knob(config: dict[str, Any], group: str, name: str) -> float | None:
    value = _mapping(config.get(group)).get(name)
    return float(value) if isinstance(value, int | float) else None


def _subtitle(config: dict[str, Any], log: RunLog) -> str:
    """Description, start, duration and size of the run on one line."""
    if not log.records:
        return str(config.get("description") or "nothing was recorded")
    started = datetime.fromtimestamp(log.started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    minutes = (max(record["time"] for record in log.records) - log.started) / 60
    resumes = sum(1 for record in log.records if record["event"] == "start" and record.get("resumed"))
    parts = [
        str(config.get("description") or ""),
        f"started {started}",
        f"{minutes:.1f} minutes from the first record to the last",
        f"{len(log.steps)} optimizer steps",
        f"resumed {resumes} times" if resumes else "",
    ]
    return " · ".join(part for part in parts if part)


def _result(log: RunLog) -> list[str]:
    """The headline: the table of the final record, or of the evaluations so far."""
    parts = [missing("The last line of metrics.jsonl was cut off and is left out.")] if log.torn else []
    if log.done is None:
        parts.append(missing("The run has no final record: it still goes on, or was cut short."))
    if log.done is not None and log.done.get("heldout/reward_after") is not None:
        return [*parts, _headline(log.done)]
    if log.done is not None and log.done.get("given/loss_after") is not None:
        return [*parts, _given_headline(log.done)]
    if log.evaluations:
        return [*parts, _evaluations_table(log.evaluations)]
    return [*parts, missing("No held-out evaluation was recorded.")]


def _headline(done: Record) -> str:
    """Base against aligned policy."""
    interval = ("heldout/reward_diff", "heldout/reward_diff_low", "heldout/reward_diff_high")
    diff, low, high = (_text(done.get(name), "+.3f") for name in interval)
    rows = [
        [label, *_policy_cells(done, f"_{when}"), f"{diff} [{low}, {high}]" if when == "after" else ""]
        for label, when in (("base policy", "before"), ("aligned policy", "after"))
    ]
    said = ""
    if is_chosen(done):
        rows.append(["last policy", *_policy_cells(done["last"], ""), ""])
        said += note(
            f"{chosen_text(done)} It was chosen on the held-out prompts that it is measured on, so its numbers lean "
            "upwards."
        )
    if done.get("stopped"):
        said += note(f"Stopped early: {done['stopped']}.")
    prompts, samples = (_text(done.get(f"heldout/{name}"), ".0f") for name in ("prompts", "samples"))
    header = [*_POLICY_HEADER, "difference [95% interval]"]
    return (
        table(header, rows, (0,), "headline")
        + note(
            f"{prompts} held-out prompts, {samples} samples each. The interval is a bootstrap over prompts, "
            "paired between the policies. Fully met: the greedy response has reward 1."
        )
        + said
    )


def _given_headline(done: Record) -> str:
    """Base against trained policy, of a run on a dataset's answers."""
    header, *rows = list_rows(done)
    return table(list(header), [list(row) for row in rows], (0,), "headline") + note(
        f"{_text(done.get('given/lists'), '.0f')} held-out lists, by the trainer's own log-probabilities. The interval "
        "is a bootstrap over lists, paired between the policies. Accuracy: pairs ordered as the dataset has them."
    )


def _evaluations_table(evaluations: Sequence[Record]) -> str:
    order = sorted(evaluations, key=lambda record: (record.get("iteration", 0), record.get("step") or 0))
    rows = [[str(record["label"]), *_policy_cells(record, "")] for record in order]
    return table(_POLICY_HEADER, rows, (0,), "headline")


_POLICY_HEADER = ["policy", "mean reward", "greedy reward", "fully met", "mean length", "cut off"]


def _policy_cells(record: Record, suffix: str) -> list[str]:
    specs = (
        ("reward", ".3f"),
        ("greedy", ".3f"),
        ("fully_met", ".1%"),
        ("response_tokens", ".1f"),
        ("cut_off_share", ".1%"),
    )
    return [_text(record.get(f"heldout/{noun}{suffix}"), spec) for noun, spec in specs]


def _text(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _shares_table(log: RunLog) -> str:
    """The timeline in numbers: busy share of each actor."""
    shares = busy_shares(log.spans)
    if not shares:
        return ""
    rows = [[actor, f"{shares[actor]:.1%}"] for actor in sorted(shares, key=actor_order)]
    return details("Busy share of each actor", table(["actor", "busy"], rows, (0,)))


def _overlap_table(log: RunLog) -> str:
    """How well sampling and training were done at once, by iteration."""
    names = ("busy/sampler", "busy/reward", "busy/trainer", "busy/overlap", "busy/overlap_efficiency")
    told = [record for record in log.iterations if record.get(names[-1]) is not None]
    if not told:
        return ""
    rows = [[f"{record['iteration'] + 1}", *(_text(record.get(name), ".1%") for name in names)] for record in told]
    header = ["iteration", "samplers", "reward", "trainer", "both sides", "busier side"]
    return table(header, rows, ()) + note(
        "Shares of each iteration's wall time. Busier side: in which sampling and ranking, or training, whichever takes"
        " longer, goes on; 100% when the other is wholly hidden behind it, about 50% when they take turns."
    )


def _troubles(log: RunLog) -> str:
    """Alarms and failures with the minute they came, the newest when there are too many."""
    if not log.troubles:
        return note("None were recorded.")
    rows = [
        [
            f"{(record['time'] - log.started) / 60:.1f}",
            record["event"],
            f"{record.get('actor', '')}: {record.get('reason', '')}"
            if record["event"] == "failure"
            else str(record.get("message", "")),
        ]
        for record in log.troubles[-_MAX_TROUBLES:]
    ]
    left_out = len(log.troubles) - len(rows)
    said = note(f"{left_out} earlier ones are in metrics.jsonl only.") if left_out else ""
    return said + table(["minute", "kind", "what happened"], rows, (1, 2))


def _configuration(text: str) -> str:
    if not text:
        return missing("config.yaml is not in the run folder.")
    return details("The resolved configuration (config.yaml)", preformatted(text))
