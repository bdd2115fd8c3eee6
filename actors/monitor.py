"""Asks stream and samplers what they do, and passes on what they say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from actors.console_page import SamplerState
from actors.flow import Flow
from actors.members import Member
from actors.obituary import obituary, told
from actors.progress import Progress
from actors.sampler import SamplerStats
from actors.scaler import Scaler
from actors.vitals import Vitals
from actors.watchdog import Watchdog, parts_of
from actors.work import StreamStatus
from larpo.errors import PhaseTimeout, TrainingError


class Monitor:
    """Asks stream and samplers every `telemetry.refresh_s` and passes on what they say."""

    def __init__(self, cast: Any, progress: Progress) -> None:
        self._cast, self._progress = cast, progress
        self._flow = Flow(progress)
        self._versions: dict[str, int] = {}
        self._tokens_then = 0  # at the look before
        elastic = cast.samplers is not None and cast.run.config.samplers.is_elastic
        self._scaler = Scaler(cast.run.config, cast.samplers, progress) if elastic else None
        self._over = asyncio.Event()
        self._watchdog = Watchdog(cast.run.config.timeouts.stalled_s)
        self._store: asyncio.Task[Vitals] | None = None  # what the store was asked
        self._vitals: dict[str, Vitals] = {}  # of stream and store, at the look before
        self._memory: dict[int, int] = {}  # bytes that each rank of the trainer held when it last spoke

    async def watch(self) -> None:
        """Until `end`. An error of the monitor is the run's: a stream that is gone ends it."""
        while not self._over.is_set():
            await self.look()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), self._progress.refresh_s)

    def end(self) -> None:
        """No look is begun any more; the one in progress has taken from the stream what nobody else will be told."""
        self._over.set()

    async def look(self, *, last: bool = False) -> None:
        """Ask once; `last`: tell all that was not told yet."""
        began = time.time()
        self._store = self._store or self._ask_store()
        moving, self._tokens_then = self._flow.tokens > self._tokens_then, self._flow.tokens
        limit, knob = self._cast.run.config.timeouts.answer_s, "timeouts.answer_s"
        status = await self._cast.call(self._cast.stream.status, moving, limit_s=limit, knob=knob)
        self._progress.waiting = status.waiting
        pool = self._cast.samplers
        for record in status.reports:
            self._pass_on(record)
        for message in status.alarms:
            self._progress.alarm(message)
        for each in status.failures:
            reason = await told(each.reason, each.actor_id, self._memory.get(each.rank, 0))
            self._progress.failed(f"trainer-{each.rank}", reason)
        await self._same_process("stream", self._cast.stream, status.vitals)
        if self._store.done():
            await self._same_process("store", self._cast.store, await self._store)
            self._store = self._ask_store()
        if status.error is not None:
            raise TrainingError(status.error)
        self._check_trainer(status)
        if pool is not None:
            await pool.poll()
            for message in pool.take_alarms():
                self._progress.alarm(message)
            self._samplers()
        if self._cast.rewards is not None:
            await self._cast.rewards.poll()
            for actor, start, end in self._cast.rewards.doing.take():
                self._flow.span(actor, "rank", start, end)
        if self._scaler is not None:
            self._scaler.look(status)
        self._flow.tell(status, self._cast.samplers, last=last)
        still = self._watchdog.look(parts_of(self._cast, self._progress, status, self._flow.tokens))
        if still:
            self._progress.alarm(still)
        self._progress.looked(began)
        self._progress.show()

    def _ask_store(self) -> asyncio.Task[Vitals]:
        """It answers between two publications: nobody waits for that here."""
        timeouts = self._cast.run.config.timeouts
        limit = timeouts.weights_s + timeouts.answer_s
        return asyncio.create_task(self._cast.call(self._cast.store.vitals, limit_s=limit))

    async def _same_process(self, name: str, actor: Any, found: Vitals) -> None:
        """Tell of an actor that Ray has started again."""
        before = self._vitals.get(name, found)
        if before.process != found.process:
            self._progress.failed(name, await obituary(None, actor, before.memory_bytes))
        self._vitals[name] = found

    def _check_trainer(self, status: StreamStatus) -> None:
        """A trainer that says nothing for longer than a step may take has hung: the run ends, and says so."""
        timeouts, iterations = self._cast.run.config.timeouts, self._cast.run.config.training.iterations
        if status.trained_iterations >= iterations:
            return
        name, what, where = "trainer_start_s", "the start of its group", "what its ranks or nodes wait for"
        if status.trainer_started:
            name, what, where = "step_s", "a step", "a hung rank"
        limit = getattr(timeouts, name)
        if status.trainer_silent_s > limit:
            raise PhaseTimeout(
                f"the trainer has been silent for {status.trainer_silent_s:.0f} s, over timeouts.{name} = {limit:g}:"
                f" raise the limit if {what} may take that long (in a new run), or look for {where} in Ray's dashboard"
                " and resume"
            )

    def _pass_on(self, record: Mapping[str, Any]) -> None:
        self._memory[record["rank"]] = record.get("memory_bytes", 0)
        for kind, start, end in record["spans"]:
            self._flow.span(f"trainer-{record['rank']}", kind, start, end)
            if kind == "publish" and record["rank"] == 0:
                self._progress.log("weights", {"weights/publish_seconds": end - start})
        _tell_step(self._progress, record)

    def _samplers(self) -> None:
        pool = self._cast.samplers
        members, departed, pool.departed = pool.members, pool.departed, []
        for member in (*departed, *members):
            if member.stats is not None:
                self._take(member, member.stats)
                member.stats = None
        for member in departed:
            self._flow.left(member)
            self._versions.pop(member.name, None)
        self._progress.samplers = tuple(SamplerState(m.name, m.version, _doing(m)) for m in members)
        if any(member.ready.is_set() for member in members):
            self._progress.tokens_seen(self._flow.tokens)

    def _take(self, member: Member, stats: SamplerStats) -> None:
        """What a sampler says that it did."""
        self._flow.take(member.name, stats)
        member.busy = stats.in_flight > 0
        if stats.weight_version != self._versions.setdefault(member.name, 0):
            self._versions[member.name] = stats.weight_version
            self._progress.log(
                "weights",
                {
                    "weights/version": float(stats.weight_version),
                    "weights/pull_seconds": stats.pull_seconds,
                    "weights/load_seconds": stats.load_seconds,
                    "weights/pause_seconds": stats.pause_seconds,
                    "weights/gib": stats.pull_bytes / 2**30,
                },
                sampler=member.name,
            )
        for kind, start, end in stats.spans:
            self._flow.span(member.name, kind, start, end)


def _doing(member: Member) -> str:
    if member.status != "ready":
        return member.status
    return "sampling" if member.busy else "idle"


async def last_words(cast: Any, progress: Progress) -> None:
    """Tell the steps that the trainer ended when nobody looked any more, as the run was stopped."""
    limit = cast.run.config.timeouts.shutdown_s
    try:
        status = await cast.call(cast.stream.status, limit_s=limit, knob="timeouts.shutdown_s")
    except Exception as error:  # the run is stopped all the same
        progress.say(f"the trainer's last steps are not told ({type(error).__name__}: {error})")
        return
    for record in status.reports:
        _tell_step(progress, record)


def _tell_step(progress: Progress, record: Mapping[str, Any]) -> None:
    """What rank 0 says of a step; other records have no metrics."""
    if "metrics" in record:
        metrics = record["metrics"]
        progress.step, progress.loss = record["step"], metrics["train/loss"]
        progress.log("step", metrics, **{key: record[key] for key in ("step", "iteration", "epoch")})
