"""The Grafana page as a picture, where there is no Grafana: its own queries, asked of a Prometheus and drawn.

`python -m cluster.draw_dashboard http://127.0.0.1:9090 page.png --minutes 10` asks every query of cluster/grafana.json
over the last minutes, and draws its panels in the page's order.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.make_dashboard import COLUMNS, FILE, SHARE, WIDTH

STEP_S = 5
RATE_OVER = "1m"  # what Grafana makes of $__rate_interval where metrics are scraped every 15 s


@dataclass(frozen=True)
class Window:
    """What is asked: whose queries, over which time, of which runs."""

    server: str
    start: float
    end: float
    run: str = ".+"

    def expression(self, target: Mapping[str, Any]) -> str:
        """A panel's expression with the variables that Grafana fills in."""
        text = target["expr"].replace("$__rate_interval", RATE_OVER).replace("$run", self.run)
        return text.replace("$__range", f"{self.end - self.start:.0f}s")

    def series(self, target: Mapping[str, Any]) -> list[tuple[str, list[float], list[float]]]:
        """Legend, minutes and values of each series; ValueError with what Prometheus has against the query."""
        query = {"query": self.expression(target)}
        if target.get("instant"):
            answer = self._ask("query", {**query, "time": self.end})
            return [(_legend(target, found["metric"]), [0.0], [float(found["value"][1])]) for found in answer]
        answer = self._ask("query_range", {**query, "start": self.start, "end": self.end, "step": STEP_S})
        return [
            (
                _legend(target, found["metric"]),
                [(float(when) - self.start) / 60 for when, _ in found["values"]],
                [float(value) for _, value in found["values"]],
            )
            for found in answer
        ]

    def _ask(self, path: str, query: Mapping[str, Any]) -> list[dict[str, Any]]:
        url = f"{self.server}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{query['query']}: {json.load(error).get('error')}") from error


def _legend(target: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), target["legendFormat"])


def draw(window: Window, page: Mapping[str, Any], output: Path) -> list[str]:
    """Draw every panel into `output`; returns the titles of those that had nothing to show."""
    from matplotlib.figure import Figure

    across = COLUMNS // WIDTH
    rows: list[tuple[str, list[Mapping[str, Any]]]] = []
    for panel in page["panels"]:
        if panel["type"] == "row":
            rows.append((panel["title"], []))
        else:
            rows[-1][1].append(panel)
    lines = [
        (title if start == 0 else "", panels[start : start + across])
        for title, panels in rows
        for start in range(0, len(panels), across)
    ]
    figure = Figure(figsize=(5.2 * across, 2.35 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), across, squeeze=False)
    empty = []
    for (title, panels), line in zip(lines, axes, strict=True):
        for axis in line[len(panels) :]:
            axis.axis("off")
        for panel, axis in zip(panels, line, strict=False):
            if not _draw_panel(window, panel, axis):
                empty.append(panel["title"])
        if title:
            line[0].text(0, 1.22, title, transform=line[0].transAxes, fontsize=11, fontweight="bold")
    figure.savefig(output, dpi=80)
    return empty


def _draw_panel(window: Window, panel: Mapping[str, Any], axis: Any) -> bool:
    axis.set_title(panel["title"], fontsize=9, loc="left")
    axis.tick_params(labelsize=7)
    series = [found for target in panel["targets"] for found in window.series(target)]
    if panel["type"] == "stat":
        axis.axis("off")
        text = "\n".join(f"{legend}: {values[0]:g}" for legend, _, values in series) or "none"
        axis.text(0.02, 0.9, text, va="top", fontsize=11)
        return bool(series)
    for legend, minutes, values in series:
        axis.plot(minutes, values, linewidth=1.2, label=legend)
    share = panel["fieldConfig"]["defaults"]["unit"] == SHARE
    axis.set_xlim(0, (window.end - window.start) / 60)
    axis.grid(alpha=0.3)
    if share:
        axis.set_ylim(0, max([1.0, *(value for _, _, values in series for value in values)]) * 1.02)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if series:
        axis.legend(fontsize=6, loc="best", framealpha=0.6)
    return bool(series)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.draw_dashboard", description="Draw the Grafana page.")
    parser.add_argument("server", help="address of a Prometheus, such as http://127.0.0.1:9090")
    parser.add_argument("output", type=Path, help="picture to write, such as page.png")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far back it goes")
    parser.add_argument("--until", type=float, default=0.0, help="end in unix seconds; now when not given")
    parser.add_argument("--run", default=".+", help="name of the run, a regular expression; all when not given")
    options = parser.parse_args(arguments)
    end = options.until or time.time()
    window = Window(options.server.rstrip("/"), end - 60 * options.minutes, end, options.run)
    empty = draw(window, json.loads(FILE.read_text()), options.output)
    print(f"{options.output}; nothing to show in: {', '.join(empty) or 'no panel'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
