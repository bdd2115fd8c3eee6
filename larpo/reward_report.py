"""The report of a reward model's training: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from larpo.calibration import HeldoutPairs, reliability
from larpo.plots import GREY, ORANGE, Line, Panel, line_plot
from larpo.recipe import config_to_yaml
from larpo.report_page import details, figure, missing, page, plots, preformatted, section, table
from larpo.reward_data import LabelledList
from larpo.reward_results import Rewards, heldout_pairs, results_table
from larpo.reward_training_config import RewardTraining
from larpo.run_log import RunLog, read_run_log, series

_CALIBRATION = (
    "Pairs of held-out answers by the probability sigmoid(r_i - r_j) that the model gives them, each pair read from "
    "both sides, against the share that the data confirms. On the diagonal the model is as sure as it should be; "
    "flatter than the diagonal, it is too sure. A bar is as long as a bin's 95% interval: long where a bin holds few."
)


def write_reward_report(
    folder: Path, config: RewardTraining, heldout: Sequence[LabelledList], before: Rewards, after: Rewards
) -> Path:
    """Write `report.html` and `calibration.svg` into the run's folder; returns the page."""
    log = read_run_log(folder / "metrics.jsonl")
    calibration = calibration_plot(heldout_pairs(heldout, before), heldout_pairs(heldout, after))
    (folder / "calibration.svg").write_text(calibration, encoding="utf-8")
    sections = [
        section("Held-out answers", _table(log)),
        section(
            "Training",
            plots([figure("Is it as sure as it should be?", calibration, _CALIBRATION), *_training(log)]),
        ),
        section("Configuration", details("every knob", preformatted(config_to_yaml(config)))),
    ]
    target = folder / "report.html"
    target.write_text(page(f"Reward model: {folder.name}", config.description, sections), encoding="utf-8")
    return target


def calibration_plot(before: HeldoutPairs, after: HeldoutPairs) -> str:
    """Reliability curves of both models with the diagonal, as SVG."""
    curves = [("untrained", GREY, reliability(before)), ("trained", ORANGE, reliability(after))]
    lines = [Line("as sure as it should be", (0, 1), (0, 1), "#c9ced6", marks=False, dashed=True)]
    lines += [
        Line(label, curve.predicted, curve.observed, color, curve.half_widths, marks=True)
        for label, color, curve in curves
    ]
    return line_plot([Panel("share confirmed", lines)], "probability that the model gives", whole_x=False)


def _table(log: RunLog) -> str:
    if log.done is None:
        return missing("The run has not ended: there are no held-out numbers yet.")
    header, *rows = results_table({k: float(v) for k, v in log.done.items() if k.startswith("pairs/")})
    return table(header, rows, text_columns=(0,), kind="headline")


def _training(log: RunLog) -> list[str]:
    """Loss and accuracy over steps."""
    steps, loss = series(log.steps, "train/loss", "step")
    _, accuracy = series(log.steps, "pairs/train_accuracy", "step")
    panels = [Panel("loss (nats)", [Line("loss", steps, loss)]), Panel("pairs right", [Line("pairs", steps, accuracy)])]
    return [figure("Loss and pairs", line_plot(panels, "step"), "Of each step's lists, before its update.")]
