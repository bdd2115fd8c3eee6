"""Align a policy: `python -m scripts.align RECIPE [key=value ...]`.

RECIPE is the name of a bundled recipe or a path to a YAML file; `section.key=value` overrides a knob.
Exit codes: 0 done, 1 the run failed (go on with --resume), 2 the recipe or its inputs cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from larpo.errors import ConfigError, DataError, HubUnreachable, LarpoError

if TYPE_CHECKING:
    from actors.preparation import PreparedRun
    from larpo.config import Config


def parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    result = argparse.ArgumentParser(prog="python -m scripts.align", description=description, epilog=rest)
    result.add_argument("recipe", nargs="?", help="bundled recipe or path to a YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the recipe's knobs")
    result.add_argument("--dry-run", action="store_true", help="print the configuration and the plan, start nothing")
    result.add_argument("--resume", metavar="RUN_DIR", type=Path, help="go on with an interrupted run; takes no recipe")
    result.add_argument(
        "--share",
        metavar="RUN_DIR",
        type=Path,
        help="take the first lists and the base evaluation from a run with the same policy, prompts and reward",
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    try:
        return _run(options)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except LarpoError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    from actors.preparation import CONFIG_FILE, new_run, prepare, resumed_run

    if options.resume is not None:
        overrides = [text for text in (options.recipe, *options.overrides) if text]
        config, folder = resumed_run(options.resume, overrides)
    elif options.recipe is None:
        raise ConfigError("no recipe given; try `quickstart`, or --resume RUN_DIR")
    else:
        config, folder = new_run(options.recipe, options.overrides)
    try:
        run = prepare(config, folder, resumed=options.resume is not None)
    except HubUnreachable as error:
        if not options.dry_run:
            raise
        return _outlined(config, folder, error)
    if options.share is not None:
        run = _sharing(run, options.share)
    if options.dry_run:
        from actors.placement import check_plan
        from actors.plan import describe

        print(describe(run))
        check_plan(config)
        return 0
    from actors.conductor import run_to_end

    try:
        results = run_to_end(run)
    except BaseException:
        if (run.folder / CONFIG_FILE).is_file():
            print(f"go on with: python -m scripts.align --resume {run.folder}", file=sys.stderr)
        raise
    print(f"\n{results.table}\n\nmodel    {results.folder / 'model'}\nreport   {results.folder / 'report.html'}")
    print(f"lists    {results.folder / 'lists'}\nmetrics  {results.folder / 'metrics.jsonl'}")
    return 0


def _sharing(run: PreparedRun, source: Path) -> PreparedRun:
    from actors.sharing import what_fits

    if run.resumed:
        raise ConfigError("--share: a resumed run has its own lists; leave it out, or start a new run")
    what_fits(run, source)
    return replace(run, shares=source)


def _outlined(config: Config, folder: Path, error: HubUnreachable) -> int:
    """The plan as far as it is known without the hub."""
    from actors.placement import check_plan
    from actors.plan import outline

    print(
        outline(config, folder.name, [f"what the hub has: {error}", "counts of prompts and estimates, which need it"])
    )
    check_plan(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
