"""Asks stream and samplers what they do, and passes on what they say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

from actors.console_page import SamplerState
from actors.pool import Member
from actors.progress import Progress
from actors.sampler import SamplerStats
from actors.work import StreamStatus
from larpo.errors import PhaseTimeout, TrainingError


class Monitor:
    """Asks stream and samplers every `telemetry.refresh_s` and passes on what they say."""

    def __init__(self, cast: Any, progress: Progress) -> None:
        self._cast, self._progress = cast, progress
        self._versions: dict[str, int] = {}
        self._counted: Counter[str] = Counter()  # by the samplers, since the start
        self._logged: Counter[str] = Counter()  # of these, what earlier records hold
        self._tokens_then = 0  # at the look before

    async def watch(self) -> None:
        """Until cancelled. An error of the monitor is the run's: a stream that is gone ends it."""
        while True:
            await self.look()
            await asyncio.sleep(self._progress.refresh_s)

    async def look(self) -> None:
        moving = self._counted["sampler/tokens"] > self._tokens_then
        self._tokens_then = self._counted["sampler/tokens"]
        status = await self._cast.call(self._cast.stream.status, moving, limit_s=120.0)
        self._progress.waiting = status.waiting
        flow = {
            "stream/lists": float(status.waiting),
            "stream/producer_wait_seconds": status.producer_wait_seconds,
            "stream/consumer_wait_seconds": status.consumer_wait_seconds,
        }
        if self._cast.samplers is not None:
            flow["sampler/tokens_per_second"] = self._progress.tokens_per_second or 0.0
        for record in status.reports:
            self._pass_on(record, flow)
        for message in status.alarms:
            self._progress.alarm(message)
        if status.error is not None:
            raise TrainingError(status.error)
        self._check_trainer(status)
        if self._cast.samplers is not None:
            await self._cast.samplers.poll()
            self._samplers()
        self._progress.show()

    def _check_trainer(self, status: StreamStatus) -> None:
        """A trainer that says nothing for longer than a step may take has hung: the run ends, and says so."""
        timeouts, iterations = self._cast.run.config.timeouts, self._cast.run.config.training.iterations
        if status.trained_iterations >= iterations:
            return
        name = "step_s" if status.trainer_started else "trainer_start_s"
        limit = getattr(timeouts, name)
        if status.trainer_silent_s > limit:
            raise PhaseTimeout(
                f"the trainer has been silent for {status.trainer_silent_s:.0f} s, over timeouts.{name} = {limit:g}:"
                " raise the limit if a step may take that long, or look for a hung rank in Ray's dashboard"
            )

    def _pass_on(self, record: Mapping[str, Any], flow: Mapping[str, float]) -> None:
        for kind, start, end in record["spans"]:
            self._progress.span(f"trainer-{record['rank']}", kind, start, end)
            if kind == "publish" and record["rank"] == 0:
                self._progress.log("weights", {"weights/publish_seconds": end - start})
        if "metrics" in record:
            metrics = {**record["metrics"], **flow, **self._new_counts()}
            self._progress.step, self._progress.loss = record["step"], metrics["train/loss"]
            fields = {key: record[key] for key in ("step", "iteration", "epoch")}
            self._progress.log("step", metrics, **fields)

    def _new_counts(self) -> dict[str, float]:
        """What the samplers have counted since the last record."""
        pool = self._cast.samplers
        if pool is None:
            return {}
        self._counted |= Counter({"sampler/restarts": pool.restarts, "sampler/requeued": pool.requeued})
        names = ("sampler/tokens", "sampler/prompts", "sampler/restarts", "sampler/requeued")
        new = {name: float(self._counted[name] - self._logged[name]) for name in names}
        self._logged = self._counted.copy()
        return new

    def _samplers(self) -> None:
        members = self._cast.samplers.members
        for member in members:
            if member.stats is not None:
                self._take(member, member.stats)
                member.stats = None
        self._progress.samplers = tuple(SamplerState(m.name, m.version, _doing(m)) for m in members)
        if any(member.ready.is_set() for member in members):
            self._progress.tokens_seen(self._counted["sampler/tokens"])

    def _take(self, member: Member, stats: SamplerStats) -> None:
        """What a sampler says that it did; one that took another's place counts from zero."""
        if stats.tokens < member.tokens or stats.prompts < member.prompts:
            member.tokens = member.prompts = 0
        self._counted["sampler/tokens"] += stats.tokens - member.tokens
        self._counted["sampler/prompts"] += stats.prompts - member.prompts
        member.tokens, member.prompts, member.busy = stats.tokens, stats.prompts, stats.in_flight > 0
        if stats.weight_version != self._versions.setdefault(member.name, 0):
            self._versions[member.name] = stats.weight_version
            self._progress.log(
                "weights",
                {
                    "weights/version": float(stats.weight_version),
                    "weights/pull_seconds": stats.pull_seconds,
                    "weights/pause_seconds": stats.pause_seconds,
                    "weights/gib": stats.pull_bytes / 2**30,
                },
            )
        for kind, start, end in stats.spans:
            self._progress.span(member.name, kind, start, end)


def _doing(member: Member) -> str:
    if member.status != "ready":
        return member.status
    return "sampling" if member.busy else "idle"
