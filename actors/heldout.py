"""Held-out evaluation through the same samplers and reward model; results are kept, so that a resumed run has them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from actors.cast import Cast
from actors.preparation import PreparedRun
from actors.progress import EVALUATING, Progress
from actors.sampler import SampleTask
from larpo.evaluation import HeldoutResult, summary
from larpo.types import Candidate, Prompt

GREEDY = 0.0


def result_file(run_dir: Path, iteration: int) -> Path:
    return run_dir / "evaluation" / f"iteration-{iteration:04d}.json"


def is_evaluated(run: PreparedRun, iteration: int) -> bool:
    """Whether nothing is left to evaluate of the policy of before `iteration`."""
    return not run.heldout or result_file(run.folder, iteration).exists()


def label_of(iteration: int) -> str:
    return "base policy" if iteration == 0 else f"after iteration {iteration}"


async def evaluate(cast: Cast, progress: Progress, iteration: int) -> HeldoutResult | None:
    """Evaluate the samplers' policy, that of before `iteration`; None when there are no held-out prompts."""
    run = cast.run
    if not run.heldout:
        return None
    file = result_file(run.folder, iteration)
    if file.exists():
        return HeldoutResult.from_json(file.read_text())
    progress.begin(EVALUATING, iteration, len(run.heldout))
    answers = await asyncio.gather(*(_answer(cast, progress, iteration, prompt) for prompt in run.heldout))
    samples = run.config.evaluation.samples
    result = HeldoutResult(
        label=label_of(iteration),
        prompt_ids=tuple(prompt.id for prompt in run.heldout),
        rewards_PN=tuple(rewards[:samples] for _, rewards in answers),
        greedy_rewards_P=tuple(rewards[samples] for _, rewards in answers),
        response_tokens_PN=tuple(tuple(len(c.token_ids) for c in group[:samples]) for group, _ in answers),
        cut_off_share=_cut_off_share([c for group, _ in answers for c in group[:samples]]),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".partial").write_text(result.to_json())
    file.with_suffix(".partial").rename(file)
    hits = {"reward/cache_hits": float(cast.rewards.take_hits())}
    progress.log("evaluation", {**summary(result), **hits}, label=result.label, iteration=iteration)
    return result


async def _answer(
    cast: Cast, progress: Progress, iteration: int, prompt: Prompt
) -> tuple[list[Candidate], tuple[float, ...]]:
    """n samples and the greedy response, with their rewards."""
    config = cast.run.config
    task = SampleTask(
        key=f"heldout-{iteration:04d}/{prompt.id}",
        iteration=iteration,
        prompt_token_ids=cast.run.token_ids[prompt.id],
        counts=((config.evaluation.temperature, config.evaluation.samples), (GREEDY, 1)),
        max_new_tokens=config.sampling.max_new_tokens,
        stop=config.sampling.stop,
        stop_token_ids=cast.run.stop_token_ids,
    )
    candidates = await cast.samplers.sample(task)
    progress.sampled += 1
    (rewards,) = await cast.rewards.rank([(prompt, [candidate.text for candidate in candidates])])
    for candidate, reward in zip(candidates, rewards, strict=True):
        if reward.failure:
            progress.reward_failed(candidate.id, reward.failure)
    progress.ranked += 1
    return candidates, tuple(reward.value for reward in rewards)


def _cut_off_share(candidates: list[Candidate]) -> float:
    return sum(candidate.finish_reason == "length" for candidate in candidates) / len(candidates)
