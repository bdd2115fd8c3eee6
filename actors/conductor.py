"""The loop of Algorithm 1 (Jin 2025), over actors.

Reading order: `align` starts the actors and the telemetry; `iterate` is the algorithm. In every iteration the
behaviour policy samples and the reward model ranks (`annotate`), while the trainer consumes the lists as they stream
in; when it has published its weights, the samplers take them, and the next iteration begins. With `overlap: none` the
stream holds the lists back until the last is ranked.

Held-out prompts are evaluated under each iteration's behaviour policy after its annotation, when the samplers would
only wait for the trainer; so are the snapshots that the trainer writes within the iteration. What is sampled for
training always comes from the behaviour policy: `update_samplers` stands before each annotation.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from actors import heldout, placement
from actors.annotation import Annotation
from actors.cast import Cast
from actors.checkpoints import newest_checkpoint
from actors.monitor import Monitor
from actors.policies import roll_back
from actors.preparation import PreparedRun, create_folder, locked
from actors.progress import STARTING, TRAINING, WRITING, Progress
from actors.results import Results, summarize, write_model
from actors.telemetry import Telemetry
from larpo.best_policy import BASE, Point
from larpo.errors import LarpoError
from larpo.report import write_report


async def iterate(cast: Cast, progress: Progress, first: int) -> None:
    """Algorithm 1 from iteration `first` on, to its end or until the held-out prompts say that it is enough."""
    run, training = cast.run, cast.run.config.training
    if first > 0:
        await heldout.evaluate_missing(cast, progress, first)
        await cast.update_samplers()
    for iteration in range(first, training.iterations):
        await Annotation(cast, progress, iteration).annotate()
        if iteration == 0 or run.config.evaluation.each_iteration:
            await heldout.evaluate(cast, progress, Point(iteration))
        await _trained(cast, progress, iteration)
        if heldout.why_stopped(run) is not None:
            return await cast.end_training()
        await cast.update_samplers()
        heldout.drop_evaluated(run, iteration + 1)
        progress.log("iteration", progress.busy(), iteration=iteration)
    await heldout.evaluate(cast, progress, Point(training.iterations))


async def _trained(cast: Cast, progress: Progress, iteration: int) -> None:
    """Evaluate the snapshots of an iteration as they come, until it is trained or the run is to end."""
    over, prompts = False, cast.run.config.training.prompts_per_iteration
    while not over and heldout.why_stopped(cast.run) is None:
        progress.begin(TRAINING, iteration, prompts, prompts)
        over = await cast.is_trained(iteration)
        await heldout.evaluate_snapshots(cast, progress, iteration)


async def align(run: PreparedRun) -> Results:
    """A whole run on the Ray cluster that is started: actors, iterations, model folder, report."""
    create_folder(run)
    with locked(run.folder), Telemetry(run.config, run.folder, resume=run.resumed) as telemetry:
        progress = Progress(run.config, telemetry)
        for note in run.notes:
            progress.say(note)
        progress.log("prompts", run.prompt_counts())
        cast = Cast(run, progress.failed)
        reason = "the run is over"
        try:
            await _watched(cast, progress, _started(cast, progress))
            progress.begin(WRITING, run.config.training.iterations, 0)
            end = heldout.ending(run)
            base, aligned, last = (heldout.result_of(run, point) for point in (BASE, end.taken, end.last))
            results = summarize(run, base, aligned, last, end)
            await asyncio.to_thread(write_model, run, results, end)
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
        telemetry.log("done", {**results.metrics, "run/seconds": telemetry.seconds()}, **results.fields)
    await asyncio.to_thread(write_report, run.folder)
    return results


async def _started(cast: Cast, progress: Progress) -> None:
    """Start the actors where the newest checkpoint left off, then iterate."""
    run = cast.run
    found = await asyncio.to_thread(newest_checkpoint, run.checkpoints)
    first, step = (0, 0) if found is None else (found[1].journal.iteration, found[1].step)
    if run.resumed:
        roll_back(run.folder, first, step)
        progress.say(f"resuming in iteration {min(first + 1, run.config.training.iterations)}, after step {step}")
    if (
        heldout.why_stopped(run) is None
    ):  # else the run had stopped early, and was killed before it had written its model
        progress.begin(STARTING, first, 0)
        await cast.start(first, initial=not heldout.is_evaluated(run, BASE))
        await iterate(cast, progress, first)
    stopped = heldout.why_stopped(run)
    if stopped is not None:
        progress.say(f"stopped early: {stopped}")


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
