"""Look before a run: `python -m scripts.doctor [RECIPE] [key=value ...]`.

Versions, memory, disk, storage, hub access, ports and clocks, here and on every node of the cluster that RAY_ADDRESS
names, or of a local Ray. One line a check; nothing of a run is started.
Exit codes: 0 a run could succeed, 1 it could not, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from larpo.masking import redact
from scripts.command import exit_code


def parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    result = argparse.ArgumentParser(prog="python -m scripts.doctor", description=description, epilog=rest)
    result.add_argument("recipe", nargs="?", help="bundled recipe or path to a YAML file; without it, the nodes alone")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the recipe's knobs")
    result.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="until a node has to answer")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)

    def work() -> int:
        from actors.doctor import examine

        def say(line: object) -> None:
            print(redact(str(line)), flush=True)

        good = examine(options.recipe, options.overrides, say, limit_s=options.timeout)
        print("a run could succeed" if good else "a run could not succeed: see the lines with FAIL", flush=True)
        return 0 if good else 1

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
