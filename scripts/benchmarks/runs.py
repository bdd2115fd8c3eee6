"""Whole runs of a recipe as sides of a benchmark: started as a user starts them, read from what they leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from larpo.busy import Span, merged, working
from larpo.records import read_lists
from larpo.run_log import RunLog, read_run_log
from scripts.benchmarks.measuring import SIDE_LIMIT_S, BenchmarkError

ROOT = Path(__file__).parents[2]
QUIET = (  # no held-out evaluation, nothing sent away
    "prompts.heldout_count=0",
    "evaluation.each_iteration=false",
    "evaluation.every_steps=",
    "evaluation.best_metric=",
    "evaluation.patience=",
    "telemetry.wandb=false",
    "telemetry.console=plain",
)
MAKERS = ("sampler", "reward")  # actors that make lists
STOP_LIMIT_S = 120.0  # for a run that is asked to end


@dataclass(frozen=True)
class RunOutcome:
    """A run that has ended well: wall seconds of its command, its log, tokens sampled in it."""

    seconds: float
    log: RunLog
    tokens: int


def align(recipe: str, overrides: Sequence[str], folder: Path) -> RunOutcome:
    """`python -m scripts.align` in a process of its own, its run in `folder`, without held-out evaluation.

    Ray is started on this machine, whatever RAY_ADDRESS names: the other side runs here.

    Raises BenchmarkError with the end of what it printed when it fails, or runs for more than two hours.
    """
    knobs = [*overrides, *QUIET, f"run.output_dir={folder}", "run.name=run"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment = own | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "scripts.align", recipe, *knobs]
    started = time.perf_counter()
    printed, code = _to_end(command, environment)
    seconds = time.perf_counter() - started
    if code != 0:
        raise BenchmarkError(f"scripts.align {recipe} ended with exit code {code}: {printed[-3000:]}")
    return RunOutcome(seconds, read_run_log(folder / "run" / "metrics.jsonl"), sampled_tokens(folder / "run" / "lists"))


def _to_end(command: Sequence[str], environment: Mapping[str, str]) -> tuple[str, int]:
    """What the command printed, and its exit code. One that must end early is asked to: it has actors to stop."""
    into, also = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(command, env=environment, text=True, stdout=into, stderr=also) as process:
        try:
            printed, _ = process.communicate(timeout=SIDE_LIMIT_S)
        except BaseException as error:
            process.terminate()
            try:
                process.communicate(timeout=STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise BenchmarkError(f"{command[2:4]} took longer than {SIDE_LIMIT_S:g} s; ask for less") from error
            raise
    return printed, process.returncode


def sampled_tokens(lists: Path) -> int:
    """Response tokens that were sampled for these lists; what the memory brought again does not count."""
    candidates = (candidate for item in read_lists(lists) for candidate in item.candidates)
    return sum(len(candidate.token_ids) for candidate in candidates if candidate.origin == "sampled")


def worked(spans: Iterable[Span], *groups: str) -> float:
    """Seconds in which some actor of these groups was at work, waiting and starting left out.

    >>> spans = [Span("sampler-0", "sample", 0, 4), Span("reward-0", "rank", 3, 5), Span("trainer-0", "wait", 0, 9)]
    >>> worked(spans, "sampler", "reward"), worked(spans, "trainer")
    (5, 0)
    """
    own = working(span for span in spans if span.actor.startswith(groups))
    return sum(end - start for start, end in merged((span.start, span.end) for span in own))


def from_first_to_last(spans: Iterable[Span]) -> float:
    """Seconds from the first work that any actor did to the end of the last.

    >>> from_first_to_last([Span("a", "start", 0, 5), Span("a", "sample", 5, 6), Span("b", "train", 7, 9)])
    4
    """
    own = working(spans)
    return max(span.end for span in own) - min(span.start for span in own) if own else 0


def by_kind(spans: Sequence[Span]) -> str:
    """Seconds of what each group of actors did, as a sentence.

    >>> by_kind([Span("sampler-0", "sample", 0, 4), Span("trainer-0", "train", 3, 5)])
    'sampler sample 4.0 s, trainer train 2.0 s'
    """
    seconds: dict[str, float] = {}
    for span in spans:
        what = f"{span.actor.split('-')[0]} {span.kind}"
        seconds[what] = seconds.get(what, 0.0) + span.end - span.start
    return ", ".join(f"{what} {value:.1f} s" for what, value in sorted(seconds.items()))
