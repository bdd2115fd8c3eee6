"""One iteration of Algorithm 1 as three scripts, each a process of its own: what the paper's base code does.

A process starts vLLM on the newest model folder, samples and writes what it sampled; the next loads that, scores and
ranks it; the last loads the model, trains on the lists and writes a model folder. Lists, losses, learning rates and the
number of steps are larpo's own functions of the same recipe. The trainer is what a plain script is: transformers and
AdamW, a padded batch of one row a response for each list, full logits, the reference computed at every step, mixed
precision by autocast where the recipe's type is bfloat16. AdamW starts anew in each iteration, as a script does.

L lists, M candidates, T tokens of the longest row.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larpo.config import Config
from larpo.lists import rank, training_list
from larpo.memory import join, remember, replays, reward_fingerprint, unscored
from larpo.records import read_lists, write_part
from larpo.rewards import RewardModel
from larpo.types import Candidate, CandidateList, Prompt, list_id

if TYPE_CHECKING:
    from actors.preparation import PreparedRun


@dataclass(frozen=True)
class PhaseWork:
    """What a process is given."""

    run: PreparedRun
    iteration: int
    model: str  # folder of the policy of this iteration
    folder: str  # of this side: what the phases write

    @property
    def counts(self) -> tuple[tuple[float, int], ...]:
        """(temperature, responses) of every prompt."""
        return self.config.sampling.counts(self.iteration)

    @property
    def config(self) -> Config:
        return self.run.config

    @property
    def sampled(self) -> Path:
        return Path(self.folder) / "sampled"

    @property
    def lists(self) -> Path:
        return Path(self.folder) / "lists"

    @property
    def trained(self) -> Path:
        return Path(self.folder) / f"model-{self.iteration + 1}"


@dataclass
class Clock:
    """Seconds of the parts of a phase, by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


