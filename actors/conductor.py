"""The loop of Algorithm 1 (Jin 2025), over actors.

Reading order: `align` starts the actors, `iterate` is the algorithm, `actors.session` is what surrounds both. In every
iteration the behaviour policy samples and the reward model ranks (`annotate`), while the trainer consumes the lists as
they stream in; when it has published its weights, the samplers take them, and the next iteration begins. With
`overlap: none` the stream holds the lists back until the last is ranked.

Held-out prompts are evaluated under each iteration's behaviour policy after its annotation, when the samplers would
only wait for the trainer.
"""

from __future__ import annotations

import asyncio

from actors.annotation import Annotation
from actors.cast import Cast
from actors.checkpoints import newest_checkpoint
from actors.heldout import evaluate, is_evaluated
from actors.preparation import PreparedRun
from actors.progress import STARTING, TRAINING, Progress
from actors.results import Results, summarize, write_model
from actors.session import conduct
from actors.sharing import take_over
from larpo.evaluation import HeldoutResult


async def iterate(cast: Cast, progress: Progress, first: int) -> tuple[HeldoutResult | None, HeldoutResult | None]:
    """Algorithm 1 from iteration `first` on; returns the base policy's and the aligned policy's evaluation."""
    training, each = cast.run.config.training, cast.run.config.evaluation.each_iteration
    base = None
    if first > 0:
        base = await evaluate(cast, progress, 0)
        await cast.update_samplers()
    for iteration in range(first, training.iterations):
        await Annotation(cast, progress, iteration).annotate()
        if iteration == 0:
            base = await evaluate(cast, progress, 0)
        elif each:
            await evaluate(cast, progress, iteration)
        progress.begin(TRAINING, iteration, training.prompts_per_iteration, training.prompts_per_iteration)
        await cast.wait_trained(iteration)
        await cast.update_samplers()
        progress.log("iteration", progress.busy(), iteration=iteration)
    return base, await evaluate(cast, progress, training.iterations)


async def align(run: PreparedRun) -> Results:
    """A whole run on the Ray cluster that is started: actors, iterations, model folder, report."""
    return await conduct(run, Cast, _started, _finish, take_over)


def _finish(run: PreparedRun, evaluated: tuple[HeldoutResult | None, HeldoutResult | None]) -> Results:
    results = summarize(run, *evaluated)
    write_model(run, results.metrics)
    return results


async def _started(cast: Cast, progress: Progress) -> tuple[HeldoutResult | None, HeldoutResult | None]:
    """Start the actors where the newest checkpoint left off, then iterate."""
    found = await asyncio.to_thread(newest_checkpoint, cast.run.checkpoints)
    first = 0 if found is None else found[1].journal.iteration
    if cast.run.resumed:
        step = 0 if found is None else found[1].step
        progress.say(f"resuming in iteration {min(first + 1, cast.run.config.training.iterations)}, after step {step}")
    progress.begin(STARTING, first, 0)
    await cast.start(first, initial=not is_evaluated(cast.run, 0))
    return await iterate(cast, progress, first)
