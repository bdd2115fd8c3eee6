"""Run every arm of an experiment: `python -m scripts.experiment RECIPE [key=value ...]`.

RECIPE is a recipe with a `grid`. Each arm runs under each seed; what has a result is not run again, so the same command
goes on after an interruption. Where the recipe sets `evaluation.sweep.arms`, the arms' models are then evaluated side
by side, as by `scripts.evaluate`. At the end the tables over seeds are printed, and written beside the results with
plots.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from actors.grid import Grid, make_grid, run_grid
from actors.grid_sweeps import GridSweep, grid_sweeps, run_sweeps, sweep_results
from larpo.errors import DataError
from larpo.experiment import markdown_table
from scripts.command import exit_code


def parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    result = argparse.ArgumentParser(prog="python -m scripts.experiment", description=description, epilog=rest)
    result.add_argument("recipe", help="bundled recipe with a grid, or path to a YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the knobs of every arm")
    result.add_argument("--seeds", type=_seeds, default="0,1,2", metavar="N,N", help="run.seed of each repeat (0,1,2)")
    result.add_argument("--results", type=Path, metavar="DIR", help="where results go; the grid's own folder in runs/")
    result.add_argument("--dry-run", action="store_true", help="print the plan of every arm, start nothing")
    result.add_argument(
        "--table", action="store_true", help="print the table of the results that are there, run nothing"
    )
    return result


def _seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the arm that runs, as Ctrl-C does
    return exit_code(lambda: _run(options), "interrupted; the same command goes on")


def _run(options: argparse.Namespace) -> int:
    grid = make_grid(options.recipe, options.overrides, options.seeds, options.results)
    sweeps = grid_sweeps(grid)
    if options.dry_run:
        return _plan(grid, sweeps)
    if not options.table:
        run_grid(grid, _say)
        run_sweeps(sweeps, _say)
    folder = grid.runs[0].result.parent
    told = [*_tell_arms(grid, folder), *_tell_sweeps(sweeps, folder)]
    if not told:
        raise DataError(f"{folder} holds no results yet; run the experiment first")
    (folder / "table.md").write_text("\n\n".join(told) + "\n", encoding="utf-8")
    print(f"\ntables {folder / 'table.md'}")
    return 0


def _plan(grid: Grid, sweeps: Sequence[GridSweep]) -> int:
    """Every arm's plan, and what is asked of their models, under the first seed."""
    from scripts.align import main as align

    codes = [align([run.recipe, *run.overrides, "--dry-run"]) for run in grid.runs[: len(grid.arms)]]
    for part in (part for part in sweeps if part.seed == grid.runs[0].seed):
        names, asked = ", ".join(name for name, _ in part.models), part.sweep
        temperatures = ", ".join(f"{t:g}" for t in asked.temperatures)
        trained = "" if part.runs[0].trains else "nothing is trained; "
        print(f"sweep  {trained}{names}: a prompt greedily, and {asked.samples} times at each of T = {temperatures}")
    return max(codes, default=0)


def _tell_arms(grid: Grid, folder: Path) -> Iterator[str]:
    """Prints the table of the trained arms, draws them, gives it as Markdown; nothing where there is no result."""
    from larpo.evaluation import columns
    from larpo.experiment import TABLE_HEADER, arm_plot, table

    results = grid.results()
    if not results:
        return
    rows = [TABLE_HEADER, *table(results, grid.arms, grid.first)]
    print(*columns(rows), sep="\n")
    if any(result.is_judged for result in results):
        _draw(folder / "plot.svg", arm_plot(results, grid.arms, grid.recipe))
    yield markdown_table(rows)


def _tell_sweeps(sweeps: Sequence[GridSweep], folder: Path) -> Iterator[str]:
    """The same of each group of models that were asked alike, its seeds joined: all its tables and plots."""
    from larpo.sweep_over_seeds import over_seeds
    from larpo.sweep_page import sweep_plots
    from larpo.sweep_tables import format_results, headline, sweep_tables

    found = sweep_results(sweeps)
    for name in dict.fromkeys(result.name for result in found):
        seeds = [result for result in found if result.name == name]
        results, asked = over_seeds(seeds), next(part.sweep for part in sweeps if part.name == name)
        over = f"seeds {', '.join(str(seed.seed) for seed in seeds)}" if len(seeds) > 1 else "prompts"
        print(f"\n{name} and those that were asked the same:\n\n{format_results(results, asked, over)}\n")
        for kind, (_, svg, _) in sweep_plots(results, asked).items():
            _draw(folder / f"{name}-{kind}.svg", svg)
        tables = [markdown_table(rows) for rows in sweep_tables(results, asked)]
        notes = [f"Note: {note}." for note in results["notes"]]
        yield "\n\n".join([f"{name}: {headline(results, asked, over)}", *tables, *notes])


def _draw(file: Path, svg: str) -> None:
    file.write_text(svg, encoding="utf-8")
    print(f"plot   {file}")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
