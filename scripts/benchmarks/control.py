"""`control`: how many lists a second the conductor's side and the stream can move, whoever samples and trains.

Annotation, pool and stream are the real ones; 8 to 512 samplers answer at once, and 1 to 64 ranks only wait for their
work. What the lists cost that are written to disk is told beside what they cost in memory alone.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from scripts.benchmarks.measuring import Comparison, Result, Series, in_turns
from scripts.benchmarks.simulated import CANDIDATES, LISTS_PER_STEP, PROMPTS_A_SAMPLER, Size, iteration_seconds

LISTS_A_SECOND, FLAT = 5000.0, ">= 0.9"  # targets: of every size; of the most samplers against the fewest
WRITTEN, UNWRITTEN = "larpo", "not written"
PROFILED = 8  # functions in the notes


def run_control(samplers: Sequence[int], ranks: Sequence[int], lists: int, repetitions: int, out: Path) -> Result:
    """Every number of samplers with every number of ranks, and a picture in `out`."""
    sizes = [Size(some, others, lists) for others in ranks for some in samplers]
    found = measured(sizes, repetitions)
    target, speeds = Series("target", (LISTS_A_SECOND,)), {size: _rate(size, found[size][WRITTEN]) for size in sizes}
    rows = [Comparison(_named(size), "lists/s", speed, target, ">= 1") for size, speed in speeds.items()]
    rows += [_flatness(found, samplers, others, lists) for others in ranks if len(samplers) > 1]
    notes = [_cost(found)]
    slowest = min(sizes, key=lambda size: speeds[size].median)
    if speeds[slowest].median < LISTS_A_SECOND:
        notes += [f"Where the time goes with {_named(slowest)}, by each function's own time:", *profile(slowest)]
    _draw(found, samplers, ranks, lists, out / "control.png")
    settings = {"samplers": list(samplers), "ranks": list(ranks), "lists": lists, "candidates": CANDIDATES}
    settings |= {"lists_per_step": LISTS_PER_STEP, "prompts_a_sampler": PROMPTS_A_SAMPLER}
    return Result("control", settings | {"picture": "control.png"}, tuple(rows), tuple(notes))


def measured(sizes: Sequence[Size], repetitions: int) -> dict[Size, dict[str, Series]]:
    """Seconds of an iteration of each size, with its lists written and without; all by turns."""
    sides = {(size, label): replace(size, on_disk=label == WRITTEN) for size in sizes for label in (WRITTEN, UNWRITTEN)}
    clocks = {f"{_named(size)} {label}": partial(once, side) for (size, label), side in sides.items()}
    found = in_turns(clocks, repetitions)
    values = {key: series.values for key, series in zip(sides, found.values(), strict=True)}
    return {size: {label: Series(label, values[size, label]) for label in (WRITTEN, UNWRITTEN)} for size in sizes}


def once(size: Size, profiler: cProfile.Profile | None = None) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(iteration_seconds(Path(folder), size, profiler))


def _flatness(
    found: Mapping[Size, Mapping[str, Series]], samplers: Sequence[int], ranks: int, lists: int
) -> Comparison:
    few, most = (Size(count, ranks, lists) for count in (min(samplers), max(samplers)))
    rates = [_rate(size, found[size][WRITTEN]) for size in (most, few)]
    ours, other = Series("larpo", rates[0].values), Series(f"{few.samplers} samplers", rates[1].values)
    return Comparison(f"{most.samplers} samplers, {_count(ranks, 'rank')}: flat", "lists/s", ours, other, FLAT)


def _cost(found: Mapping[Size, Mapping[str, Series]]) -> str:
    costs = [1e6 * sides[WRITTEN].median / size.lists for size, sides in found.items()]
    shares = [1 - sides[UNWRITTEN].median / sides[WRITTEN].median for sides in found.values()]
    return (
        f"a list costs {min(costs):.0f} to {max(costs):.0f} us, of which writing it to disk is {min(shares):.0%} to"
        f" {max(shares):.0%}"
    )


def _rate(size: Size, seconds: Series) -> Series:
    return Series(seconds.label, tuple(size.lists / value for value in seconds.values))


def _named(size: Size) -> str:
    return f"{size.samplers} samplers, {_count(size.ranks, 'rank')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def profile(size: Size) -> list[str]:
    """The functions that take most of the event loop's time, with their share; threads that write are not in it."""
    once(size)  # imports and first calls are no part of a list's cost
    profiler = cProfile.Profile()
    once(size, profiler)
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in stats.values())
    most = sorted(stats.items(), key=lambda item: -item[1][2])[:PROFILED]
    return [
        f"  {own / total:6.1%}  {calls:>8} calls  {Path(file).name}:{line} {name}"
        if line
        else f"  {own / total:6.1%}  {calls:>8} calls  {name}"
        for (file, line, name), (_, calls, own, _, _) in most
    ]


def _draw(
    found: Mapping[Size, Mapping[str, Series]],
    samplers: Sequence[int],
    ranks: Sequence[int],
    lists: int,
    target: Path,
) -> None:
    from larpo.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, Line, Panel, line_picture

    colors = (BLUE, ORANGE, GREEN, PURPLE, GREY)
    lines = [
        Line(
            _count(others, "rank"),
            list(samplers),
            [_rate(size, found[size][WRITTEN]).median for size in (Size(some, others, lists) for some in samplers)],
            color=colors[number % len(colors)],
        )
        for number, others in enumerate(ranks)
    ]
    panel = Panel("lists/s", lines, bound=("target", LISTS_A_SECOND), from_zero=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(line_picture([panel], "samplers", ticks=list(samplers), log_x=True))
