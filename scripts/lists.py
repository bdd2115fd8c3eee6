"""Show a run's candidate lists, or export them: `python -m scripts.lists RUN [--export pairs FILE]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from actors.preparation import CONFIG_FILE
from larpo.chat import with_system
from larpo.config import Config
from larpo.errors import ConfigError, DataError
from larpo.export import Row, preference_rows, ranked_row, write_rows
from larpo.home_sessions import read_run
from larpo.lists import training_list
from larpo.objective_table import get_spec
from larpo.recipe import load_config
from larpo.records import read_lists
from larpo.types import CandidateList
from scripts.command import exit_code

if TYPE_CHECKING:
    from rich.console import Console

FORMS = ("pairs", "all-pairs", "ranked")
LISTS_SHOWN = 5


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m scripts.lists", description="Show or export a run's lists.")
    result.add_argument("run", metavar="RUN", help="a run's folder or URI, such as runs/NAME")
    result.add_argument("--iteration", type=int, metavar="N", help="only of this iteration, counted from 1")
    result.add_argument("--prompt", metavar="ID", help="only of prompts whose id begins so")
    result.add_argument(
        "--trained", action="store_true", help="what was trained on: after selection, signal-free lists left out"
    )
    result.add_argument(
        "--limit", type=_count, metavar="N", help="at most this many lists (5 when shown, all when exported)"
    )
    result.add_argument(
        "--export",
        nargs=2,
        metavar=("FORM", "FILE"),
        help="write them to FILE (.jsonl or .parquet) instead: `pairs` (best against worst, as TRL's preference"
        " trainers read it), `all-pairs` (every ordered pair) or `ranked` (one row a list, responses best first)",
    )
    return result


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.export is None:
        return _show_all(islice(_chosen(options), options.limit or LISTS_SHOWN))
    form, file = options.export
    rows = list(_rows(form, islice(_chosen(options), options.limit)))
    write_rows(rows, Path(file))
    print(f"{len(rows)} rows in {file}")
    return 0


def _show_all(lists: Iterable[CandidateList]) -> int:
    from rich.console import Console

    console, shown = Console(), list(lists)
    if not shown:
        raise DataError("no list of the run is of that iteration and prompt; leave --iteration or --prompt out")
    for item in shown:
        _show(console, item)
    return 0


def _chosen(options: argparse.Namespace) -> Iterator[CandidateList]:
    """The lists asked for, each prompt with the system turn under which the policy answered it."""
    run = read_run(options.run)
    if not (run / CONFIG_FILE).is_file():
        raise DataError(f"{run} is no run folder: it has no {CONFIG_FILE}; give one, such as runs/NAME")
    config = load_config(str(run / CONFIG_FILE))
    for item in read_lists(run / "lists"):
        if options.iteration is not None and item.iteration != options.iteration - 1:
            continue
        if options.prompt is not None and not item.prompt.id.startswith(options.prompt):
            continue
        if not options.trained:
            yield _as_answered(item, config)
            continue
        uses = get_spec(config.objective.name).uses
        selected, _ = training_list(item, config.lists, config.sampling, seed=config.run.seed, uses=uses)
        if selected is not None:
            yield _as_answered(selected, config)


def _as_answered(item: CandidateList, config: Config) -> CandidateList:
    """What is on disk has the prompt as its dataset has it; the recipe's system turn went to the policy alone."""
    section = config.prompts if config.preferences.source is None else config.preferences
    return item.replace(prompt=replace(item.prompt, messages=with_system(item.prompt.messages, section.system)))


def _rows(form: str, lists: Iterator[CandidateList]) -> Iterator[Row]:
    if form not in FORMS:
        raise ConfigError(f"--export {form}: choose one of {', '.join(FORMS)}")
    for item in lists:
        if form == "ranked":
            yield ranked_row(item)
        else:
            yield from preference_rows(item, all_pairs=form == "all-pairs")


def _show(console: Console, item: CandidateList) -> None:
    """A prompt, and its candidates best first."""
    from rich.markup import escape
    from rich.table import Table

    console.print(f"\n[bold]{escape(item.prompt.id)}[/bold] [dim]iteration {item.iteration + 1}[/dim]")
    for message in item.prompt.messages:
        console.print(f"[cyan]{escape(message.role)}[/cyan] {escape(message.content)}")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("reward", "tokens", "from", "T", "response"):
        table.add_column(name, justify="right" if name in ("reward", "tokens", "T") else "left", overflow="fold")
    for candidate in item.candidates:
        reward = "-" if candidate.reward is None else f"{candidate.reward:.3f}"
        origin = candidate.origin + (f" ({candidate.iteration + 1})" if candidate.origin == "remembered" else "")
        cut = " [dim](cut off)[/dim]" if candidate.finish_reason == "length" else ""
        text = escape(" ".join(candidate.text.split()))
        table.add_row(reward, str(len(candidate.token_ids)), origin, f"{candidate.temperature:g}", text + cut)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
