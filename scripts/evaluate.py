"""Evaluate models side by side on held-out prompts: `python -m scripts.evaluate RECIPE --model NAME=MODEL ...`.

RECIPE names the held-out prompts, the reward and the resources; `evaluation.sweep` in it says what is sampled. With
--run a run's own configuration does, and its base policy and aligned model come first. The same command again goes on
where it was interrupted. Exit codes: 0 done, 1 failed, 2 it cannot be done as asked, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from larpo.errors import ConfigError
from scripts.command import exit_code, tell_code


def parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    result = argparse.ArgumentParser(prog="python -m scripts.evaluate", description=description, epilog=rest)
    result.add_argument("recipe", nargs="?", help="bundled recipe or path to a YAML file; none with --run")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of its knobs")
    result.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="folder, hub id or bundled policy; repeatable",
    )
    result.add_argument("--run", metavar="RUN", help="a run, by folder or URI: its base policy and aligned model")
    result.add_argument(
        "--outputs", action="store_true", help="write the greedy responses as AlpacaEval 2 and MixEval read them, too"
    )
    result.add_argument("--out", metavar="DIR", help="where results go (evaluations/ and the recipe's name)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return exit_code(lambda: _evaluate(options), "interrupted; the same command goes on from here")


def _evaluate(options: argparse.Namespace) -> int:
    from actors.evaluation_inputs import begin, chosen, prepare_evaluation
    from actors.evaluation_results import finish
    from actors.evaluator import run_evaluation
    from actors.preparation import locked
    from larpo.home_sessions import read_run
    from larpo.storage import is_uri
    from larpo.sweep_tables import format_results

    recipe, overrides = options.recipe, options.overrides
    if options.run is not None and recipe is not None and "=" in recipe:
        recipe, overrides = None, [recipe, *overrides]
    if options.out is not None and is_uri(options.out):
        raise ConfigError(f"--out {options.out}: results go to a folder; give one")
    run = None if options.run is None else read_run(options.run, "model")
    config, name, models = chosen(recipe, overrides, run, options.model)
    tell_code(config)
    evaluation = prepare_evaluation(config, models, Path(options.out or Path("evaluations") / name))
    for note in evaluation.notes:
        _say(note)
    begin(evaluation)
    with locked(evaluation.folder):
        run_evaluation(evaluation, _say)
        results = finish(evaluation, outputs=options.outputs)
    print(f"\n{format_results(results, config.evaluation.sweep)}\n\nresults  {evaluation.folder / 'results.json'}")
    print(f"samples  {evaluation.folder / 'samples.parquet'}\nreport   {evaluation.folder / 'report.html'}")
    print(*results["judges"], sep="\n")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
