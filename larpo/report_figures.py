"""The figures of a report: which records each draws, its title, and what it says when they are missing."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from larpo.busy import busy_metrics
from larpo.metrics import METRICS
from larpo.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, Line, Panel, line_plot, timeline
from larpo.report_page import figure, missing
from larpo.run_log import Record, RunLog, series

_Z = 1.96  # half-length of a 95% normal interval in standard errors


def figures(log: RunLog, gap_alarm: float | None) -> dict[str, str]:
    """All figures of a report by a short name, in its order; the last is the timeline.

    Staleness is among them where a list had any.
    """
    names = ("loss", "reference", "ranker", "staleness", "log_prob_gap", "step_time")
    training = dict(zip(names, training_figures(log, gap_alarm), strict=True))
    if not any(record.get("train/staleness_max") for record in log.steps):
        del training["staleness"]
    return {
        "reward": reward_figure(log),
        **training,
        "hardness": hardness_figure(log),
        "busy_time": timeline_figure(log),
    }


def reward_figure(log: RunLog) -> str:
    """Held-out and training reward by the iterations that the policy has been trained, or by steps with snapshots."""
    by_step = any(is_snapshot(record) for record in log.evaluations)
    heldout = evaluated_by_step(log) if by_step else evaluated(log.evaluations)
    greedy = [(x, r) for x, r in heldout if r.get("heldout/greedy") is not None]
    training = training_reward(log)
    lines = []
    if heldout:
        errors = [_Z * (record.get("heldout/reward_stderr") or 0.0) for _, record in heldout]
        lines.append(_points("held-out", heldout, "heldout/reward", BLUE, errors))
    if greedy:
        lines.append(_points("held-out, greedy", greedy, "heldout/greedy", GREY))
    if training:
        places = [steps_behind(log, iteration) if by_step else iteration for iteration in training]
        lines.append(Line("training", places, list(training.values()), ORANGE, marks=True))
    if not lines:
        return missing("Reward by iteration: no evaluation and no lists were recorded.")
    bounds = boundaries(log.steps) if by_step else ()
    plot = line_plot([Panel("reward (mean)", lines)], "optimizer step" if by_step else "iterations trained", bounds)
    return figure(
        "Reward by step" if by_step else "Reward by iteration",
        plot,
        "Mean reward of sampled responses; bars are 95% intervals over held-out prompts. Training responses "
        "of an iteration are sampled by the policy that it starts from, on other prompts." + _hole(log),
    )


def _hole(log: RunLog) -> str:
    """Which iterations' ends have no evaluation though later ones have, where each should."""
    ends = {x for x, _ in evaluated(log.evaluations)}
    holes = [str(number) for number in range(1, max(ends, default=0)) if number not in ends]
    if not holes or len(ends) < 3:  # before and after the run only
        return ""
    return f" Not evaluated: the policy after iteration {', '.join(holes)}; the line passes over it."


def is_snapshot(record: Record) -> bool:
    """Whether an evaluation is of a policy within an iteration."""
    return record.get("step") is not None


def steps_behind(log: RunLog, iterations: int) -> int:
    """Optimizer steps of the first so many iterations: up to the first step after them, since a kill loses records."""
    after = [record["step"] - 1 for record in log.steps if record["iteration"] >= iterations]
    before = [r["step"] for r in (*log.steps, *filter(is_snapshot, log.evaluations)) if r["iteration"] < iterations]
    return 0 if iterations == 0 else min(after, default=max(before, default=0))


def evaluated_by_step(log: RunLog) -> list[tuple[int, Record]]:
    """All evaluations by the optimizer steps behind them."""
    placed = [(steps_behind(log, x), record) for x, record in evaluated(log.evaluations)]
    placed += [(r["step"], r) for r in log.evaluations if is_snapshot(r) and r.get("heldout/reward") is not None]
    return sorted(placed, key=lambda pair: pair[0])


def evaluated(evaluations: Sequence[Record]) -> list[tuple[int, Record]]:
    """Evaluations of iterations' ends by the iterations behind them: `iteration`, or their place without it."""
    ends = [record for record in evaluations if not is_snapshot(record)]
    placed = [(int(record.get("iteration", place)), record) for place, record in enumerate(ends)]
    return sorted(
        ((x, record) for x, record in placed if record.get("heldout/reward") is not None), key=lambda pair: pair[0]
    )


def _points(
    label: str,
    points: Sequence[tuple[int, Record]],
    name: str,
    color: str,
    errors: Sequence[float] | None = None,
) -> Line:
    return Line(
        label,
        [x for x, _ in points],
        [record[name] for _, record in points],
        color,
        errors,
        marks=True,
        dashed=errors is None,
    )


def training_reward(log: RunLog) -> dict[int, float]:
    """Mean training reward of each iteration: as its end reports it, else the mean over its parts so far."""
    parts: dict[int, list[float]] = defaultdict(list)
    for record in log.lists:
        if record.get("lists/reward_mean") is not None:
            parts[record["iteration"]].append(record["lists/reward_mean"])
    means = {iteration: sum(values) / len(values) for iteration, values in parts.items()}
    whole = {
        record["iteration"]: record["lists/reward_mean"]
        for record in log.iterations
        if record.get("lists/reward_mean") is not None
    }
    return dict(sorted({**means, **whole}.items()))


