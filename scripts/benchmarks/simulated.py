"""One iteration of the control plane alone: the real annotation, pool and stream; samplers and ranks that only answer.

Everything runs on one event loop in this process, so what is timed is this project's own work a list. The calls
between processes, which Ray makes in a real run, are not in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from cProfile import Profile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from actors.annotation import Annotation
from actors.cast import TrainingCast
from actors.pool import SamplerPool
from actors.preparation import PreparedRun
from actors.progress import Progress
from actors.sampler import SamplerStats, SampleTask
from actors.stream import ListStream
from actors.telemetry import Telemetry
from actors.work import IterationEnd, Journal, StepWork
from larpo.config import Config
from larpo.policy import PreparedPolicy
from larpo.rewards import Request, Reward
from larpo.types import Candidate, CandidateList, Message, Prompt, VersionSpan, list_id

CANDIDATES, TOKENS = 4, 4  # of a list, of a response
PROMPTS_A_SAMPLER = 4
LISTS_PER_STEP = 64  # one a rank where there are most


@dataclass(frozen=True)
class Size:
    """How many take part; `on_disk`: the lists are written, as in a run."""

    samplers: int
    ranks: int
    lists: int
    on_disk: bool = True


class Remote:
    """Stands for an actor's handle: `handle.method.remote(...)` gives what the coroutine method gives."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name), _method_name=name)


class InstantSampler:
    """A sampler with prepared answers, by the task's key."""

    def __init__(self, answers: Mapping[str, list[Candidate]]) -> None:
        self._answers, self._version = answers, 0

    async def placed(self) -> None:
        """There is nothing to place."""

    async def start(self, version: int = 0) -> int:
        self._version = version
        return version

    async def update(self, version: int) -> int:
        return await self.start(version)

    async def sample(self, task: SampleTask) -> list[Candidate]:
        return self._answers[task.key]

    async def stats(self) -> SamplerStats:
        return SamplerStats(self._version)

    async def leave(self) -> None:
        """There is nothing that waits."""

    async def shutdown(self) -> None:
        """There is nothing to end."""


class InstantRewards:
    """The pool of reward replicas, where the reward is there at once: earlier candidates are better."""

    fingerprint, joint = "instant", False

    async def rank(self, requests: Sequence[Request]) -> list[list[Reward]]:
        return [[Reward(-float(place)) for place in range(len(texts))] for _, texts in requests]

    def take_hits(self) -> int:
        return 0


class UnwrittenStream(ListStream):
    """The same stream, whose lists stay in memory."""

    def __init__(self, config: Config, lists_folder: str) -> None:
        super().__init__(config, lists_folder)
        self._offers.writer = NoWriter()  # type: ignore[assignment]


class NoWriter:
    """What it leaves out is what is compared."""

    async def write(self, lists: Sequence[CandidateList]) -> None:
        """They are nowhere."""


class SimulatedCast(TrainingCast):
    """The cast of a run, with its way to call the stream; nothing of it is a process."""

    samplers: SamplerPool

    def __init__(self, run: PreparedRun, size: Size) -> None:
        self.run, self._timeouts = run, run.config.timeouts
        kind = ListStream if size.on_disk else UnwrittenStream
        self.stream: Any = Remote(kind(run.config, str(run.lists)))
        self.rewards: Any = InstantRewards()
        answers = {list_id(0, prompt.id): answers_to(prompt, number) for number, prompt in enumerate(run.train)}
        self.samplers = SamplerPool(
            lambda name: Remote(InstantSampler(answers)),
            lambda actor: None,
            run.config.samplers,
            run.config.timeouts,
            PROMPTS_A_SAMPLER * CANDIDATES,
            on_failure=lambda name, reason: None,
        )


def answers_to(prompt: Prompt, number: int) -> list[Candidate]:
    key, versions = list_id(0, prompt.id), (VersionSpan(0, TOKENS, 0),)
    return [
        Candidate(
            id=f"{key}/{place}",
            text=f"answer {number} {place}",
            token_ids=tuple(range(number + place, number + place + TOKENS)),
            log_probs=(-0.5,) * TOKENS,
            finish_reason="stop",
            temperature=1.0,
            origin="sampled",
            iteration=0,
            versions=versions,
        )
        for place in range(CANDIDATES)
    ]


def simulated_run(folder: Path, size: Size) -> PreparedRun:
    """A run of one iteration in `folder`, which has no model: nobody loads one."""
    config = Config.model_validate(
        {
            "sampling": {"k": CANDIDATES, "max_new_tokens": TOKENS},
            "training": {
                "iterations": 1,
                "prompts_per_iteration": size.lists,
                "lists_per_step": min(LISTS_PER_STEP, size.lists),
            },
            "samplers": {"count": size.samplers},
            "telemetry": {"wandb": False, "console": "off"},
        }
    )
    prompts = tuple(Prompt(f"p{number}", (Message("user", f"question {number}"),)) for number in range(size.lists))
    return PreparedRun(
        config=config,
        name="control",
        folder=folder,
        resumed=False,
        policy=PreparedPolicy(folder, "none", config.policy),
        train=prompts,
        heldout=(),
        token_ids={prompt.id: (1, 2, 3) for prompt in prompts},
        stop_token_ids=(),
        notes=(),
        too_long=0,
        has_chat_template=True,
        adapter_size=0,
    )


async def iteration_seconds(folder: Path, size: Size, profiler: Profile | None = None) -> float:
    """From the first prompt until every rank has been given the last step; `folder` is empty before.

    A profiler sees this alone.
    """
    run = simulated_run(folder, size)
    with Telemetry(run.config, folder, resume=False) as telemetry:
        cast, progress = SimulatedCast(run, size), Progress(run.config, telemetry)
        await cast.samplers.start()
        await cast.call(cast.stream.restore, Journal())
        with profiler or nullcontext():
            seconds, consumed = await _timed(cast, progress, size)
        await cast.samplers.stop()
    if consumed != size.lists:
        raise RuntimeError(f"{consumed} of {size.lists} lists were consumed: the measurement is void")
    return seconds


async def _timed(cast: SimulatedCast, progress: Progress, size: Size) -> tuple[float, int]:
    """Seconds, and how many lists the ranks were given."""
    started = time.perf_counter()
    ranks = [asyncio.create_task(_consume(cast, rank, size.ranks)) for rank in range(size.ranks)]
    await Annotation(cast, progress, 0).annotate()  # type: ignore[arg-type]
    consumed = sum(await asyncio.gather(*ranks))
    return time.perf_counter() - started, consumed


async def _consume(cast: SimulatedCast, rank: int, ranks: int) -> int:
    """A rank that only asks for its share of each step, and reports it; how many lists it was given."""
    position = lists = 0
    while True:
        work = await cast.call(cast.stream.next_work, rank, ranks, position)
        if isinstance(work, StepWork):
            lists += len(work.lists)
            await cast.call(cast.stream.report, {"rank": rank, "step": position}, {}, [])
        if isinstance(work, IterationEnd):
            return lists
        position += 1
