"""Held-out evaluation through the same samplers and reward model; results are kept, so that a resumed run has them.

A result file is the evaluation: what has one is not evaluated again, and every decision (which policy is the best,
whether to end early) is a function of these files, so that a resumed run decides as the killed one would have.
"""

from __future__ import annotations

import asyncio

from actors.cast import Cast
from actors.policies import drop_policies, evaluated_points, is_written, result_file, snapshots, weights_folder
from actors.preparation import PreparedRun
from actors.progress import EVALUATING, EVALUATING_SNAPSHOT, Progress
from actors.published import published_version
from actors.sampler import SampleTask
from larpo.best_policy import BASE, Ending, Point, best_point, stop_reason
from larpo.evaluation import HeldoutResult, summary
from larpo.sweep import GREEDY
from larpo.types import Candidate, Prompt


def is_evaluated(run: PreparedRun, point: Point) -> bool:
    """Whether nothing is left to evaluate of a policy."""
    return not run.heldout or result_file(run.folder, point).exists()


def result_of(run: PreparedRun, point: Point) -> HeldoutResult | None:
    file = result_file(run.folder, point)
    return HeldoutResult.from_json(file.read_text()) if file.exists() else None


def values(run: PreparedRun) -> dict[Point, float]:
    """`evaluation.best_metric` of every policy evaluated so far; nothing where none is chosen by."""
    metric = run.config.evaluation.best_metric
    if metric is None:
        return {}
    results = {point: result_of(run, point) for point in evaluated_points(run.folder)}
    return {point: summary(result)[f"heldout/{metric}"] for point, result in results.items() if result is not None}


def why_stopped(run: PreparedRun) -> str | None:
    """Why the run ends before its last iteration is trained and evaluated; None when it does not."""
    settings = run.config.evaluation
    if settings.best_metric is None or is_evaluated(run, Point(run.config.training.iterations)):
        return None
    return stop_reason(values(run), settings.best_metric, settings.patience)


def ending(run: PreparedRun) -> Ending:
    """The policy that the run leaves: the best by `evaluation.best_metric`, else the last."""
    stopped = why_stopped(run)
    last = max(evaluated_points(run.folder)) if stopped else Point(run.config.training.iterations)
    return Ending(best_point(values(run)) or last, last, stopped)


def drop_evaluated(run: PreparedRun, iteration: int) -> None:
    """Drop the policies that are needed no more, when the behaviour policy of `iteration` is on disk."""
    drop_policies(run.home, iteration, run.config.checkpoints.keep, best_point(values(run)))


async def evaluate_missing(cast: Cast, progress: Progress, before: int) -> None:
    """What a kill left out of the iterations before `before`: the base policy, and those whose weights are on disk.

    The samplers hold the initial policy when the base policy is missing; afterwards they may hold any.
    """
    await evaluate(cast, progress, BASE)
    run = cast.run
    ends = [Point(n) for n in range(1, before)] if run.config.evaluation.each_iteration else []
    for point in sorted([*ends, *(snapshot for snapshot in snapshots(run.folder) if snapshot < Point(before))]):
        await _evaluate_from_disk(cast, progress, point)


async def evaluate_beginning(cast: Cast, progress: Progress, iteration: int) -> None:
    """The behaviour policy that an iteration begins with, which the samplers hold."""
    if iteration == 0:
        await evaluate(cast, progress, BASE)
    elif cast.run.config.evaluation.each_iteration:
        await _evaluate_from_disk(cast, progress, Point(iteration))


async def evaluate_snapshots(cast: Cast, progress: Progress, iteration: int) -> None:
    """The snapshots of `iteration` that wait, in order of step; the samplers are left at the newest of them."""
    for point in snapshots(cast.run.folder):
        if point.iteration == iteration:
            await _evaluate_from_disk(cast, progress, point)


