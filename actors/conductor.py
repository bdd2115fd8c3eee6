"""The loop of Algorithm 1 (Jin 2025), over actors.

Reading order: `align` starts the actors and the telemetry; `iterate` is the algorithm. In every iteration the
behaviour policy samples and the reward model ranks (`annotate`), while the trainer consumes the lists as they stream
in; when it has published its weights, the samplers take them, and the next iteration begins. With `overlap: none` the
stream holds the lists back until the last is ranked.

Held-out prompts are evaluated under each iteration's behaviour policy after its annotation, when the samplers would
only wait for the trainer.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from actors import placement
from actors.annotation import Annotation
from actors.cast import Cast
from actors.checkpoints import newest_checkpoint
from actors.heldout import evaluate, is_evaluated
from actors.monitor import Monitor
from actors.preparation import PreparedRun, create_folder, locked
from actors.progress import STARTING, TRAINING, WRITING, Progress
from actors.results import Results, summarize, write_model
from actors.sharing import take_over, tell_shared
from actors.telemetry import Telemetry
from larpo.errors import LarpoError
from larpo.evaluation import HeldoutResult
from larpo.report import write_report


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
    create_folder(run)
    with locked(run.folder), Telemetry(run.config, run.folder, resume=run.resumed) as telemetry:
        progress = Progress(run.config, telemetry)
        shared = take_over(run, run.shares) if run.shares else ()
        for note in (*run.notes, *shared):
            progress.say(note)
        progress.log("prompts", run.prompt_counts())
        if shared:
            tell_shared(run, progress)
        cast = Cast(run, progress.failed)
        reason = "the run is over"
        try:
            base, aligned = await _watched(cast, progress, _started(cast, progress))
            progress.begin(WRITING, run.config.training.iterations, 0)
            results = summarize(run, base, aligned)
            await asyncio.to_thread(write_model, run, results.metrics)
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            await cast.stop(reason)
            try:
                await asyncio.to_thread(write_report, run.folder)
            except Exception as error:  # what ended the run is what the user should read
                progress.say(f"alarm: the report could not be written ({type(error).__name__}: {error})")
        progress.flush()
        telemetry.log("done", {**results.metrics, "run/seconds": telemetry.seconds()})
    await asyncio.to_thread(write_report, run.folder)
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


async def _watched(cast: Cast, progress: Progress, work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work` while the monitor looks and the trainer trains; an error of any of them ends all, with its cause."""
    main = asyncio.create_task(work)
    looker = Monitor(cast, progress)
    monitor = asyncio.create_task(looker.watch())
    try:
        while not main.done():
            watched = {main, monitor} | ({cast.trainer} if cast.trainer and not cast.trainer.done() else set())
            await asyncio.wait(watched, timeout=5.0, return_when=asyncio.FIRST_COMPLETED)
            for task in (monitor, cast.trainer):
                if task is not None and task.done() and not main.done():
                    task.result()  # raises the cause; a trainer that ended well has nothing to say
        result = main.result()
        monitor.cancel()
        await looker.look()
        return result
    except BaseExceptionGroup as group:
        raise _first_cause(group) from group
    finally:
        for task in (main, monitor):
            task.cancel()
        await asyncio.gather(main, monitor, return_exceptions=True)


def _first_cause(group: BaseExceptionGroup) -> BaseException:
    """The error that a user should read: the first of ours, or the first."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(_first_cause(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in leaves if isinstance(error, LarpoError)), leaves[0])


def run_to_end(run: PreparedRun) -> Results:
    """Start or join Ray, align, and stop Ray again. SIGTERM ends the run as Ctrl-C does."""
    import ray

    dashboard = placement.start_ray(run.config, run.name)
    if dashboard:
        run = replace(run, notes=(*run.notes, f"Ray dashboard: http://{dashboard}"))
    try:
        return asyncio.run(_with_signals(run))
    finally:
        with suppress(Exception):
            ray.shutdown()


async def _with_signals(run: PreparedRun) -> Results:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await align(run)
