"""The annotation phase of Algorithm 1: sample k responses a prompt, rank them, join the memory, offer the lists."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from actors.cast import Cast
from actors.preparation import PreparedRun
from actors.progress import SAMPLING, Progress
from actors.sampler import SampleTask
from larpo.list_metrics import list_metrics
from larpo.lists import rank
from larpo.memory import join, remember, replays, reward_fingerprint, unscored, with_references
from larpo.negatives import with_borrowed
from larpo.records import list_parts, read_lists
from larpo.types import Candidate, CandidateList, Prompt, list_id

OFFERS = 8  # batches on their way to the stream at a time: to the disk, and waiting for room
LINGER_S = 0.5  # how long a list waits for others before it is ranked with those that came


class Annotation:
    """One iteration's annotation. Prompts whose lists are on disk already are not sampled again."""

    def __init__(self, cast: Cast, progress: Progress, iteration: int) -> None:
        self._cast, self._progress, self._iteration = cast, progress, iteration
        self._run, self._config = cast.run, cast.run.config
        self._in_flight = self._config.overlap == "async"  # new weights come while it goes on
        self._sampled: asyncio.Queue[CandidateList | None] = asyncio.Queue(self._config.stream.lists_per_part)
        self._memory: asyncio.Task[Mapping[str, CandidateList]] | None = None
        self._recent: deque[CandidateList] = deque(maxlen=self._config.stream.lists_per_part)  # to borrow losers from
        self._prompts_total = self.prompts_sampled = self.prompts_ranked = 0
        self._is_shown = False

    def show(self) -> None:
        """From now on this is what the run is doing."""
        self._is_shown = True
        if self._prompts_total:
            self._progress.begin(SAMPLING, self._iteration, self._prompts_total, self.prompts_ranked)
            self._progress.sampled = self.prompts_sampled

    def _count(self, sampled: int, ranked: int) -> None:
        self.prompts_sampled += sampled
        self.prompts_ranked += ranked
        if self._is_shown:
            self._progress.sampled += sampled
            self._progress.ranked += ranked

    async def annotate(self) -> None:
        """Until every list of the iteration has been offered."""
        recorded = set(await self._cast.call(self._cast.stream.open_iteration, self._iteration))
        drawn = self._run.drawn(self._iteration)
        todo = [prompt for prompt in drawn if prompt.id not in recorded]
        if recorded and self._config.lists.negatives != "sampled":
            self._recent.extend(await asyncio.to_thread(self._recorded))
        self._prompts_total = len(drawn)
        self.prompts_sampled = self.prompts_ranked = len(drawn) - len(todo)
        if self._is_shown:
            self.show()
        async with asyncio.TaskGroup() as group:
            self._memory = group.create_task(self._remember())  # while the first prompts are sampled
            group.create_task(self._sample_all(todo))
            group.create_task(self._rank_all())
        await self._replay({prompt.id for prompt in drawn} | recorded)
        await self._cast.call(self._cast.stream.close_iteration, self._iteration)

    def _recorded(self) -> list[CandidateList]:
        """The iteration's lists that are on disk from before a restart."""
        return [item for part in list_parts(self._run.lists, self._iteration) for item in read_lists(part)]

    async def _remember(self) -> Mapping[str, CandidateList]:
        """What the memory mode keeps of earlier iterations, with the reference log-probabilities computed since."""
        mode, seed = self._config.lists.memory, self._config.run.seed
        if mode == "current" or self._iteration == 0:
            return {}
        age = self._config.lists.max_age
        memory = await asyncio.to_thread(
            lambda: remember(read_lists(self._run.lists), mode, self._iteration, seed=seed, max_age=age)
        )
        references = await self._cast.call(self._cast.stream.references)
        return {key: with_references(item, references) for key, item in memory.items()}

    async def _remembered(self) -> Mapping[str, CandidateList]:
        assert self._memory is not None
        return await self._memory

    async def _sample_all(self, prompts: Sequence[Prompt]) -> None:
        async with asyncio.TaskGroup() as group:
            for prompt in prompts:
                await self._cast.samplers.take_slots(self._config.sampling.k)
                group.create_task(self._sample(prompt, await self._asked(prompt)))
        await self._sampled.put(None)

    async def _asked(self, prompt: Prompt) -> int:
        """The publication that a prompt is asked at, when its list can be trained before it is too stale."""
        if not self._in_flight:
            return 0
        return await self._cast.call(self._cast.stream.ask, prompt.id, limit_s=math.inf)  # the stream has its own

    async def _sample(self, prompt: Prompt, publication: int) -> None:
        """The prompt keeps its slot until its list is taken for ranking: a full stream holds the sampling back."""
        try:
            candidates = await self._cast.samplers.sample(sample_task(self._run, self._iteration, prompt))
            self._count(1, 0)
            await self._sampled.put(
                CandidateList(
                    id=list_id(self._iteration, prompt.id),
                    iteration=self._iteration,
                    prompt=prompt,
                    prompt_token_ids=self._run.token_ids[prompt.id],
                    candidates=tuple(candidates),
                    publication=publication,
                )
            )
        finally:
            await self._cast.samplers.free_slots(self._config.sampling.k)

    async def _rank_all(self) -> None:
        """Lists are ranked while those before them are being written, or wait for room in the stream."""
        more, room = True, asyncio.Semaphore(OFFERS)
        async with asyncio.TaskGroup() as offers:
            while more:
                batch, more = await self._next_batch()
                if batch:
                    lists, metrics = await self._rank(batch)
                    await room.acquire()
                    offers.create_task(self._offer(lists, metrics)).add_done_callback(lambda _: room.release())

    async def _next_batch(self) -> tuple[list[CandidateList], bool]:
        """Sampled lists to rank together, and whether more will come.

        Where losers come from other prompts, it waits until there are as many as fit.
        """
        linger = LINGER_S if self._config.lists.negatives == "sampled" else None
        batch: list[CandidateList] = []
        try:
            async with asyncio.timeout(None) as limit:
                while len(batch) < self._config.stream.lists_per_part:
                    item = await self._sampled.get()
                    if item is None:
                        return batch, False
                    batch.append(item)
                    if linger is not None and len(batch) == 1:
                        limit.reschedule(asyncio.get_running_loop().time() + linger)
        except TimeoutError:
            pass
        return batch, True

    async def _rank(self, batch: Sequence[CandidateList]) -> tuple[list[CandidateList], dict[str, float]]:
        """The lists with what their prompts remember, best first, and how fast that went."""
        seed, memory = self._config.run.seed, await self._remembered()
        started = time.time()
        old = [memory[item.prompt.id].candidates if item.prompt.id in memory else () for item in batch]
        joined = [join(item, candidates) for item, candidates in zip(batch, old, strict=True)]
        negatives, count = self._config.lists.negatives, self._config.sampling.k
        mixed = with_borrowed(joined, negatives, count=count, seed=seed, recent=self._recent)
        self._recent.extend(joined)
        lists = await self._ranked(mixed)
        rate = len(lists) / max(1e-9, time.time() - started)
        return lists, {"prompts/ranked": float(len(lists)), "reward/lists_per_second": rate}

    async def _offer(self, lists: Sequence[CandidateList], metrics: Mapping[str, float]) -> None:
        hits = {"reward/cache_hits": float(self._cast.rewards.take_hits())}
        self._progress.log("lists", {**list_metrics(lists, self._config), **metrics, **hits}, iteration=self._iteration)
        await self._cast.call(self._cast.stream.offer, list(lists), limit_s=math.inf)  # the stream has its own
        self._count(0, int(metrics.get("prompts/ranked", 0)))

    async def _ranked(self, lists: Sequence[CandidateList]) -> list[CandidateList]:
        """Best first, after what has no reward, or not this reward model's, has been scored."""
        rewards, rescore, seed = self._cast.rewards, self._config.lists.rescore, self._config.run.seed
        missing = [unscored(item, rewards.fingerprint, joint=rewards.joint, rescore=rescore) for item in lists]
        asked = [(item.prompt, group) for item, group in zip(lists, missing, strict=True) if group]
        found = await rewards.rank([(prompt, [c.text for c in group]) for prompt, group in asked]) if asked else []
        scored: dict[str, Candidate] = {}
        for (_, group), given in zip(asked, found, strict=True):
            fingerprint = reward_fingerprint(group, rewards.fingerprint, joint=rewards.joint)
            for candidate, reward in zip(group, given, strict=True):
                if reward.failure:
                    self._progress.reward_failed(self._iteration, candidate.id, reward.failure)
                scored[candidate.id] = candidate.replace(reward=reward.value, reward_fingerprint=fingerprint)
        whole = [[scored.get(candidate.id, candidate) for candidate in item.candidates] for item in lists]
        ranked = [rank(of, seed=seed, prompt_id=item.prompt.id) for of, item in zip(whole, lists, strict=True)]
        return [item.replace(candidates=of) for of, item in zip(ranked, lists, strict=True)]

    async def _replay(self, present: set[str]) -> None:
        """Lists of prompts that this iteration did not draw come after the fresh ones."""
        memory = await self._remembered()
        if not self._config.lists.replay or not memory:
            return
        absent = replays(memory, present, self._iteration, seed=self._config.run.seed)
        size = self._config.stream.lists_per_part
        for start in range(0, len(absent), size):
            await self._offer(await self._ranked(absent[start : start + size]), {})


