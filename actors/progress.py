"""What the run is doing now: counters that the conductor sets, and a monitor that asks the actors."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from actors.console_page import RunState, SamplerState, estimate_left, share_done
from actors.sampler import SamplerStats
from actors.stream import StreamStatus
from actors.telemetry import Telemetry
from larpo.config import Config
from larpo.errors import PhaseTimeout
from larpo.run_log import Span, busy_metrics

FAILURES_NAMED = 5  # reward failures that are logged one by one; the rest are counted
SPAN_S, SPAN_GAP_S = 30.0, 0.3  # longest span that is told as one, and the longest pause within one


class Progress:
    """Counters of the run and the way to telemetry; lives in the driver."""

    def __init__(self, config: Config, telemetry: Telemetry) -> None:
        self._config, self._telemetry = config, telemetry
        self._started = time.time()
        self.refresh_s = config.telemetry.refresh_s
        self.phase, self.iteration = "starting", 0
        self.sampled = self.ranked = self.total = 0
        self._already = 0
        self.step = 0
        self.waiting = 0
        self.loss: float | None = None
        self._reward_failures = 0
        self._rewards: deque[float] = deque(maxlen=16)
        self._alarms: deque[str] = deque(maxlen=3)
        self._tokens: deque[tuple[float, int]] = deque(maxlen=12)
        self.samplers: tuple[SamplerState, ...] = ()
        self._spans: list[Span] = []
        self._held: dict[tuple[str, str], Span] = {}
        self._share_before: float | None = None  # of the run, done before this session

    def begin(self, phase: str, iteration: int, total: int, already: int = 0) -> None:
        """A phase of the conductor begins; `already` of its prompts were done before a restart."""
        self.phase, self.iteration = phase, iteration
        self.sampled = self.ranked = already
        self.total = total
        self.show()

    def log(self, event: str, metrics: Mapping[str, float] | None = None, **fields: Any) -> None:
        if metrics and "lists/reward_mean" in metrics:
            self._rewards.append(metrics["lists/reward_mean"])
        self._telemetry.log(event, metrics, **fields)

    def span(self, actor: str, kind: str, start: float, end: float) -> None:
        """An actor did something; what follows at once on the same is told as one, in pieces of SPAN_S."""
        held = self._held.get((actor, kind))
        if held and start - held.end < SPAN_GAP_S and end - held.start < SPAN_S:
            self._held[actor, kind] = Span(actor, kind, held.start, end)
            return
        self._tell(held)
        self._held[actor, kind] = Span(actor, kind, start, end)

    def flush(self) -> None:
        """Tell the spans that are held."""
        for held in self._held.values():
            self._tell(held)
        self._held.clear()

    def _tell(self, span: Span | None) -> None:
        if span is not None:
            self._spans.append(span)
            self._telemetry.log("span", **vars(span))

    def busy(self) -> dict[str, float]:
        """Busy shares of samplers, reward model and trainer in this session."""
        self.flush()
        return busy_metrics(self._spans)

    def alarm(self, message: str) -> None:
        self._alarms.append(message)
        self._telemetry.log("alarm", message=message)

    def failed(self, actor: str, reason: str) -> None:
        self._alarms.append(f"{actor}: {reason}"[:200])
        self._telemetry.log("failure", actor=actor, reason=reason)

    def reward_failed(self, candidate: str, reason: str) -> None:
        """The first few failures are told one by one, all are counted."""
        self._reward_failures += 1
        if self._reward_failures <= FAILURES_NAMED:
            self.alarm(f"reward of {candidate} failed: {reason}")
        self._telemetry.log("lists", {"reward/failures": 1.0}, iteration=self.iteration)

    def say(self, line: str) -> None:
        self._telemetry.say(line)

    def tokens_seen(self, tokens: int) -> None:
        """Total response tokens of all samplers now, for the rate of the last seconds."""
        self._tokens.append((time.time(), tokens))

    @property
    def tokens_per_second(self) -> float | None:
        if len(self._tokens) < 2:
            return None
        (then, before), (now, after) = self._tokens[0], self._tokens[-1]
        return max(0.0, (after - before) / max(1e-9, now - then))

    def state(self) -> RunState:
        training = self._config.training
        planned = -(-training.prompts_per_iteration // training.lists_per_step)
        elapsed = time.time() - self._started
        state = RunState(
            phase=self.phase,
            iteration=min(self.iteration, training.iterations - 1),
            iterations=training.iterations,
            prompts_sampled=self.sampled,
            prompts_ranked=self.ranked,
            prompts_total=self.total,
            lists_in_stream=self.waiting,
            stream_capacity=self._config.stream.capacity,
            step=self.step,
            steps_planned=planned * training.epochs * training.iterations,
            loss=self.loss,
            mean_reward=sum(self._rewards) / len(self._rewards) if self._rewards else None,
            tokens_per_second=self.tokens_per_second,
            samplers=self.samplers,
            seconds_elapsed=elapsed,
            alarms=tuple(self._alarms),
        )
        return replace(state, seconds_left=self._seconds_left(state))

    def _seconds_left(self, state: RunState) -> float | None:
        """From what this session has done: a resumed run is not credited with what was done before."""
        if not state.prompts_total:
            return None
        done = share_done(state)
        if self._share_before is None:
            self._share_before = done
        mine = (done - self._share_before) / max(1e-9, 1 - self._share_before)
        return estimate_left(mine, state.seconds_elapsed)

    def show(self) -> None:
        self._telemetry.update(self.state())


class Monitor:
    """Asks stream and samplers every `telemetry.refresh_s` and passes on what they say."""

    def __init__(self, cast: Any, progress: Progress) -> None:
        self._cast, self._progress = cast, progress
        self._flow: dict[str, float] = {}
        self._restarts = 0
        self._versions: dict[str, int] = {}

    async def watch(self) -> None:
        """Until cancelled. An error of the monitor is the run's: a stream that is gone ends it."""
        while True:
            await self.look()
            await asyncio.sleep(self._progress.refresh_s)

    async def look(self) -> None:
        status = await self._cast.call(self._cast.stream.status, limit_s=120.0)
        self._progress.waiting = status.waiting
        self._flow = {
            "stream/lists": float(status.waiting),
            "stream/producer_wait_seconds": status.producer_wait_seconds,
            "stream/consumer_wait_seconds": status.consumer_wait_seconds,
            "sampler/tokens_per_second": self._progress.tokens_per_second or 0.0,
            "sampler/restarts": float(self._cast.samplers.restarts - self._restarts),
        }
        self._restarts = self._cast.samplers.restarts
        self._check_trainer(status)
        for record in status.reports:
            self._pass_on(record)
        for message in status.alarms:
            self._progress.alarm(message)
        await self._cast.samplers.poll()
        self._samplers()
        self._progress.show()

    def _check_trainer(self, status: StreamStatus) -> None:
        """A trainer that says nothing for longer than a step may take has hung: the run ends, and says so."""
        timeouts = self._cast.run.config.timeouts
        name = "step_s" if status.trainer_started else "trainer_start_s"
        limit = getattr(timeouts, name)
        if status.trainer_silent_s > limit:
            raise PhaseTimeout(
                f"the trainer has been silent for {status.trainer_silent_s:.0f} s, over timeouts.{name} = {limit:g}:"
                " raise the limit if a step may take that long, or look for a hung rank in Ray's dashboard"
            )

    def _pass_on(self, record: Mapping[str, Any]) -> None:
        for kind, start, end in record["spans"]:
            self._progress.span(f"trainer-{record['rank']}", kind, start, end)
            if kind == "publish" and record["rank"] == 0:
                self._progress.log("weights", {"weights/publish_seconds": end - start})
        if "metrics" in record:
            metrics = {**record["metrics"], **self._flow}
            self._progress.step, self._progress.loss = record["step"], metrics["train/loss"]
            fields = {key: record[key] for key in ("step", "iteration", "epoch")}
            self._progress.log("step", metrics, **fields)

    def _log_update(self, name: str, stats: SamplerStats) -> None:
        """The first look at a sampler under new weights tells how long they took."""
        if stats.weight_version != self._versions.setdefault(name, 0):
            self._versions[name] = stats.weight_version
            seconds = {"weights/pull_seconds": stats.pull_seconds, "weights/pause_seconds": stats.pause_seconds}
            self._progress.log("weights", {"weights/version": float(stats.weight_version), **seconds})

    def _samplers(self) -> None:
        members = self._cast.samplers.members
        states, tokens = [], 0
        for member in members:
            stats, status = member.stats, member.status
            if stats is not None:
                tokens += stats.tokens
                self._log_update(member.name, stats)
                for kind, start, end in stats.spans:
                    self._progress.span(member.name, kind, start, end)
                member.stats = None
                member.tokens = stats.tokens
                if status == "ready":
                    status = "sampling" if stats.in_flight else "idle"
            else:
                tokens += member.tokens
            states.append(SamplerState(member.name, member.version, status))
        self._progress.samplers = tuple(states)
        if any(member.ready.is_set() for member in members):
            self._progress.tokens_seen(tokens)
