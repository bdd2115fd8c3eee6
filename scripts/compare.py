"""Set runs side by side: `python -m scripts.compare RUN RUN ... [--page FILE]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from larpo.comparison import RESULT_HEADER, comparison_page, differing_knobs, read_run, results
from larpo.evaluation import columns
from larpo.home_sessions import read_run as pulled
from scripts.command import exit_code


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m scripts.compare", description="Set runs side by side.")
    result.add_argument("runs", nargs="+", metavar="RUN", help="run folders or URIs, such as runs/NAME")
    result.add_argument("--page", type=Path, metavar="FILE", help="write an HTML page with the curves, too")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    runs = [read_run(pulled(run)) for run in options.runs]
    knobs = differing_knobs(runs)
    print(*columns([RESULT_HEADER, *results(runs)]), sep="\n")
    print("\nsettings that differ" if knobs else "\nthe runs have the same settings")
    if knobs:
        print(*columns([("", *(run.name for run in runs)), *knobs]), sep="\n")
    if options.page:
        options.page.write_text(comparison_page(runs), encoding="utf-8")
        print(f"\npage  {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