async def _evaluate_from_disk(cast: Cast, progress: Progress, point: Point) -> None:
    """Lend the samplers a policy that is on disk and evaluate it, unless that was done."""
    run = cast.run
    if is_evaluated(run, point) or not is_written(run.folder, point) or why_stopped(run) is not None:
        return
    folder = weights_folder(run.folder, point)
    await cast.lend(published_version(folder), folder)
    await evaluate(cast, progress, point)
    drop_evaluated(run, point.iteration)


async def evaluate(cast: Cast, progress: Progress, point: Point) -> HeldoutResult | None:
    """Evaluate the samplers' policy, which is that of `point`; None when there are no held-out prompts."""
    run = cast.run
    if not run.heldout:
        return None
    known = result_of(run, point)
    if known is not None:
        return known
    progress.begin(EVALUATING_SNAPSHOT if point.step else EVALUATING, point.iteration, len(run.heldout))
    answers = await _answers(cast, progress, point)
    samples = run.config.evaluation.samples
    result = HeldoutResult(
        label=point.label,
        prompt_ids=tuple(prompt.id for prompt in run.heldout),
        rewards_PN=tuple(rewards[:samples] for _, rewards in answers),
        greedy_rewards_P=tuple(rewards[samples] for _, rewards in answers),
        response_tokens_PN=tuple(tuple(len(c.token_ids) for c in group[:samples]) for group, _ in answers),
        cut_off_share=_cut_off_share([c for group, _ in answers for c in group[:samples]]),
    )
    if point.step and not is_written(run.folder, point):
        return None  # rolled back meanwhile
    file = result_file(run.folder, point)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".partial").write_text(result.to_json())
    file.with_suffix(".partial").rename(file)
    await asyncio.to_thread(run.home.push, file)
    place = {"iteration": point.iteration, **({"step": point.step} if point.step else {})}
    hits = {"reward/cache_hits": float(cast.rewards.take_hits())}
    progress.log("evaluation", {**summary(result), **hits}, label=result.label, **place)
    return result


async def _answers(cast: Cast, progress: Progress, point: Point) -> list[tuple[list[Candidate], tuple[float, ...]]]:
    """To every held-out prompt, in order; prompts sampled for training meanwhile need not wait for the last."""
    answers = []
    async with asyncio.TaskGroup() as group:
        for prompt in cast.run.heldout:
            task = _task(cast, point, prompt)
            await cast.samplers.take_slots(task.responses)
            answers.append(group.create_task(_answer(cast, progress, prompt, task)))
    return [answer.result() for answer in answers]


def _task(cast: Cast, point: Point, prompt: Prompt) -> SampleTask:
    """n samples and the greedy response."""
    config = cast.run.config
    return SampleTask(
        key=f"heldout-{point.iteration:04d}.{point.step}/{prompt.id}",
        iteration=point.iteration,
        prompt_token_ids=cast.run.token_ids[prompt.id],
        counts=((config.evaluation.temperature, config.evaluation.samples), (GREEDY, 1)),
        max_new_tokens=config.sampling.max_new_tokens,
        stop=config.sampling.stop,
        stop_token_ids=cast.run.stop_token_ids,
    )


async def _answer(
    cast: Cast, progress: Progress, prompt: Prompt, task: SampleTask
) -> tuple[list[Candidate], tuple[float, ...]]:
    """All responses with their rewards; gives the slots back when they are sampled."""
    try:
        candidates = await cast.samplers.sample(task)
    finally:
        await cast.samplers.free_slots(task.responses)
    progress.sampled += 1
    (rewards,) = await cast.rewards.rank([(prompt, [candidate.text for candidate in candidates])])
    for candidate, reward in zip(candidates, rewards, strict=True):
        if reward.failure:
            progress.reward_failed(progress.iteration, candidate.id, reward.failure)
    progress.ranked += 1
    return candidates, tuple(reward.value for reward in rewards)


def _cut_off_share(candidates: list[Candidate]) -> float:
    return sum(candidate.finish_reason == "length" for candidate in candidates) / len(candidates)
