"""`memory`: the peak of a trainer's process on the steps of `trainer`, and that of log-probabilities in chunks and
through a full logit tensor.

Of the log-probabilities both sides take the hidden states of the same random response tokens through the policy's
head, forward and backward, each in its own process. Told is the most that a process holds beyond what it held before,
with the policy loaded and a pass over a few tokens made: Linux's high-water mark of resident memory (VmHWM), set back
before the pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larpo.config import Config
from scripts.benchmarks.measuring import (
    BenchmarkError,
    Comparison,
    Result,
    Series,
    in_own_process,
    peak_beyond_gib,
)
from scripts.benchmarks.trainer import Steps, both_sides, prepared_policy, settings_of

STEP_TARGET = "<= 0.35"
RESPONSE_TOKENS = 4096
WARM_UP_TOKENS = 8
TARGET = "<= 0.25"
TOLERANCE = 1e-3  # of the mean log-probability of both sides, relative


@dataclass(frozen=True)
class LogitWork:
    """What both sides are asked for."""

    policy: str  # folder
    dtype: str
    tokens: int = RESPONSE_TOKENS
    chunk_tokens: int = Config().training.chunk_tokens


def run_memory(
    policy: str, dtype: str, sizes: tuple[int, ...], repetitions: int, shape: tuple[int, int], tokens: int
) -> Result:
    """Peak memory of a trainer process on the same steps, and of the log-probabilities of so many response tokens."""
    folder, dtype = prepared_policy(policy, dtype)
    rows = []
    for candidates in sizes:
        steps = Steps(str(folder), dtype, candidates, 1, 1, *shape)  # a process has one peak
        runs = [both_sides(steps) for _ in range(repetitions)]
        peak, other = (
            Series(label, tuple(side["memory_gib"] for side in sides))
            for label, sides in zip(("larpo", "TRL"), zip(*runs, strict=True), strict=True)
        )
        rows.append(Comparison(f"peak of a step, k = {candidates}", "GiB", peak, other, STEP_TARGET))
    row, note = logit_comparison(LogitWork(str(folder), dtype, tokens), repetitions)
    settings = settings_of(steps, sizes) | {"repetitions": repetitions, "logit_tokens": tokens}
    return Result("memory", settings, (*rows, row), (note,))


def logit_comparison(work: LogitWork, repetitions: int) -> tuple[Comparison, str]:
    """The row of the table, and a note on how near the sides' results are.

    Raises BenchmarkError when they are not those of the same work.
    """
    sides: dict[str, Callable[[Mapping[str, Any]], Any]] = {"chunks": chunked_side, "full logits": full_side}
    found = {label: [in_own_process(side, vars(work)) for _ in range(repetitions)] for label, side in sides.items()}
    means = [run["mean_log_prob"] for runs in found.values() for run in runs]
    apart = (max(means) - min(means)) / abs(means[0])
    if not apart <= TOLERANCE:
        raise BenchmarkError(f"mean log-probabilities {means} are {apart:.1e} apart, over {TOLERANCE:g}")
    ours, other = (Series(label, tuple(run["peak_gib"] for run in runs)) for label, runs in found.items())
    vocabulary = json.loads((Path(work.policy) / "config.json").read_text())["vocab_size"]
    what = f"peak of log-probabilities, {work.tokens} response tokens, vocabulary {vocabulary}"
    note = f"log-probabilities: beyond the loaded model, by VmHWM; means at most {apart:.1e} apart, relative"
    return Comparison(what, "GiB", ours, other, TARGET), note


def chunked_side(settings: Mapping[str, Any]) -> dict[str, float]:
    """larpo's log-probabilities, in chunks."""
    from larpo.log_probs import chunked_log_probs

    work = LogitWork(**settings)

    def log_probs(head: Any, hidden_NH: Any, targets_N: Any, softcap: float | None) -> Any:
        return chunked_log_probs(head, hidden_NH, targets_N, chunk_size=work.chunk_tokens, softcap=softcap)[0]

    return _measured(work, log_probs)


def full_side(settings: Mapping[str, Any]) -> dict[str, float]:
    """The same through one logit tensor."""
    from scripts.benchmarks.logits import full_log_probs

    return _measured(LogitWork(**settings), full_log_probs)


def _measured(work: LogitWork, log_probs: Callable[..., Any]) -> dict[str, float]:
    import torch

    from larpo.policy import load_policy

    model = load_policy(Path(work.policy), dtype=work.dtype).train()
    head, softcap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)

    def inputs(count: int) -> tuple[Any, Any]:
        generator = torch.Generator().manual_seed(0)
        states_NH = torch.randn(count, model.config.hidden_size, generator=generator)
        targets_N = torch.randint(model.config.vocab_size, (count,), generator=generator)
        return states_NH.to(model.dtype).requires_grad_(), targets_N

    def passes(hidden_NH: Any, targets_N: Any) -> float:
        head.weight.grad = None
        mean = log_probs(head, hidden_NH, targets_N, softcap).mean()
        mean.backward()
        return mean.item()

    passes(*inputs(WARM_UP_TOKENS))
    head.weight.grad = None
    given = inputs(work.tokens)
    peak, mean = peak_beyond_gib(lambda: passes(*given))
    return {"peak_gib": peak, "mean_log_prob": mean}
