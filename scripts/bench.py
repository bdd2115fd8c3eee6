"""Measure larpo beside what a user would otherwise run: `python -m scripts.bench NAME`.

Each benchmark runs both sides on the same work in one process tree, several times, after a warm-up where processes live
on; it prints medians and spread, and writes `benchmarks/NAME.json`. Nothing is asserted: a bad ratio is reported
as a good one is. `table` prints the results that are there as the README has them. Exit codes: 0 done, 1 a side
failed, 2 the arguments cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.benchmarks.lists import PROMPT_TOKENS, RESPONSE_TOKENS
from scripts.benchmarks.measuring import TABLE_HEADER, Result, table
from scripts.command import exit_code


def _trainer(options: argparse.Namespace) -> Result:
    from scripts.benchmarks.trainer import run_trainer

    sizes, shape = options.sizes or TRAINER_SIZES, options.shape or LIST_SHAPE
    return run_trainer(options.policy, options.dtype, sizes, options.repetitions, shape)


def _memory(options: argparse.Namespace) -> Result:
    from scripts.benchmarks.memory import run_memory

    sizes, shape = options.sizes or TRAINER_SIZES, options.shape or LIST_SHAPE
    return run_memory(options.policy, options.dtype, sizes, options.repetitions, shape, options.logit_tokens)


def _rows(options: argparse.Namespace) -> Result:
    from scripts.benchmarks.rows import run_rows

    return run_rows(options.policy, options.dtype, options.repetitions)


def _rounding(options: argparse.Namespace) -> Result:
    from scripts.benchmarks.rounding import run_rounding

    return run_rounding(options.policy, options.repetitions)


def _gpu(options: argparse.Namespace) -> Result:
    from scripts.benchmarks.gpu import Work, run_gpu

    given = {"device": options.device, "layers": options.layers, "width_divisor": options.width_divisor}
    sizes = {name: value for name in ("sizes", "shape") if (value := getattr(options, name))}
    return run_gpu(Work(**given, **sizes, repetitions=options.repetitions))


def _job(options: argparse.Namespace) -> Result:
    from scripts.benchmarks.job import run_job

    return run_job(options.recipe, options.overrides, options.repetitions)


def _overlap(options: argparse.Namespace) -> Result:
    from scripts.benchmarks.overlap import run_overlap

    return run_overlap(options.recipe, options.overrides, options.repetitions)


def _control(options: argparse.Namespace) -> Result:
    from scripts.benchmarks.control import run_control

    return run_control(options.samplers, options.ranks, options.lists, options.repetitions, options.out)


def _sampler(options: argparse.Namespace) -> Result:
    from scripts.benchmarks.sampler import run_sampler

    return run_sampler(options.policy, options.prompts, options.repetitions, options.shape or LIST_SHAPE)


def _weights(options: argparse.Namespace) -> Result:
    from scripts.benchmarks.weights import run_weights

    return run_weights(options.policy, options.dtype, options.gib, options.updated, options.repetitions)


def _startup(options: argparse.Namespace) -> Result:
    from scripts.benchmarks.startup import run_startup

    return run_startup(options.recipe, options.policy, options.starts)


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "trainer": _trainer,
    "rows": _rows,
    "rounding": _rounding,
    "memory": _memory,
    "gpu": _gpu,
    "sampler": _sampler,
    "weights": _weights,
    "control": _control,
    "overlap": _overlap,
    "job": _job,
    "startup": _startup,
}
NOT_IN_ALL = ("gpu",)  # what a machine without a GPU does not have
TRAINER_SIZES = (2, 4, 8)  # candidates of a list
LIST_SHAPE = (PROMPT_TOKENS, RESPONSE_TOKENS)


def parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    result = argparse.ArgumentParser(prog="python -m scripts.bench", description=description, epilog=rest)
    result.add_argument(
        "names",
        nargs="+",
        choices=[*BENCHMARKS, "all", "table"],
        metavar="NAME",
        help=f"{', '.join(BENCHMARKS)}, or all ({', '.join(NOT_IN_ALL)} must be named); table: of the results in --out",
    )
    result.add_argument("--policy", default="smollm2-135m-instruct", help="bundled name, hub id or folder")
    result.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of trainer, memory, rows and weights (auto: what the machine has instructions for)",
    )
    result.add_argument("--sizes", type=_numbers, metavar="K,K", help="candidates of a list (2,4,8; gpu: 4,8)")
    result.add_argument(
        "--shape", type=_pair, metavar="P,R", help="tokens of prompt and response (160,128; gpu: 512,512)"
    )
    result.add_argument(
        "--repetitions", type=_count, default=5, help="that count, beside a warm-up where processes live on (5)"
    )
    result.add_argument("--recipe", default="quickstart", help="that job, overlap and startup run (quickstart)")
    result.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="a knob of that recipe"
    )
    result.add_argument("--logit-tokens", type=_count, default=4096, help="response tokens of memory's logits (4096)")
    result.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="of gpu (cuda)")
    result.add_argument("--layers", type=_count, default=8, help="of gpu's models (8)")
    result.add_argument("--width-divisor", type=_count, default=1, help="gpu's models are so much narrower (1)")
    result.add_argument("--prompts", type=_count, default=24, help="of a repetition of sampler (24)")
    result.add_argument("--gib", type=float, default=2.0, help="of the larger model of weights; 0: none (2)")
    result.add_argument("--updated", type=_count, default=1, metavar="S", help="samplers of weights (1)")
    result.add_argument(
        "--samplers", type=_numbers, default="8,64,512", metavar="S,S", help="control simulates (8,64,512)"
    )
    result.add_argument("--ranks", type=_numbers, default="1,64", metavar="R,R", help="control simulates (1,64)")
    result.add_argument("--lists", type=_count, default=4096, help="of an iteration of control (4096)")
    result.add_argument("--starts", type=_count, default=5, help="of startup, beside one before them (5)")
    result.add_argument("--out", type=Path, default=Path("benchmarks"), metavar="DIR", help="where results go")
    return result


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _pair(text: str) -> tuple[int, ...]:
    numbers = _numbers(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} are {len(numbers)} numbers; give two, such as 160,128")
    return numbers


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give 1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return exit_code(lambda: _run(options), "interrupted; what was measured before is in the results")


def _run(options: argparse.Namespace) -> int:
    from larpo.evaluation import columns
    from scripts.benchmarks.published import markdown

    every = [name for name in BENCHMARKS if name not in NOT_IN_ALL]
    for name in every if "all" in options.names else [name for name in options.names if name != "table"]:
        result = BENCHMARKS[name](options)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{name}.json").write_text(result.to_json() + "\n", encoding="utf-8")
        print(*columns([TABLE_HEADER, *table(result)]), *result.notes, sep="\n", flush=True)
    if "table" in options.names:
        print(markdown(options.out, BENCHMARKS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
