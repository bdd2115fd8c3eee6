"""A run from its folder to its report: what surrounds the work of every conductor."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from actors import placement
from actors.cast import TrainingCast
from actors.garbage import collect_less_often
from actors.keeping import kept
from actors.monitor import Monitor, last_words
from actors.preparation import PreparedRun, create_folder, locked
from actors.progress import WRITING, Progress
from actors.results import Results
from actors.telemetry import Telemetry
from larpo.errors import LarpoError
from larpo.home_sessions import push_rest
from larpo.report import write_report

Run = TypeVar("Run", bound=PreparedRun)
Actors = TypeVar("Actors", bound=TrainingCast)
Outcome = TypeVar("Outcome")


Conductor = Callable[[Any], Coroutine[Any, Any, Results]]  # does a prepared run on the Ray cluster that is started


async def conduct(
    run: Run,
    place: Callable[[Run, Callable[[str, str], None]], Actors],
    work: Callable[[Actors, Progress], Coroutine[Any, Any, Outcome]],
    finish: Callable[[Run, Outcome], Results],
    begin: Callable[[Run, Progress], None] = lambda run, progress: None,
) -> Results:
    """A whole run: the folder, the actors that `place` starts, the `work` with them, what `finish` leaves, the report.

    `begin` is called when the folder is there, before any actor is. `finish` writes the model and sums up what the work
    found; it runs in a thread, when the work has ended well.
    """
    collect_less_often()
    create_folder(run)
    with (
        locked(run.folder),
        kept(run.home),
        Telemetry(run.config, run.folder, resume=run.resumed) as telemetry,
    ):
        progress = Progress(run.config, telemetry)
        for note in run.notes:
            progress.say(note)
        progress.log("prompts", run.prompt_counts())
        begin(run, progress)
        push_rest(run.home)
        cast = place(run, progress.failed)
        reason, stopped = "the run is over", False
        try:
            outcome = await watched(cast, progress, work(cast, progress))
            progress.begin(WRITING, run.config.training.iterations, 0)
            results = await asyncio.to_thread(finish, run, outcome)
        except BaseException as error:
            stopped = isinstance(error, asyncio.CancelledError)
            reason = "the run was stopped" if stopped else f"{type(error).__name__}: {error}"
            if stopped:
                progress.say("stopping: the step in progress is ended, and a checkpoint of it written")
            raise
        finally:
            await cast.stop(reason, gently=stopped)
            if stopped:
                await last_words(cast, progress)
            await _report(run.folder, progress)
        progress.flush()
        telemetry.log("done", {**results.metrics, "run/seconds": telemetry.seconds()}, **results.fields)
        await _report(run.folder, progress)
    return results


async def _report(folder: Path, progress: Progress) -> None:
    """A view of the run: what ended it, or that it is done, is what the user should read."""
    try:
        await asyncio.to_thread(write_report, folder)
    except Exception as error:
        progress.say(f"alarm: the report could not be written ({type(error).__name__}: {error})")


async def watched(cast: TrainingCast, progress: Progress, work: Coroutine[Any, Any, Any]) -> Any:
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
        looker.end()
        await asyncio.wait({monitor})
        await looker.look(last=True)
        return result
    except asyncio.CancelledError:
        looker.end()
        await asyncio.wait({monitor}, timeout=5.0)  # what the stream has just told it is told once
        raise
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


def run_to_end(run: PreparedRun, conductor: Conductor) -> Results:
    """Start or join Ray, do the run, and stop Ray again.

    SIGTERM ends the run as Ctrl-C does. Of a run that is ending it changes nothing: both may come to it, one from the
    terminal and one from the command that started it.
    """
    import ray

    dashboard = placement.start_ray(run.config, run.name)
    if dashboard:
        run = replace(run, notes=(*run.notes, f"Ray dashboard: http://{dashboard}"))
    try:
        return asyncio.run(_with_signals(run, conductor))
    finally:
        with suppress(Exception):
            ray.shutdown()


async def _with_signals(run: PreparedRun, conductor: Conductor) -> Results:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: task.cancelling() or task.cancel())
    return await conductor(run)
