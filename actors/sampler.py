"""The sampler actor: one engine, the newest weights, and what it did with its time."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engine import Engine, EngineOptions, Sample
from actors.titles import show_title
from actors.vitals import vitals
from actors.weights import Bucket, remove_orphans, write_bucket_files
from larpo.errors import SamplerError
from larpo.policy import PreparedPolicy, folder_on_this_node
from larpo.types import Candidate


@dataclass(frozen=True)
class SampleTask:
    """One prompt to sample: how many responses at which temperatures."""

    key: str  # unique within the run; candidates are named after it
    iteration: int
    prompt_token_ids: tuple[int, ...]
    counts: tuple[tuple[float, int], ...]  # (temperature, number of responses)
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()  # beside the model's own EOS
    ignore_eos: bool = False  # every response has `max_new_tokens`: for measurements

    @property
    def responses(self) -> int:
        return sum(count for _, count in self.counts)


@dataclass(frozen=True)
class SamplerStats:
    """What a sampler did since it started; `spans` are (start, end) in unix seconds, since the last call."""

    weight_version: int
    tokens: int = 0
    prompts: int = 0
    samples: int = 0
    in_flight: int = 0  # prompts
    busy_seconds: float = 0.0
    places_filled: float = 0.0  # share of the engine's places (`max_num_seqs`) that had a response while it worked
    pull_seconds: float = 0.0  # of the newest weight update: until the buckets lay in shared memory
    pull_bytes: int = 0  # of the newest weight update
    load_seconds: float = 0.0  # of the newest weight update: beside the weights in use, while these generate
    pause_seconds: float = 0.0  # of the newest weight update: nothing was generated
    spans: tuple[tuple[str, float, float], ...] = ()
    memory_bytes: int = 0  # that its processes hold
    first_token_seconds: float = 0.0  # from its first prompt to the engine's first token


class Sampler:
    """Wrapped by `ray.remote` where it is placed. `store` is a handle to a `WeightStore`.

    A prompt begins as soon as the engine has a place free, whatever else of the prompts before it still runs: so that
    places stay filled when responses differ in length, and what waits has not begun when new weights come.

    `finishes`: responses that have begun end before new weights are swapped in; else they go on under them.
    """

    def __init__(self, options: EngineOptions, policy: PreparedPolicy, store: Any, finishes: bool = True) -> None:
        self._options, self._policy, self._store, self._finishes = options, policy, store, finishes
        self._version = 0
        self._fixed: tuple[str, ...] = ()  # checksums of the fixed buckets that the engine has
        self._tokens = self._prompts = self._samples = self._in_flight = self._attempts = 0
        self._responses = 0  # that the engine is at
        self._looked_at = self._busy_since = self._busy_seconds = self._place_seconds = self._asleep_since = 0.0
        self._first_prompt_at = 0.0
        self._pull_seconds = self._load_seconds = self._pause_seconds = 0.0
        self._pull_bytes = 0
        self._spans: list[tuple[str, float, float]] = []
        self._updating = asyncio.Lock()
        self._takes_prompts, self._leaves = True, False
        self._idle, self._changed = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._doing = "starts"
        show_title(self.doing)

    def __repr__(self) -> str:
        return f"Sampler of {self._policy.path.name}"

    def doing(self) -> str:
        """For its process's title."""
        at_work = f"samples {self._in_flight} prompts" if self._in_flight else "idle"
        return f"{self._doing or at_work}, weights v{self._version}, {self._samples} samples so far"

    async def placed(self) -> str:
        """The id of the node that has the actor, once one has."""
        import ray

        return ray.get_runtime_context().get_node_id()

    async def start(self, version: int = 0) -> int:
        """Start the engine and pull the weights of that version, 0 being the model's own; returns it."""
        started = time.time()
        await asyncio.to_thread(remove_orphans, shared_memory_folder())
        folder = await asyncio.to_thread(folder_on_this_node, self._policy)
        self._engine = await Engine.start(folder, self._options)
        self._spans.append(("start", started, time.time()))
        self._doing = ""
        return await self.update(version)

    async def sample(self, task: SampleTask) -> list[Candidate]:
        """All responses to one prompt, in the order of `task.counts`."""
        temperatures = [temperature for temperature, count in task.counts for _ in range(count)]
        self._in_flight += 1
        try:
            await self._begin(task.responses)
            self._attempts += 1
            samples = await asyncio.gather(
                *(self._generate(task, f"{task.key}#{self._attempts}.{n}", t) for n, t in enumerate(temperatures))
            )
        finally:
            self._in_flight -= 1
        self._prompts += 1
        self._tokens += sum(len(sample.token_ids) for sample in samples)
        self._samples += len(samples)
        pairs = zip(temperatures, samples, strict=True)
        return [_candidate(task, number, t, sample) for number, (t, sample) in enumerate(pairs)]

    async def _begin(self, responses: int) -> None:
        """Wait until the engine has a place free, and take as many as there are responses; vLLM holds the rest."""
        while not self._takes_prompts or self._responses >= self._options.max_num_seqs:
            if self._leaves:
                raise SamplerError("the sampler leaves, and this prompt has not begun")
            self._changed.clear()
            await self._changed.wait()
        now = time.time()
        self._first_prompt_at = self._first_prompt_at or now
        if self._responses == 0:
            self._busy_since = now
            self._idle.clear()
        self._count_places(now)
        self._responses += responses

    def _generate(self, task: SampleTask, request_id: str, temperature: float) -> asyncio.Task[Sample]:
        response = self._engine.generate(
            request_id,
            task.prompt_token_ids,
            temperature=temperature,
            max_tokens=task.max_new_tokens,
            stop=task.stop,
            stop_token_ids=task.stop_token_ids,
            ignore_eos=task.ignore_eos,
        )
        running = asyncio.create_task(response)
        running.add_done_callback(self._response_ended)
        return running

    def _response_ended(self, _: asyncio.Task[Sample]) -> None:
        now = time.time()
        self._count_places(now)
        self._responses -= 1
        self._changed.set()
        if self._responses == 0:
            self._close_span(now)
            self._idle.set()

    def _count_places(self, now: float) -> None:
        """Up to now."""
        self._place_seconds += min(self._responses, self._options.max_num_seqs) * (now - self._looked_at)
        self._looked_at = now

    async def update(self, version: int) -> int:
        """Pull the weights of that version while requests run, and swap them in; returns the version in use."""
        async with self._updating:
            if version != self._version:
                started, self._doing = time.time(), f"takes weights v{version}"
                try:
                    await self._pull_from_store(version)
                finally:
                    self._doing = ""
                self._version = version
                self._spans.append(("update", started, time.time()))
            return self._version

    async def _pull_from_store(self, version: int) -> None:
        """Once more where the store died under the pull: Ray starts it again, and it holds the same versions."""
        from ray.exceptions import ObjectLostError

        try:
            await self._pull(version, await self._store.buckets.remote(version))
        except ObjectLostError:
            await self._pull(version, await self._store.buckets.remote(version))

    async def _pull(self, version: int, buckets: Sequence[Bucket]) -> None:
        started = time.time()
        fixed = tuple(bucket.checksum for bucket in buckets if bucket.fixed)
        wanted = [bucket for bucket in buckets if fixed != self._fixed or not bucket.fixed]
        data = await asyncio.gather(*(bucket.reference[0] for bucket in wanted))
        folder = shared_memory_folder()
        pairs = list(zip(wanted, data, strict=True))
        paths = await asyncio.to_thread(write_bucket_files, folder, version, pairs)
        self._pull_seconds, self._pull_bytes = time.time() - started, sum(bucket.nbytes for bucket in wanted)
        try:
            loading = time.time()
            if await self._engine.prepare_weights(paths, partial=len(wanted) < len(buckets)):
                _unlink(paths)
            self._load_seconds = time.time() - loading
            if self._finishes:
                self._takes_prompts = False
                await self._idle.wait()
            self._pause_seconds = await self._engine.swap_weights(version)
            self._fixed = fixed
        finally:
            self._takes_prompts = True
            self._changed.set()
            _unlink(paths)

    async def stats(self) -> SamplerStats:
        """Counters so far; raises when the engine's own processes have died."""
        await self._engine.check_health()
        now = time.time()
        self._count_places(now)
        if self._responses:
            self._close_span(now)
            self._busy_since = now
        spans, self._spans = tuple(self._spans), []
        return SamplerStats(
            weight_version=self._version,
            tokens=self._tokens,
            prompts=self._prompts,
            samples=self._samples,
            in_flight=self._in_flight,
            busy_seconds=self._busy_seconds,
            places_filled=self._place_seconds / max(1e-6, self._busy_seconds * self._options.max_num_seqs),
            pull_seconds=self._pull_seconds,
            pull_bytes=self._pull_bytes,
            load_seconds=self._load_seconds,
            pause_seconds=self._pause_seconds,
            spans=spans,
            memory_bytes=vitals().memory_bytes,
            first_token_seconds=(self._engine.first_token_at or self._first_prompt_at) - self._first_prompt_at,
        )

    async def leave(self) -> None:
        """Begin none of the prompts that wait here: each raises SamplerError, and is for another sampler."""
        self._leaves = True
        self._changed.set()

    async def pid(self) -> int:
        import os

        return os.getpid()

    async def sleep(self) -> None:
        """Leave the GPU to the trainer; nothing may be sampled until `wake`."""
        await self._engine.sleep()
        self._asleep_since = time.time()

    async def wake(self) -> None:
        self._spans.append(("sleep", self._asleep_since, time.time()))
        await self._engine.wake()

    async def shutdown(self) -> None:
        self._engine.shutdown()

    def _close_span(self, now: float) -> None:
        self._busy_seconds += now - self._busy_since
        self._spans.append(("sample", self._busy_since, now))


def _candidate(task: SampleTask, number: int, temperature: float, sample: Sample) -> Candidate:
    return Candidate(
        id=f"{task.key}/{number}",
        text=sample.text,
        token_ids=sample.token_ids,
        log_probs=sample.log_probs,
        finish_reason=sample.finish_reason,
        temperature=temperature,
        origin="sampled",
        iteration=task.iteration,
        versions=sample.versions,
    )


def shared_memory_folder() -> Path:
    """Where files live in memory; the temporary folder on systems without /dev/shm."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(tempfile.gettempdir())


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
