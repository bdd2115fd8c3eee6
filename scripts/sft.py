"""Supervised fine-tuning on given answers: `python -m scripts.sft RECIPE [key=value ...]`.

RECIPE is the name of a bundled recipe or a path to a YAML file whose `preferences` name a dataset of answers or chats;
`section.key=value` overrides a knob. No sampler and no reward model is started.
Exit codes: 0 done, 1 the run failed (go on with --resume), 2 the recipe or its inputs cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from larpo.config import Config
from larpo.errors import ConfigError
from larpo.objective_table import get_spec
from scripts.command import Command, make_parser, run_command
from scripts.offline import describe, prepare, train


def _check(config: Config) -> None:
    name = config.objective.name
    if get_spec(name).uses != "one":
        raise ConfigError(
            f"objective.name = {name!r}: compares answers; set objective.name=sft, or start scripts.offline"
        )


COMMAND = Command("sft", __doc__ or "", "sft-arithmetic", prepare, describe, train, _check)


def parser() -> argparse.ArgumentParser:
    return make_parser(COMMAND)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
