"""The report's plots, as SVG text: lines over steps or iterations, and the timeline of who worked when.

Lines can be had as a picture too, for pages that show no SVG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from larpo.busy import IDLE_KINDS, Span, busy_shares, merged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#2166ac", "#d6731f", "#2b8a57", "#b8322a", "#7a5aa6", "#8b929c"
KIND_COLORS = {
    "sample": BLUE,
    "rank": GREEN,
    "train": ORANGE,
    "publish": PURPLE,
    "update": "#c79bd8",
    "evaluate": "#57b8c9",
    "sleep": "#cfd6df",
    "wait": "#e3e6ea",
    "start": "#b9bec6",
}
_STYLE: Any = {
    "svg.hashsalt": "larpo",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#8b929c",
    "axes.labelcolor": "#30363d",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "grid.color": "#e7eaee",
    "legend.frameon": False,
}
_ROWS = 40  # actors in the timeline
_SMOOTH_FROM = 40  # points from which a running mean is drawn over them


@dataclass(frozen=True)
class Line:
    """One curve; `errors` are half-lengths of vertical bars, `marks` draws the points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = BLUE
    errors: Sequence[float] | None = None
    marks: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves over one y axis; `bound` is a labelled horizontal line."""

    ylabel: str
    lines: Sequence[Line]
    bound: tuple[str, float] | None = None
    from_zero: bool = False


def line_plot(
    panels: Sequence[Panel],
    xlabel: str,
    boundaries: Sequence[tuple[float, str]] = (),
    ticks: Sequence[float] = (),
    *,
    log_x: bool = False,
    whole_x: bool = True,
) -> str:
    """Panels above each other over one x axis, with labelled vertical lines at the `boundaries`.

    The axis is marked at `ticks`, or, with `whole_x`, at whole numbers only, as steps and iterations are.
    """
    from matplotlib import rc_context

    with rc_context(_STYLE):
        return _svg(_line_figure(panels, xlabel, boundaries, ticks, log_x=log_x, whole_x=whole_x))


def line_picture(panels: Sequence[Panel], xlabel: str, *, ticks: Sequence[float] = (), log_x: bool = False) -> bytes:
    """The same as the bytes of a PNG file."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(_STYLE):
        _line_figure(panels, xlabel, (), ticks, log_x=log_x).savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _line_figure(
    panels: Sequence[Panel],
    xlabel: str,
    boundaries: Sequence[tuple[float, str]],
    ticks: Sequence[float],
    *,
    log_x: bool,
    whole_x: bool = True,
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.8, 1.3 + 1.35 * max(1.6, len(panels))), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, boundaries)
    _label_boundaries(axes[0], boundaries)
    axes[-1].set_xlabel(xlabel)
    if log_x:
        axes[-1].set_xscale("log")
    if ticks:
        axes[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes[-1].set_xticks([], minor=True)
    else:
        axes[-1].xaxis.get_major_locator().set_params(integer=whole_x)
    return figure


def category_plot(
    groups: Mapping[str, Sequence[float]], ylabel: str, bound: tuple[str, float] | None, title: str = ""
) -> str:
    """Values by category: a mark each, a bar at the mean; `bound` is a labelled horizontal line."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(max(5.8, 1.1 * len(groups)), 3.4), layout="constrained")
        axis = figure.subplots()
        axis.grid(axis="y")
        axis.set_axisbelow(True)
        for place, values in enumerate(groups.values()):
            axis.plot([place] * len(values), values, "o", color=BLUE, markersize=5, alpha=0.75)
            mean = sum(values) / len(values)
            axis.plot([place - 0.22, place + 0.22], [mean, mean], color=ORANGE, linewidth=2)
        if bound is not None:
            axis.axhline(bound[1], color=GREY, linewidth=1, linestyle="--", label=bound[0])
            axis.legend(loc="lower right", bbox_to_anchor=(1, 0.99), fontsize=8.5, borderpad=0)
        axis.set_xticks(range(len(groups)), list(groups))
        axis.set_xlim(-0.6, len(groups) - 0.4)
        axis.margins(y=0.18)
        axis.set_ylabel(ylabel)
        axis.set_title(title, fontsize=9.5, loc="left")
        return _svg(figure)


def _draw_panel(axis: Axes, panel: Panel, boundaries: Sequence[tuple[float, str]]) -> None:
    axis.grid(axis="y")
    axis.set_axisbelow(True)
    for x, _ in boundaries:
        axis.axvline(x, color="#c9ced6", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.5)
    for line in panel.lines:
        _draw_line(axis, line)
    if panel.bound is not None:
        label, y = panel.bound
        axis.axhline(y, color=RED, linewidth=1, linestyle="--", label=label)
    axis.set_ylabel(panel.ylabel)
    axis.margins(y=0.18)
    if panel.from_zero:
        axis.set_ylim(bottom=0)
    if len(panel.lines) > 1 or panel.bound is not None:
        entries = len(panel.lines) + (panel.bound is not None)
        axis.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=entries, fontsize=8.5, borderpad=0)


def _draw_line(axis: Axes, line: Line) -> None:
    """A curve; a noisy one (many points) is drawn pale under its running mean."""
    style = "--" if line.dashed else "-"
    many = len(line.x) >= _SMOOTH_FROM
    marker = "o" if line.marks or len(line.x) <= 12 else ""
    if line.errors is not None:
        axis.errorbar(line.x, line.y, yerr=line.errors, fmt="none", ecolor=line.color, capsize=3, linewidth=1)
    axis.plot(
        line.x,
        line.y,
        style,
        color=line.color,
        linewidth=0.8 if many else 1.6,
        alpha=0.35 if many else 1.0,
        marker=marker,
        markersize=4,
        label=None if many else line.label,
    )
    if many:
        smooth = running_mean(line.y, len(line.y) // 20 + 1)
        axis.plot(line.x, smooth, style, color=line.color, linewidth=1.8, label=line.label)


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value and up to `reach` neighbours on either side.

    >>> running_mean([0.0, 3.0, 6.0], 1)
    [1.5, 3.0, 4.5]
    """
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _label_boundaries(axis: Axes, boundaries: Sequence[tuple[float, str]]) -> None:
    """Labels at the top, left out where there are too many to read."""
    if len(boundaries) > 8:
        return
    for x, label in boundaries:
        axis.annotate(
            label,
            (x, 1),
            xycoords=axis.get_xaxis_transform(),
            xytext=(3, -2),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color="#57606a",
        )


def timeline(spans: Sequence[Span]) -> str:
    """Who worked when: a row an actor, coloured by what it did, labelled with its busy share."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    actors = sorted({span.actor for span in spans}, key=actor_order)[:_ROWS]
    cuts = time_cuts(spans)
    with rc_context(_STYLE):
        figure = Figure(figsize=(10.4, 1.5 + 0.36 * len(actors)), layout="constrained")
        axis = figure.subplots()
        for row, actor in enumerate(actors):
            _draw_actor(axis, row, [span for span in spans if span.actor == actor], cuts)
        shares = busy_shares(spans)
        axis.set_yticks(range(len(actors)), [f"{actor}   busy {shares[actor]:.0%}" for actor in actors])
        axis.set_ylim(len(actors) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("minutes of work" if len(cuts) > 1 else "minutes since the first record of work")
        axis.margins(x=0.01)
        axis.grid(axis="x")
        axis.set_axisbelow(True)
        for begin, _, shift in cuts[1:]:
            axis.axvline((begin - shift) / 60, color=RED, linewidth=1, linestyle=":")
        _kind_legend(figure, {span.kind for span in spans})
        return _svg(figure)


def _draw_actor(axis: Axes, row: int, spans: Sequence[Span], cuts: Sequence[tuple[float, float, float]]) -> None:
    """Idle kinds first and thin, so that work is seen over waiting."""
    for kind in reversed(KIND_COLORS):
        bars = merged((span.start, span.end) for span in spans if span.kind == kind)
        moved = [(_shifted(start, cuts) / 60, (end - start) / 60) for start, end in bars]
        height = 0.3 if kind in IDLE_KINDS else 0.62
        axis.broken_barh(moved, (row - height / 2, height), color=KIND_COLORS[kind], linewidth=0)


def time_cuts(spans: Sequence[Span], idle_s: float = 600.0) -> list[tuple[float, float, float]]:
    """Sessions as (begin, end, shift): subtracting `shift` takes pauses longer than `idle_s`, such as between
    a kill and the resume, out of the time axis, and starts it at 0.
    """
    busy = merged((span.start, span.end) for span in spans)
    cuts: list[tuple[float, float, float]] = []
    for start, end in busy:
        if cuts and start - cuts[-1][1] <= idle_s:
            cuts[-1] = (cuts[-1][0], end, cuts[-1][2])
        else:
            pause = start - cuts[-1][1] if cuts else start
            cuts.append((start, end, (cuts[-1][2] if cuts else 0.0) + pause))
    return cuts


def _shifted(time: float, cuts: Sequence[tuple[float, float, float]]) -> float:
    return time - next(shift for begin, _, shift in reversed(cuts) if time >= begin)


def actor_order(actor: str) -> tuple[int, list[Any]]:
    """Samplers, then reward actors, the trainer, the rest; sampler-2 before sampler-10."""
    groups = ("sampler", "reward", "trainer")
    group = next((i for i, name in enumerate(groups) if actor.startswith(name)), len(groups))
    return group, [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", actor)]


def _kind_legend(figure: Figure, kinds: set[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=kind) for kind, color in KIND_COLORS.items() if kind in kinds]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8.5, handlelength=1.2)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
