"""The loop of Algorithm 1 (Jin 2025), over actors.

Reading order: `align` starts the actors, `iterate` is the algorithm, `actors.session` is what surrounds both. In every
iteration the behaviour policy samples and the reward model ranks (`annotate`), while the trainer consumes the lists as
they stream in; when it has published its weights, the samplers take them, and the next iteration begins. With
`overlap: none` the stream holds the lists back until the last is ranked.

Held-out prompts are evaluated under each iteration's behaviour policy after its annotation, when the samplers would
only wait for the trainer; so are the snapshots that the trainer writes within the iteration. What is sampled for
training always comes from the behaviour policy: `update_samplers` stands before each annotation.

With `overlap: async` the trainer publishes within the iteration too, and samplers `follow` it while they sample; so the
behaviour policy that an iteration begins with is evaluated at its beginning. When the last list of an iteration is
there, prompts of the next are asked for, as far as the bound on staleness lets them, while the trainer comes to its
end.
"""

from __future__ import annotations

import asyncio

from actors import heldout
from actors.annotation import Annotations, annotating
from actors.cast import Cast
from actors.checkpoints import newest_at
from actors.following import follow
from actors.policies import drop_publications, roll_back
from actors.preparation import PreparedRun
from actors.progress import STARTING, TRAINING, Progress
from actors.results import Results, summarize, write_model
from actors.session import conduct
from actors.sharing import take_over
from actors.turns import begin_training
from larpo.best_policy import BASE, Point
from larpo.evaluation import chosen_text, is_chosen


async def iterate(cast: Cast, progress: Progress, first: int) -> None:
    """Algorithm 1 from iteration `first` on, to its end or until the held-out prompts say that it is enough."""
    run, iterations = cast.run, cast.run.config.training.iterations
    if first > 0:
        await heldout.evaluate_missing(cast, progress, first)
        await cast.update_samplers()
    async with annotating(cast, progress) as annotations:
        for iteration in range(first, iterations):
            await _iteration(cast, progress, annotations, iteration)
            if heldout.why_stopped(run) is not None:
                annotations.cancel()
                await cast.end_training()
                break
            if not annotations.has_begun(iteration + 1):
                await cast.update_samplers()
            heldout.drop_evaluated(run, iteration + 1)
            progress.end_iteration(iteration)
            await cast.keep_rewards()
        else:
            await heldout.evaluate(cast, progress, Point(iterations))
    drop_publications(run.home)  # of earlier iterations the trainer has dropped them


async def _iteration(cast: Cast, progress: Progress, annotations: Annotations, iteration: int) -> None:
    """Until it is trained, or the run is to end."""
    config, in_flight = cast.run.config, cast.run.config.overlap == "async"
    if in_flight:
        await cast.hand_over(iteration)
        annotations.begin(iteration)
        await heldout.evaluate_beginning(cast, progress, iteration)
        if heldout.why_stopped(cast.run) is not None:
            return
    async with follow(cast, iteration) as following:
        await annotations.end(iteration)
        if not in_flight and (iteration == 0 or config.evaluation.each_iteration):
            await heldout.evaluate(cast, progress, Point(iteration))
        if config.evaluation.every_steps is not None:  # samplers are lent snapshots until the next iteration
            await following.end()
        elif in_flight and iteration + 1 < config.training.iterations:
            annotations.begin(iteration + 1)
        await _trained(cast, progress, iteration)


async def _trained(cast: Cast, progress: Progress, iteration: int) -> None:
    """Evaluate the snapshots of an iteration as they come, until it is trained or the run is to end."""
    over, prompts = False, cast.run.config.training.prompts_per_iteration
    await begin_training(cast)
    while not over and heldout.why_stopped(cast.run) is None:
        progress.begin(TRAINING, iteration, prompts, prompts)
        over = await cast.is_trained(iteration)
        await heldout.evaluate_snapshots(cast, progress, iteration)


async def align(run: PreparedRun) -> Results:
    """A whole run on the Ray cluster that is started: actors, iterations, model folder, report."""
    return await conduct(run, Cast, _started, _finish, take_over)


def _finish(run: PreparedRun, _: None) -> Results:
    end = heldout.ending(run)
    base, aligned, last = (heldout.result_of(run, point) for point in (BASE, end.taken, end.last))
    results = summarize(run, base, aligned, last, end)
    chosen = chosen_text(results.fields) if is_chosen(results.fields) else ""
    write_model(run, results.metrics, end.taken, chosen)
    return results


async def _started(cast: Cast, progress: Progress) -> None:
    """Start the actors where the newest checkpoint left off, then iterate."""
    run = cast.run
    found = await asyncio.to_thread(newest_at, run.home)
    first, step = (0, 0) if found is None else (found[1].journal.iteration, found[1].step)
    if run.resumed:
        roll_back(run.home, first, step)
        progress.say(f"resuming in iteration {min(first + 1, run.config.training.iterations)}, after step {step}")
    if heldout.why_stopped(run) is None:  # else a run that had stopped early was killed before it wrote its model
        progress.begin(STARTING, first, 0)
        await cast.start(first, initial=not heldout.is_evaluated(run, BASE))
        await iterate(cast, progress, first)
    stopped = heldout.why_stopped(run)
    if stopped is not None:
        progress.say(f"stopped early: {stopped}")