def sample_phase(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bare vLLM on all cores: k responses to each of the iteration's prompts, written as lists without rewards."""
    work, clock = PhaseWork(**settings), Clock()
    prompts = work.run.drawn(work.iteration)
    with clock.timed("engine start"):
        llm = _engine(work)
    with clock.timed("sampling"):
        outputs = [_generated(llm, work, prompts, *part) for part in work.counts]
    with clock.timed("writing"):
        lists = [_sampled_list(work, prompt, [of[n] for of in outputs]) for n, prompt in enumerate(prompts)]
        write_part(work.sampled, lists, work.iteration, 0)
    llm.llm_engine.engine_core.shutdown()
    return {"seconds": clock.seconds}


def _engine(work: PhaseWork) -> Any:
    cores = sorted(os.sched_getaffinity(0))
    whole = cores == list(range(cores[0], cores[-1] + 1))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"{cores[0]}-{cores[-1]}" if whole else ",".join(map(str, cores))
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM
    from vllm.platforms import current_platform

    from actors.engine import CPU_BLOCK

    samplers, on_cpu = work.config.samplers, current_platform.is_cpu()
    return LLM(
        model=work.model,
        dtype=work.config.policy.dtype,
        tensor_parallel_size=samplers.tensor_parallel_size,
        max_model_len=samplers.max_model_len,
        max_num_seqs=samplers.max_num_seqs,
        gpu_memory_utilization=samplers.memory_fraction,
        kv_cache_memory_bytes=samplers.cpu_kv_cache_gib * 2**30 if on_cpu else None,
        block_size=CPU_BLOCK if on_cpu else None,
        enforce_eager=samplers.enforce_eager,
        disable_log_stats=True,
    )


def _generated(llm: Any, work: PhaseWork, prompts: Sequence[Prompt], temperature: float, count: int) -> list[Any]:
    """The outputs of each prompt at one temperature."""
    from vllm import SamplingParams

    params = SamplingParams(
        n=count,
        temperature=temperature,
        max_tokens=work.config.sampling.max_new_tokens,
        stop=list(work.config.sampling.stop),
        stop_token_ids=list(work.run.stop_token_ids),
    )
    tokens = [{"prompt_token_ids": list(work.run.token_ids[prompt.id])} for prompt in prompts]
    return [request.outputs for request in llm.generate(tokens, params, use_tqdm=False)]


def _sampled_list(work: PhaseWork, prompt: Prompt, outputs: Sequence[Sequence[Any]]) -> CandidateList:
    """Of the outputs at each temperature."""
    key = list_id(work.iteration, prompt.id)
    by_temperature = [(t, output) for (t, _), of in zip(work.counts, outputs, strict=True) for output in of]
    candidates = tuple(
        Candidate(
            id=f"{key}/{number}",
            text=output.text,
            token_ids=tuple(output.token_ids),
            log_probs=(),
            finish_reason=output.finish_reason,
            temperature=temperature,
            origin="sampled",
            iteration=work.iteration,
            versions=(),
        )
        for number, (temperature, output) in enumerate(by_temperature)
    )
    return CandidateList(key, work.iteration, prompt, work.run.token_ids[prompt.id], candidates)


def rank_phase(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rewards of what was sampled; the lists of the iteration, joined by the memory of earlier ones, best first."""
    from larpo.rewards import make_reward_model

    work, clock = PhaseWork(**settings), Clock()
    knobs, seed = work.config.lists, work.config.run.seed
    with clock.timed("loading the reward model"):
        model = make_reward_model(work.config.reward)
    with clock.timed("ranking"):
        sampled = [item for item in read_lists(work.sampled) if item.iteration == work.iteration]
        earlier = read_lists(work.lists) if work.iteration else ()
        memory = remember(earlier, knobs.memory, work.iteration, seed=seed, max_age=knobs.max_age)
        drawn = {item.prompt.id for item in sampled}
        joined = [join(i, memory[i.prompt.id].candidates) if i.prompt.id in memory else i for i in sampled]
        again = replays(memory, drawn, work.iteration, seed=seed) if knobs.replay else []
        lists = _ranked([*joined, *again], model, rescore=knobs.rescore, seed=seed)
        write_part(work.lists, lists, work.iteration, 0)
    model.close()
    return {"seconds": clock.seconds}


def _ranked(lists: Sequence[CandidateList], model: RewardModel, *, rescore: bool, seed: int) -> list[CandidateList]:
    groups = [unscored(item, model.fingerprint, joint=model.joint, rescore=rescore) for item in lists]
    asked = [(item.prompt, group) for item, group in zip(lists, groups, strict=True) if group]
    found = model.score_lists([(prompt, [candidate.text for candidate in group]) for prompt, group in asked])
    scored = {
        candidate.id: candidate.replace(
            reward=reward.value, reward_fingerprint=reward_fingerprint(group, model.fingerprint, joint=model.joint)
        )
        for (_, group), rewards in zip(asked, found, strict=True)
        for candidate, reward in zip(group, rewards, strict=True)
    }
    whole = [item.replace(candidates=tuple(scored.get(c.id, c) for c in item.candidates)) for item in lists]
    return [i.replace(candidates=rank(i.candidates, seed=seed, prompt_id=i.prompt.id)) for i in whole]


def train_phase(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One pass, or the recipe's epochs, over the iteration's lists, and a model folder of what came out."""
    import torch

    from scripts.benchmarks.plain_trainer import PlainTrainer

    work, clock = PhaseWork(**settings), Clock()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with clock.timed("loading the model"):
        trainer = PlainTrainer(work.config, Path(work.model), work.run.policy.path)
    with clock.timed("training"):
        steps = [trainer.step(batch, share) for batch, share in _batches(work)]
    with clock.timed("writing the model"):
        trainer.write(work.trained)
    return {"seconds": clock.seconds, "losses": steps}


def _batches(work: PhaseWork) -> Iterator[tuple[list[CandidateList], float]]:
    """The lists of each step, and the share of the run's planned lists behind it."""
    from larpo.objective_table import get_spec

    config, training = work.config, work.config.training
    full = [item for item in read_lists(work.lists) if item.iteration == work.iteration]
    uses, seed = get_spec(config.objective.name).uses, config.run.seed
    found = [training_list(item, config.lists, config.sampling, seed=seed, uses=uses)[0] for item in full]
    places = [(item, min(1.0, (n + 1) / training.prompts_per_iteration)) for n, item in enumerate(found) if item]
    for epoch in range(training.epochs):
        if epoch:
            random.Random(f"{seed} {work.iteration} {epoch}").shuffle(places)
        for start in range(0, len(places), training.lists_per_step):
            batch = places[start : start + training.lists_per_step]
            passes = work.iteration * training.epochs + epoch
            share = (passes + batch[-1][1]) / (training.iterations * training.epochs)
            yield [item for item, _ in batch], share