class Annotations:
    """The annotations of a run, one iteration after another; the next may begin while the trainer is in the one before.

    It has all lists of earlier iterations then, as it has when it begins in its turn.
    """

    def __init__(self, cast: Cast, progress: Progress, group: asyncio.TaskGroup) -> None:
        self._cast, self._progress, self._group = cast, progress, group
        self._begun: dict[int, tuple[Annotation, asyncio.Task[None]]] = {}

    def begin(self, iteration: int) -> None:
        """Unless it has begun."""
        if self.has_begun(iteration):
            return
        annotation = Annotation(self._cast, self._progress, iteration)
        self._begun[iteration] = annotation, self._group.create_task(annotation.annotate())

    def has_begun(self, iteration: int) -> bool:
        return iteration in self._begun

    async def end(self, iteration: int) -> None:
        """Until every list of the iteration has been offered."""
        self.begin(iteration)
        annotation, task = self._begun.pop(iteration)
        annotation.show()
        await task

    def cancel(self) -> None:
        """The run ends before the turn of what has begun."""
        for _, task in self._begun.values():
            task.cancel()


@asynccontextmanager
async def annotating(cast: Cast, progress: Progress) -> AsyncIterator[Annotations]:
    """An error of one that has begun early ends what is done within."""
    async with asyncio.TaskGroup() as group:
        found = Annotations(cast, progress, group)
        try:
            yield found
        finally:
            found.cancel()


def sample_task(run: PreparedRun, iteration: int, prompt: Prompt) -> SampleTask:
    """k responses, dealt evenly over the iteration's temperatures."""
    sampling = run.config.sampling
    return SampleTask(
        key=list_id(iteration, prompt.id),
        iteration=iteration,
        prompt_token_ids=run.token_ids[prompt.id],
        counts=sampling.counts(iteration),
        max_new_tokens=sampling.max_new_tokens,
        stop=sampling.stop,
        stop_token_ids=run.stop_token_ids,
    )
