"""Train a reward model: `python -m scripts.train_reward RECIPE [key=value ...]`.

RECIPE is the name of a bundled recipe or a path to a YAML file; `section.key=value` overrides a knob.
Exit codes: 0 done, 1 the run failed (go on with --resume), 2 the recipe or its inputs cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from larpo.errors import ConfigError
from scripts.command import exit_code, tell_code


def parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    result = argparse.ArgumentParser(prog="python -m scripts.train_reward", description=description, epilog=rest)
    result.add_argument("recipe", nargs="?", help="bundled recipe or path to a YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the recipe's knobs")
    result.add_argument("--dry-run", action="store_true", help="print the configuration and the plan, start nothing")
    result.add_argument(
        "--resume", metavar="RUN", help="go on with an interrupted run (folder or URI); takes no recipe"
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from actors.reward_preparation import describe_reward_run, new_reward_run, prepare_reward_run, resumed_reward_run

    if options.resume is not None:
        overrides = [text for text in (options.recipe, *options.overrides) if text]
        config, folder = resumed_reward_run(options.resume, overrides)
    elif options.recipe is None:
        raise ConfigError("no recipe given; try `minilm-reward`, or --resume RUN")
    else:
        config, folder = new_reward_run(options.recipe, options.overrides)
    tell_code(config)
    run = prepare_reward_run(config, folder, resumed=options.resume is not None)
    if options.dry_run:
        from actors.placement import check_machine

        print(describe_reward_run(run))
        check_machine(config)
        return 0
    from actors.preparation import CONFIG_FILE
    from actors.reward_stage import train_reward_model

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the run as Ctrl-C does
    try:
        results = train_reward_model(run)
    except BaseException:
        if (run.folder / CONFIG_FILE).is_file():
            print(f"go on with: python -m scripts.train_reward --resume {run.home.location}", file=sys.stderr)
        raise
    home = run.home
    print(f"\n{results.table}\n\nmodel    {home.place('model')}\nreport   {home.place('report.html')}")
    print(f"metrics  {home.place('metrics.jsonl')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
