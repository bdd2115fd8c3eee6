"""What the commands that train have in common: arguments, exit codes, --dry-run and --resume."""

from __future__ import annotations

import argparse
import asyncio
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from larpo.errors import ConfigError, DataError, HubUnreachable, LarpoError
from larpo.masking import redact

if TYPE_CHECKING:
    from actors.results import Results
    from larpo.config import Config
    from larpo.home import Home
    from larpo.knobs import Section


@dataclass(frozen=True)
class Command:
    """One command. Its functions import what is heavy when they are called."""

    name: str  # of the module in scripts/
    text: str  # the module's docstring: its first line describes the command
    example: str  # a bundled recipe
    prepare: Callable[..., Any]  # (config, folder, resumed=) -> a prepared run
    describe: Callable[[Any], str]  # the plan that --dry-run prints
    conductor: Callable[[Any], Coroutine[Any, Any, Any]]  # does the run
    check: Callable[[Config], None] = lambda config: None  # ConfigError for a recipe of another command
    add_options: Callable[[argparse.ArgumentParser], Any] = lambda parser: None  # that this command has alone
    apply_options: Callable[[Any, argparse.Namespace], Any] = lambda run, options: run  # them to the prepared run


def make_parser(command: Command) -> argparse.ArgumentParser:
    description, _, rest = command.text.partition("\n\n")
    result = argparse.ArgumentParser(prog=f"python -m scripts.{command.name}", description=description, epilog=rest)
    result.add_argument("recipe", nargs="?", help="bundled recipe or path to a YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the recipe's knobs")
    result.add_argument("--dry-run", action="store_true", help="print the configuration and the plan, start nothing")
    result.add_argument(
        "--resume", metavar="RUN", help="go on with an interrupted run (folder or URI); takes no recipe"
    )
    command.add_options(result)
    return result


def run_command(command: Command, arguments: Sequence[str] | None) -> int:
    """Parse the arguments and do what they ask; returns the exit code."""
    options = make_parser(command).parse_intermixed_args(arguments)
    return exit_code(lambda: _run(command, options))


def exit_code(work: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Exit codes: 0 done, 1 it failed, 2 the recipe or its inputs cannot be used, 130 interrupted."""
    try:
        return work()
    except (ConfigError, DataError) as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2
    except LarpoError as error:
        print(f"error: {type(error).__name__}: {redact(str(error))}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(interrupted, file=sys.stderr)
        return 130
    except Exception:  # a fault of ours, or what Ray raises: where it was, without secrets
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        return 1


def _run(command: Command, options: argparse.Namespace) -> int:
    from actors.preparation import CONFIG_FILE, new_run, resumed_run

    if options.resume is not None:
        overrides = [text for text in (options.recipe, *options.overrides) if text]
        config, folder = resumed_run(options.resume, overrides)
    elif options.recipe is None:
        raise ConfigError(f"no recipe given; try `{command.example}`, or --resume RUN")
    else:
        config, folder = new_run(options.recipe, options.overrides)
    command.check(config)
    tell_code(config)
    if options.resume is not None and not options.dry_run:
        from actors.results import finished
        from larpo.home import home_of
        from larpo.home_sessions import push_rest

        home = home_of(config, folder)
        over = finished(folder, home)
        if over is not None:
            print("this run is finished: nothing is left to do")
            push_rest(home)
            return _tell(over, home)
    try:
        run = command.prepare(config, folder, resumed=options.resume is not None)
    except HubUnreachable as error:
        if not options.dry_run:
            raise
        return _dry_run(config, _outlined(config, folder.name, error))
    run = command.apply_options(run, options)
    if options.dry_run:
        return _dry_run(run.config, command.describe(run))
    from actors.session import run_to_end

    try:
        results = run_to_end(run, command.conductor)
    except BaseException:
        if (run.folder / CONFIG_FILE).is_file():
            print(f"go on with: python -m scripts.{command.name} --resume {run.home.location}", file=sys.stderr)
        raise
    return _tell(results, run.home)


def tell_code(config: Section) -> None:
    """Print whose code will be run, before it is."""
    from larpo.safety_checks import code_notes

    for note in code_notes(config):
        print(f"note: {note}", flush=True)


def _tell(results: Results, home: Home) -> int:
    """Print what a run came to, and where it lies."""
    print(f"\n{results.table}\n\nmodel    {home.place('model')}\nreport   {home.place('report.html')}")
    print(f"lists    {home.place('lists')}\nmetrics  {home.place('metrics.jsonl')}")
    return 0


def _dry_run(config: Config, plan: str) -> int:
    from actors.placement import check_plan

    print(plan)
    check_plan(config)
    return 0


def _outlined(config: Config, name: str, error: HubUnreachable) -> str:
    """The plan as far as it is known without the hub."""
    from actors.plan import outline

    return outline(config, name, [f"what the hub has: {error}", "counts and estimates, which need it"])
