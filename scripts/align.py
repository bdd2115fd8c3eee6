"""Align a policy: `python -m scripts.align RECIPE [key=value ...]`.

RECIPE is the name of a bundled recipe or a path to a YAML file; `section.key=value` overrides a knob.
Exit codes: 0 done, 1 the run failed (go on with --resume), 2 the recipe or its inputs cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from larpo.config import Config
from larpo.errors import ConfigError
from scripts.command import Command, make_parser, run_command


def _prepare(config: Config, folder: Path, *, resumed: bool) -> Any:
    from actors.preparation import prepare

    return prepare(config, folder, resumed=resumed)


def _describe(run: Any) -> str:
    from actors.plan import describe

    return describe(run)


async def _align(run: Any) -> Any:
    from actors.conductor import align

    return await align(run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--share",
        metavar="RUN",
        help="take the first lists and the base evaluation from a run with the same policy, prompts and reward",
    )


def _apply_options(run: Any, options: argparse.Namespace) -> Any:
    from actors.sharing import what_fits
    from larpo.home_sessions import read_run

    if options.share is None:
        return run
    if run.resumed:
        raise ConfigError("--share: a resumed run has its own lists; leave it out, or start a new run")
    source = read_run(options.share)
    what_fits(run, source)
    return replace(run, shares=source)


COMMAND = Command(
    "align",
    __doc__ or "",
    "quickstart",
    _prepare,
    _describe,
    _align,
    add_options=_add_options,
    apply_options=_apply_options,
)


def parser() -> argparse.ArgumentParser:
    return make_parser(COMMAND)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
