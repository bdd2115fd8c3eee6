"""Run every arm of an experiment: `python -m scripts.experiment RECIPE [key=value ...]`.

RECIPE is a recipe with a `grid`. Each arm runs under each seed; what has a result is not run again, so the same command
goes on after an interruption. At the end the table over seeds is printed, and written beside the results with a plot.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from actors.grid import Grid, make_grid, run_grid
from larpo.errors import DataError
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
    if options.dry_run:
        from scripts.align import main as align

        return max(align([run.recipe, *run.overrides, "--dry-run"]) for run in grid.runs[: len(grid.arms)])
    if not options.table:
        run_grid(grid, lambda text: print(text, flush=True))
    return _tell(grid)


def _tell(grid: Grid) -> int:
    from larpo.evaluation import columns
    from larpo.experiment import TABLE_HEADER, arm_plot, markdown, table

    results = grid.results()
    if not results:
        raise DataError(f"{grid.runs[0].result.parent} holds no results yet; run the experiment first")
    print(*columns([TABLE_HEADER, *table(results, grid.arms, grid.first)]), sep="\n")
    folder = grid.runs[0].result.parent
    (folder / "table.md").write_text(markdown(results, grid.arms, grid.first) + "\n", encoding="utf-8")
    print(f"\ntable  {folder / 'table.md'}")
    if any(result.is_judged for result in results):
        (folder / "plot.svg").write_text(arm_plot(results, grid.arms, grid.recipe), encoding="utf-8")
        print(f"plot   {folder / 'plot.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
