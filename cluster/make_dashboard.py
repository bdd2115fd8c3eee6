"""Grafana's page for larpo's metrics, made from a table.

`python -m cluster.make_dashboard` writes cluster/grafana.json. A panel names metrics of `larpo/metrics.py`, which say
what their units, kinds and labels are. A gauge is shown as it is, a counter as its rate a second: a counter of seconds
so becomes a share of time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larpo.metrics import METRICS, Metric

FILE = Path(__file__).parent / "grafana.json"
COLUMNS, WIDTH, HEIGHT = 24, 8, 7  # Grafana's grid: three panels a row
SHARE = "percentunit"


@dataclass(frozen=True)
class Panel:
    """A title, metrics by name, and Grafana's unit for them; `totals`: what counters grew by in all that is shown."""

    title: str
    metrics: tuple[str, ...]
    unit: str = "short"
    totals: bool = False


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Where the run is",
        (
            Panel("Planned work done", ("run/done",), SHARE),
            Panel("Held-out reward", ("heldout/reward", "heldout/greedy")),
            Panel("Reward of fresh responses", ("lists/reward_best", "lists/reward_mean")),
        ),
    ),
    (
        "Sampling, by sampler",
        (
            Panel("Prompts a second", ("sampler/prompts_per_second",)),
            Panel("Samples a second", ("sampler/samples_per_second",)),
            Panel("Tokens a second", ("sampler/tokens_per_second",)),
            Panel(
                "Tokens a second: all samplers, the trainer",
                ("pool/tokens_per_second", "train/tokens_per_second"),
            ),
            Panel("Samplers: ready, wanted, on their way", ("pool/samplers", "pool/wanted", "pool/pending")),
            Panel("Prompts in flight", ("sampler/in_flight",)),
        ),
    ),
    (
        "The stream",
        (
            Panel("Lists that wait", ("stream/lists",)),
            Panel(
                "Time spent waiting: ranking for room, the trainer for lists",
                ("stream/producer_wait_seconds", "stream/consumer_wait_seconds"),
                SHARE,
            ),
            Panel("Lists ranked a second", ("reward/lists_per_second",)),
        ),
    ),
    (
        "Learning",
        (
            Panel("Loss", ("train/loss",)),
            Panel("Gradient norm, before clipping", ("train/grad_norm",)),
            Panel("KL to the reference, entropy", ("train/kl_to_reference", "train/entropy")),
            Panel("Spread of a prompt's rewards", ("lists/reward_spread",)),
            Panel("Hardness: reward of winners minus losers", ("lists/reward_gap",)),
            Panel("Hardness: overlap of winners and losers", ("lists/overlap",), SHARE),
            Panel("Hardness: the policy's score of winners minus losers", ("train/score_gap",)),
            Panel("Ranking accuracy of the policy", ("train/ranking_accuracy",), SHARE),
            Panel("Lists dropped a second", ("lists/dropped_equal_rewards", "lists/dropped_too_few")),
            Panel("Gap of log-probabilities, sampler and trainer", ("train/log_prob_gap", "train/policy_gap")),
        ),
    ),
    (
        "Weights",
        (
            Panel("Staleness of trained candidates", ("train/staleness_mean", "train/staleness_max")),
            Panel("Version that each sampler holds", ("sampler/weight_version",)),
            Panel("Gathering and publishing a version", ("weights/publish_seconds",), "s"),
            Panel("Pulling a version, by sampler", ("weights/pull_seconds",), "s"),
            Panel("Generation paused, by sampler", ("weights/pause_seconds",), "s"),
            Panel("An optimizer step", ("train/step_seconds", "train/wait_seconds"), "s"),
        ),
    ),
    (
        "Who works",
        (
            Panel("Busy share", ("busy/sampler", "busy/reward", "busy/trainer"), SHARE),
            Panel("Busy share, by sampler", ("sampler/busy",), SHARE),
            Panel("Overlap of sampling and training", ("busy/overlap", "busy/overlap_efficiency"), SHARE),
        ),
    ),
    (
        "Failures",
        (
            Panel("Failures by kind", ("run/failures",), totals=True),
            Panel("Alarms, samplers replaced", ("run/alarms", "pool/restarts"), totals=True),
            Panel("Prompts sampled again, rewards that failed", ("pool/requeued", "reward/failures"), totals=True),
        ),
    ),
)


def ray_name(metric: Metric) -> str:
    """As Ray exports it to Prometheus."""
    return f"ray_larpo_{metric.name.replace('/', '_')}" + ("_total" if metric.kind == "counter" else "")


def query(metric: Metric, *, totals: bool = False) -> str:
    """PromQL of one metric, a series a run and a value of its labels.

    A run that was resumed has another driver, whose series Ray tells apart by labels of its own: they are joined.
    """
    series = f'{ray_name(metric)}{{run=~"$run"}}'
    by = ", ".join(("run", *metric.labels))
    if metric.kind == "gauge":
        return f"max by ({by}) ({series})"
    if totals:
        return f"sum by ({by}) (increase({series}[$__range]))"
    return f"sum by ({by}) (rate({series}[$__rate_interval]))"


def legend(metric: Metric, panel: Panel) -> str:
    noun = "" if len(panel.metrics) == 1 and metric.labels else metric.name.replace("_", " ")
    return " ".join(part for part in (noun, *(f"{{{{{label}}}}}" for label in metric.labels), "({{run}})") if part)


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    metrics = [METRICS[name] for name in panel.metrics]
    targets = [
        {
            "refId": chr(ord("A") + index),
            "expr": query(metric, totals=panel.totals),
            "legendFormat": legend(metric, panel),
            **({"instant": True} if panel.totals else {}),
        }
        for index, metric in enumerate(metrics)
    ]
    return {
        "id": number,
        "type": "stat" if panel.totals else "timeseries",
        "title": panel.title,
        "description": "; ".join(f"{metric.name}: {metric.description} ({metric.unit})" for metric in metrics),
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0 if panel.unit == SHARE else None}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if not panel.totals else {},
        "targets": targets,
    }


def panels_json() -> Iterator[dict[str, Any]]:
    """Row headings and panels, from left to right and down."""
    number = y = 0
    for title, panels in ROWS:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        y += 1
        for index, panel in enumerate(panels):
            number += 1
            yield panel_json(panel, number, index * WIDTH % COLUMNS, y + index * WIDTH // COLUMNS * HEIGHT)
        y += (len(panels) * WIDTH + COLUMNS - 1) // COLUMNS * HEIGHT


def dashboard() -> dict[str, Any]:
    runs = f"label_values({ray_name(METRICS['run/seconds'])}, run)"
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "uid": "larpo",
        "title": "larpo",
        "tags": ["larpo", "ray"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "run",
                    "label": "Run",
                    "type": "query",
                    "datasource": source,
                    "definition": runs,
                    "query": {"query": runs, "refId": "runs"},
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "allValue": ".+",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": list(panels_json()),
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
