"""The state of a run that the console shows, as one line of a log and as one page of a terminal."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

SAMPLER_ROWS = 5  # sampler and alarm rows of the live page: with its other 13 rows it fits 24
ALARM_ROWS = 3
_BAR_CELLS = 30
COMING = ("pending", "starting", "restarting")  # statuses of samplers that are not at work yet


@dataclass(frozen=True)
class SamplerState:
    """A sampler, the weight version it holds and what it does (`pending`, `starting`, `sampling`, `leaving`, ...)."""

    name: str
    weight_version: int
    status: str


@dataclass(frozen=True)
class RunState:
    """Everything that the console shows. `iteration` counts from 0; `steps_planned` is an upper estimate.

    Counts of prompts are of this iteration, steps are of the whole run; what is not known yet is None.
    """

    phase: str
    iteration: int = 0
    iterations: int = 1
    prompts_sampled: int = 0
    prompts_ranked: int = 0
    prompts_total: int = 0
    samples: bool = True  # False: the lists come from a dataset, and `prompts_ranked` counts those offered
    lists_in_stream: int = 0
    stream_capacity: int = 0
    step: int = 0
    steps_planned: int = 0
    loss: float | None = None
    mean_reward: float | None = None
    tokens_per_second: float | None = None
    samplers: tuple[SamplerState, ...] = ()
    seconds_elapsed: float = 0.0
    seconds_left: float | None = None
    alarms: tuple[str, ...] = ()


def clock_text(seconds: float | None) -> str:
    """`04:12`, `1:04:12`, or a dash for what is not known.

    >>> clock_text(3852.0), clock_text(None)
    ('1:04:12', '-')
    """
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute:02d}:{second:02d}"


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _versions(samplers: tuple[SamplerState, ...]) -> str:
    """`v3` when all samplers agree; each by name when a few do not; the range when many do not.

    Those that are on their way have no weights yet.
    """
    samplers = tuple(sampler for sampler in samplers if sampler.status not in COMING)
    versions = sorted({sampler.weight_version for sampler in samplers})
    if len(versions) < 2:
        return f"v{versions[0]}" if versions else "-"
    if len(samplers) <= 4:
        return " ".join(f"{sampler.name}=v{sampler.weight_version}" for sampler in samplers)
    return f"v{versions[0]}..v{versions[-1]}"


def plain_line(state: RunState) -> str:
    """A state as one line of a log."""
    offered = [f"lists {state.prompts_ranked}/{state.prompts_total}"]
    ranked = [
        f"sampled {state.prompts_sampled}/{state.prompts_total}",
        f"ranked {state.prompts_ranked}/{state.prompts_total}",
    ]
    parts = [
        f"[{clock_text(state.seconds_elapsed)}] iteration {min(state.iteration + 1, state.iterations)}"
        f"/{state.iterations} {state.phase}:",
        *(ranked if state.samples else offered),
        f"stream {state.lists_in_stream}/{state.stream_capacity}",
        f"step {state.step}/{state.steps_planned}",
        f"loss {_number(state.loss, '.4f')}",
        *(_sampling(state) if state.samples else ()),
        f"left {clock_text(state.seconds_left)}",
    ]
    alarms = f"  alarms {len(state.alarms)}" if state.alarms else ""
    return parts[0] + " " + "  ".join(parts[1:]) + alarms


def _sampling(state: RunState) -> tuple[str, ...]:
    return (
        f"reward {_number(state.mean_reward, '.3f')}",
        f"{_number(state.tokens_per_second, ',.0f')} tokens/s",
        f"weights {_versions(state.samplers)}",
        *_pool(state.samplers),
    )


def _pool(samplers: tuple[SamplerState, ...]) -> tuple[str, ...]:
    """How many are at work, where some come or go."""
    odd = Counter(sampler.status for sampler in samplers if sampler.status in (*COMING, "leaving"))
    counts = ", ".join(f"{count} {status}" for status, count in odd.items())
    return (f"samplers {len(samplers) - odd.total()} ({counts})",) if odd else ()


def render_page(state: RunState, age_s: float = 0.0) -> RenderableType:
    """The live page, at most 80 columns by 24 rows; its clocks run on by `age_s` since the state came."""
    from rich.console import Group
    from rich.panel import Panel

    left = None if state.seconds_left is None else max(0.0, state.seconds_left - age_s)
    clocks = f"elapsed {clock_text(state.seconds_elapsed + age_s)}   left about {clock_text(left)}"
    return Panel(
        Group(
            _line(
                ("iteration ", f"{min(state.iteration + 1, state.iterations)} of {state.iterations}   "),
                ("phase ", state.phase),
            ),
            _bars(state),
            "",
            _numbers(state),
            "",
            *_sampler_lines(state.samplers),
            *_alarm_lines(state.alarms),
        ),
        title="larpo",
        title_align="left",
        subtitle=clocks,
        subtitle_align="right",
        border_style="cyan",
        width=80,
    )


def _line(*pairs: tuple[str, str]) -> RenderableType:
    """Dim labels and bold values on one line, cut at the edge of the page."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="ellipsis")
    for label, value in pairs:
        text.append(label, style="dim").append(value, style="bold")
    return text


def _bars(state: RunState) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    prompts = (
        ("prompts sampled", state.prompts_sampled, state.prompts_total, ""),
        ("prompts ranked", state.prompts_ranked, state.prompts_total, ""),
    )
    rows = (
        *(prompts if state.samples else (("lists offered", state.prompts_ranked, state.prompts_total, ""),)),
        ("lists in the stream", state.lists_in_stream, state.stream_capacity, ""),
        ("optimizer steps", state.step, state.steps_planned, "at most "),
    )
    table = Table.grid(padding=(0, 2))
    for label, done, total, bound in rows:
        bar = ProgressBar(total=max(total, 1), completed=min(done, max(total, 1)), width=_BAR_CELLS)
        table.add_row(label, bar, f"{done:,} of {bound}{total:,}")
    return table


def _numbers(state: RunState) -> RenderableType:
    if not state.samples:
        return _line(("loss ", _number(state.loss, ".4f")))
    return _line(
        ("loss ", f"{_number(state.loss, '.4f')}   "),
        ("mean reward ", f"{_number(state.mean_reward, '.3f')}   "),
        ("tokens/s ", _number(state.tokens_per_second, ",.0f")),
    )


def _sampler_lines(samplers: tuple[SamplerState, ...]) -> list[RenderableType]:
    """The first samplers by name, the rest by status, so that a hundred of them stay on the page."""
    fits = len(samplers) <= SAMPLER_ROWS
    shown = samplers if fits else samplers[: SAMPLER_ROWS - 1]
    width = max((len(sampler.name) for sampler in shown), default=0) + 2
    lines = [_line((sampler.name.ljust(width), f"{_versions((sampler,))}  {sampler.status}")) for sampler in shown]
    if not fits:
        rest = samplers[len(shown) :]
        statuses = Counter(sampler.status for sampler in rest)
        counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
        lines.append(_line((f"and {len(rest)} more  ", f"{_versions(rest)}  {counts}")))
    return lines


def _alarm_lines(alarms: tuple[str, ...]) -> list[RenderableType]:
    """The newest alarms, each on one line."""
    from rich.text import Text

    if not alarms:
        return []
    title = Text(f"alarms ({len(alarms)})", style="bold red")
    lines = (" ".join(alarm.split()) for alarm in alarms[-ALARM_ROWS:])
    return [Text(""), title, *(Text(line, style="red", no_wrap=True, overflow="ellipsis") for line in lines)]
