"""Train on given preferences, with any objective: `python -m scripts.offline RECIPE [key=value ...]`.

RECIPE is the name of a bundled recipe or a path to a YAML file whose `preferences` name a dataset of ranked answers;
`section.key=value` overrides a knob. No sampler and no reward model is started.
Exit codes: 0 done, 1 the run failed (go on with --resume), 2 the recipe or its inputs cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from larpo.config import Config
from larpo.errors import ConfigError
from larpo.objective_table import get_spec
from scripts.command import Command, make_parser, run_command


def prepare(config: Config, folder: Path, *, resumed: bool) -> Any:
    from actors.offline_preparation import prepare_offline

    return prepare_offline(config, folder, resumed=resumed)


def describe(run: Any) -> str:
    from actors.plan import describe_offline

    return describe_offline(run)


async def train(run: Any) -> Any:
    from actors.offline import train_offline

    return await train_offline(run)


def _check(config: Config) -> None:
    name = config.objective.name
    if get_spec(name).uses == "one":
        raise ConfigError(
            f"objective.name = {name!r}: reads one answer and compares none; start scripts.sft, or set another name"
        )


COMMAND = Command("offline", __doc__ or "", "offline-arithmetic", prepare, describe, train, _check)


def parser() -> argparse.ArgumentParser:
    return make_parser(COMMAND)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