def boundaries(steps: Sequence[Record]) -> list[tuple[float, str]]:
    """Where iterations begin on an axis of steps."""
    firsts: dict[int, float] = {}
    for record in steps:
        firsts.setdefault(record["iteration"], record["step"])
    return [(step - 0.5, f"iteration {iteration + 1}") for iteration, step in firsts.items()]


def step_figure(
    log: RunLog,
    title: str,
    caption: str,
    *panels: Mapping[str, str],
    bounds: Mapping[str, tuple[str, float]] | None = None,
    from_zero: bool = False,
) -> str:
    """Metrics over optimizer steps: one mapping (metric -> label) a panel, the first gives the unit."""
    drawn = []
    for panel in panels:
        curves = [(label, name, series(log.steps, name, "step")) for name, label in panel.items()]
        colors = (BLUE, ORANGE, GREEN)
        lines = [Line(label, *xy, color) for (label, _, xy), color in zip(curves, colors, strict=False) if xy[0]]
        if lines:
            first = next(iter(panel))
            bound = (bounds or {}).get(first)
            label = METRICS[first].unit if len(lines) > 1 else axis_label(first)
            drawn.append(Panel(label, lines, bound, from_zero))
    if not drawn:
        names = ", ".join(name for panel in panels for name in panel)
        return missing(f"{title}: no step recorded {names}.")
    return figure(title, line_plot(drawn, "optimizer step", boundaries(log.steps)), caption)


def axis_label(name: str) -> str:
    """`kl to reference (nats/token)` for `train/kl_to_reference`."""
    noun = name.split("/")[1].replace("_", " ").replace("kl ", "KL ")
    unit = METRICS[name].unit
    return noun if noun.endswith(unit) else f"{noun}\n({unit})"


def hardness_figure(log: RunLog) -> str:
    """Reward gap and overlap of winners and losers, by iteration and part."""
    names = {"lists/reward_gap": BLUE, "lists/overlap": PURPLE}
    parts = [record for record in log.lists if any(record.get(name) is not None for name in names)]
    records = with_position(parts) or [{**record, "x": record["iteration"]} for record in log.iterations]
    panels = []
    for name, color in names.items():
        x, y = series(records, name, "x")
        if x:
            panels.append(Panel(axis_label(name), [Line("", x, y, color)], from_zero=True))
    if not panels:
        return missing(f"List hardness: no lists recorded {', '.join(names)}.")
    plot = line_plot(panels, "iterations sampled")
    return figure(
        "List hardness",
        plot,
        "Reward of winners minus losers, and their 3-gram overlap, mean over lists. A smaller gap and a "
        "larger overlap are harder lists; an overlap near 1 leaves nothing to learn.",
    )


def with_position(lists: Sequence[Record]) -> list[Record]:
    """The records with `x`: iteration s and part j of n lie at s + (j + 1/2) / n."""
    counts, seen = Counter(record["iteration"] for record in lists), Counter[int]()
    placed: list[Record] = []
    for record in lists:
        iteration = record["iteration"]
        placed.append({**record, "x": iteration + (seen[iteration] + 0.5) / counts[iteration]})
        seen[iteration] += 1
    return placed


def timeline_figure(log: RunLog) -> str:
    if not log.spans:
        return missing("Busy time: no spans were recorded.")
    shares = busy_metrics(log.spans)
    means = ", ".join(f"{name.split('/')[1]} {share:.0%}" for name, share in shares.items())
    return figure(
        "Who worked when",
        timeline(log.spans),
        f"Mean busy share: {means or 'no sampler, reward actor or trainer'}. Waiting and starting do not "
        "count as busy. A dotted line is a pause of more than ten minutes, taken out.",
    )


def training_figures(log: RunLog, gap_alarm: float | None) -> list[str]:
    """The figures over optimizer steps."""
    alarm = {} if gap_alarm is None or math.isinf(gap_alarm) else {"train/log_prob_gap": ("alarm bound", gap_alarm)}
    return [
        step_figure(
            log,
            "Loss",
            "Objective, and gradient norm before clipping. Iterations have other lists: compare within one.",
            {"train/loss": "loss"},
            {"train/grad_norm": "gradient norm"},
        ),
        step_figure(
            log,
            "Distance from the reference",
            "KL estimated on the lists' responses, each weighted by policy over sampler; entropy of the policy there.",
            {"train/kl_to_reference": "KL to reference"},
            {"train/entropy": "entropy"},
        ),
        step_figure(
            log,
            "The policy as a ranker",
            "Mean score of the winners minus that of the losers, and the share of ordered pairs that the score "
            "ranks as the reward does; 0.5 is chance.",
            {"train/score_gap": "score gap"},
            {"train/ranking_accuracy": "ranking accuracy"},
        ),
        step_figure(
            log,
            "Staleness",
            "Publications of weights between asking for a fresh list's prompt and training on it.",
            {"train/staleness_max": "largest", "train/staleness_mean": "mean"},
            from_zero=True,
        ),
        step_figure(
            log,
            "Sampler against trainer",
            "Mean |difference| of the two log-probabilities of a sampled token: numerical noise under equal "
            "weights; after the trainer moved on it holds the policy's own movement too.",
            {"train/log_prob_gap": "equal weights"},
            {"train/policy_gap": "after the trainer moved on"},
            bounds=alarm,
            from_zero=True,
        ),
        step_figure(
            log,
            "Time of a step",
            "Seconds of work and of waiting for lists.",
            {"train/step_seconds": "step", "train/wait_seconds": "wait"},
            from_zero=True,
        ),
    ]
