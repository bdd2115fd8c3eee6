"""Runs side by side: the settings that differ, what they came to, and their curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larpo.errors import DataError
from larpo.list_evaluation import ENDS, MEASURES, TITLES
from larpo.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Line, Panel, line_plot
from larpo.recipe import flat_knobs, load_config
from larpo.report_figures import axis_label, evaluated
from larpo.report_page import figure, missing, page, plots, section, table
from larpo.run_log import Record, RunLog, read_run_log, series

COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
CURVES = ("train/loss", "train/kl_to_reference", "train/ranking_accuracy", "train/entropy")
_NAMES = ("run.name", "run.output_dir", "description")  # differ by themselves
RESULT_HEADER = ("run", "held out", "before", "after", "difference [95% interval]", "fully met", "steps", "minutes")


@dataclass(frozen=True)
class ComparedRun:
    """A run's name, knobs and log."""

    name: str
    knobs: dict[str, Any]
    log: RunLog


def read_run(folder: Path) -> ComparedRun:
    """DataError when the folder holds no run."""
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder} is no run folder: it has no config.yaml; give one, such as runs/NAME")
    config = load_config(str(folder / "config.yaml"))
    return ComparedRun(folder.resolve().name, flat_knobs(config), read_run_log(folder / "metrics.jsonl"))


def differing_knobs(runs: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """One row a knob that is not the same in all runs: its key, and its value in each."""
    keys = dict.fromkeys(key for run in runs for key in run.knobs if key not in _NAMES)
    rows = [(key, *(str(run.knobs.get(key, "not set")) for run in runs)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def results(runs: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """Rows as RESULT_HEADER: one a run, or one a measure of held-out lists; dashes where it has not come to its end."""
    return [row for run in runs for row in _results(run)]


def _results(run: ComparedRun) -> list[tuple[str, ...]]:
    done, steps = run.log.done, str(run.log.steps[-1]["step"]) if run.log.steps else "-"
    if done is None:
        return [(run.name, "-", "-", "-", "not done", "-", steps, "-")]
    minutes = f"{done['run/seconds'] / 60:.1f}" if "run/seconds" in done else "-"
    met = _number(done, "heldout/fully_met_after", ".1%")
    return [(run.name, *measured, met, steps, minutes) for measured in _measured(done)]


def _measured(done: Record) -> list[tuple[str, ...]]:
    """What was measured on what was held out: its name, before, after, and the difference."""
    found = [("reward", "heldout/reward")] if "heldout/reward_after" in done else []
    found += [(TITLES[m], f"given/{m}") for m in MEASURES if done.get(f"given/{m}_after") is not None]
    return [(title, *_before_and_after(done, key)) for title, key in found] or [("-", "-", "-", "-")]


def _before_and_after(done: Record, key: str) -> tuple[str, str, str]:
    interval = "-"
    if f"{key}_diff" in done:
        interval = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*(done[f"{key}_{end}"] for end in ENDS))
    return _number(done, f"{key}_before", ".3f"), _number(done, f"{key}_after", ".3f"), interval


def _number(record: Record, name: str, form: str) -> str:
    return format(record[name], form) if record.get(name) is not None else "-"


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """The same as HTML, with held-out reward by iteration and curves over steps."""
    knobs = differing_knobs(runs)
    settings = table(("setting", *(run.name for run in runs)), knobs, range(len(runs) + 1)) if knobs else ""
    curves = [_reward_figure(runs), *(_step_figure(runs, name) for name in CURVES)]
    return page(
        "larpo runs compared",
        ", ".join(run.name for run in runs),
        [
            section("Result", table(RESULT_HEADER, results(runs), (0, 1))),
            section("Settings that differ", settings or missing("None: the runs have the same settings.")),
            section("Curves", plots(curves)),
        ],
    )


def _reward_figure(runs: Sequence[ComparedRun]) -> str:
    lines = []
    for run, color in zip(runs, _colors(runs), strict=True):
        points = evaluated(run.log.evaluations)
        if points:
            rewards = [record["heldout/reward"] for _, record in points]
            errors = [1.96 * (record.get("heldout/reward_stderr") or 0.0) for _, record in points]
            lines.append(Line(run.name, [x for x, _ in points], rewards, color, errors, marks=True))
    if not lines:
        return missing("Held-out reward: no run recorded an evaluation.")
    plot = line_plot([Panel("held-out reward (mean)", lines)], "iterations trained")
    return figure("Held-out reward", plot, "Mean over held-out prompts; bars are 95% intervals over prompts.")


def _step_figure(runs: Sequence[ComparedRun], name: str) -> str:
    lines = [
        Line(run.name, *xy, color)
        for run, color in zip(runs, _colors(runs), strict=True)
        if (xy := series(run.log.steps, name, "step"))[0]
    ]
    if not lines:
        return missing(f"{name}: no run recorded it.")
    title = name.split("/")[1].replace("_", " ").replace("kl ", "KL ")
    return figure(title, line_plot([Panel(axis_label(name), lines)], "optimizer step"), f"{name} over steps.")


def _colors(runs: Sequence[ComparedRun]) -> list[str]:
    return [COLORS[number % len(COLORS)] for number in range(len(runs))]
