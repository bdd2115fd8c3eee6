"""Align a policy: `python -m scripts.align RECIPE [key=value ...]`.

RECIPE is the name of a bundled recipe or a path to a YAML file; `section.key=value` overrides a knob.
Exit codes: 0 done, 1 the run failed (go on with --resume), 2 the recipe or its inputs cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from larpo.config import Config
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


COMMAND = Command("align", __doc__ or "", "quickstart", _prepare, _describe, _align)


def parser() -> argparse.ArgumentParser:
    return make_parser(COMMAND)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
