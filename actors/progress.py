"""What the run is doing now: counters that the conductor sets, how much of the work is behind it, and the time left."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from actors.console_page import RunState, SamplerState
from actors.telemetry import Telemetry
from larpo.busy import Span, busy_metrics, overlap_metrics, within
from larpo.config import Config
from larpo.masking import redact

STARTING, SAMPLING, EVALUATING = "starting engines and trainer", "sampling and ranking", "held-out evaluation"
EVALUATING_SNAPSHOT = "evaluation of a snapshot"
TRAINING, WRITING = "training", "writing the model"

FAILURES_NAMED = 5  # reward failures that are logged one by one; the rest are counted
SPAN_S, SPAN_GAP_S = 30.0, 0.02  # longest span that is told as one, and what may lie between two parts of it


class Workload:
    """How much a run samples and trains, and which share of it lies behind a point of the run."""

    def __init__(self, config: Config) -> None:
        training, self._each = config.training, config.evaluation.each_iteration
        self.iterations = training.iterations
        steps = -(-training.prompts_per_iteration // training.lists_per_step) * training.epochs
        self.steps = steps * self.iterations
        self.snapshots = snapshots_planned(config.evaluation.every_steps, steps, self.iterations)
        self._list, self._answer = config.sampling.k, config.evaluation.samples + 1
        self._annotation = training.prompts_per_iteration * self._list
        self._evaluation = config.prompts.heldout_count * self._answer
        self.samples = config.preferences.source is None  # else all that takes time is training

    def share_done(self, phase: str, iteration: int, ranked: int, step: int) -> float:
        """Half counts the responses, half the optimizer steps; `ranked` prompts of this phase are done.

        Dropped lists leave fewer steps than planned: an iteration that is over counts as trained.
        """
        responses = self._responses_before(iteration)
        if phase == SAMPLING:
            responses += ranked * self._list
        elif phase == EVALUATING:
            responses += ranked * self._answer + (self._annotation if iteration < self.iterations else 0)
        elif phase in (TRAINING, EVALUATING_SNAPSHOT, WRITING):
            responses = self._responses_before(iteration + 1)
        trained = min(1.0, max(step / self.steps, iteration / self.iterations))
        snapshots = self.snapshots * self._evaluation  # they come as the steps do
        sampled = (responses + trained * snapshots) / (self._responses_before(self.iterations + 1) + snapshots)
        return (min(1.0, sampled) + trained) / 2 if self.samples else trained

    @property
    def evaluations(self) -> int:
        """How often the held-out prompts are evaluated at most, the base policy's evaluation among them."""
        return 1 + (self.iterations if self._each else 1) + self.snapshots

    def _responses_before(self, iteration: int) -> int:
        """The base policy is evaluated in the first iteration, the aligned one after the last."""
        annotations = min(iteration, self.iterations)
        evaluations = iteration if self._each else min(iteration, 1) + (iteration > self.iterations)
        return annotations * self._annotation + evaluations * self._evaluation


def snapshots_planned(every: int | None, steps: int, iterations: int) -> int:
    """How many evaluations fall within iterations of so many steps: an iteration's own end is none of them.

    >>> snapshots_planned(4, steps=8, iterations=2), snapshots_planned(3, steps=8, iterations=2)
    (2, 5)
    """
    if every is None:
        return 0
    ends = range(steps, steps * iterations + 1, steps)
    return sum(step not in ends for step in range(every, steps * iterations + 1, every))


class Progress:
    """Counters of the run and the way to telemetry; lives in the driver."""

    def __init__(self, config: Config, telemetry: Telemetry) -> None:
        self._config, self._telemetry = config, telemetry
        self._workload = Workload(config)
        self._started = time.time()
        self.refresh_s = config.telemetry.refresh_s
        self.iterations = self._workload.iterations
        self.phase, self.iteration = "starting", 0
        self.sampled = self.ranked = self.total = 0
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
        self._iteration_since: float | None = None
        self._ended: deque[tuple[int, float, float]] = deque()  # iterations whose spans may not all be told yet
        self._since: tuple[float, float] | None = None  # when this session's work began, and the share before it

    def begin(self, phase: str, iteration: int, total: int, already: int = 0) -> None:
        """A phase of the conductor begins; `already` of its prompts were done before a restart."""
        self.phase, self.iteration = phase, iteration
        if phase != STARTING:
            self._iteration_since = self._iteration_since or time.time()
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
        """Tell the spans that are held, and the iterations that have ended."""
        self.looked(math.inf)
        self._flush_spans()

    def _flush_spans(self) -> None:
        for held in self._held.values():
            self._tell(held)
        self._held.clear()

    def _tell(self, span: Span | None) -> None:
        if span is not None:
            self._spans.append(span)
            self._telemetry.log("span", **vars(span))

    def end_iteration(self, iteration: int) -> None:
        """The first one's time begins with the work: engines that start are left out.

        What its actors did to its end is heard at the next look, and then told.
        """
        now = time.time()
        self._ended.append((iteration, self._iteration_since or now, now))
        self._iteration_since = now

    def looked(self, began: float) -> None:
        """Everyone was asked at that time or later: tell the iterations that had ended by then, and who was busy."""
        while self._ended and self._ended[0][2] <= began:
            self._flush_spans()
            iteration, since, until = self._ended.popleft()
            spans = within(self._spans, since, until)
            shares = {**busy_metrics(spans, until - since), **overlap_metrics(spans, until - since)}
            self._telemetry.log("iteration", shares, iteration=iteration)
            self._spans = [span for span in self._spans if span.end > until]

    def place(self) -> dict[str, float]:
        """Where the run is."""
        share = self._workload.share_done(self.phase, self.iteration, self.ranked, self.step)
        return {
            "run/seconds": self._telemetry.seconds(),
            "run/iteration": float(min(self.iteration + 1, self._workload.iterations)),
            "run/step": float(self.step),
            "run/done": share,
        }

    def alarm(self, message: str) -> None:
        self._alarms.append(redact(message))
        self._telemetry.log("alarm", message=message)

    def failed(self, actor: str, reason: str) -> None:
        self._alarms.append(redact(f"{actor}: {reason.splitlines()[0]}")[:200])
        self._telemetry.log("failure", actor=actor, reason=reason)

    def reward_failed(self, iteration: int, candidate: str, reason: str) -> None:
        """The first few failures are told one by one, all are counted."""
        self._reward_failures += 1
        if self._reward_failures <= FAILURES_NAMED:
            self.alarm(f"reward of {candidate} failed: {reason}")
        self._telemetry.log("lists", {"reward/failures": 1.0}, iteration=iteration)

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
        state = RunState(
            phase=self.phase,
            iteration=min(self.iteration, self._workload.iterations - 1),
            iterations=self._workload.iterations,
            prompts_sampled=self.sampled,
            prompts_ranked=self.ranked,
            prompts_total=self.total,
            samples=self._workload.samples,
            lists_in_stream=self.waiting,
            stream_capacity=self._config.stream.capacity,
            step=self.step,
            steps_planned=self._workload.steps,
            loss=self.loss,
            mean_reward=sum(self._rewards) / len(self._rewards) if self._rewards else None,
            tokens_per_second=self.tokens_per_second,
            samplers=self.samplers,
            seconds_elapsed=time.time() - self._started,
            alarms=tuple(self._alarms),
        )
        return replace(state, seconds_left=self._seconds_left())

    def _seconds_left(self) -> float | None:
        """If the rest goes as what this session has done: starting up does not count, nor what was done before."""
        if not self.total:
            return None
        share, now = self._workload.share_done(self.phase, self.iteration, self.ranked, self.step), time.time()
        since, before = self._since = self._since or (now, share)
        done = share - before
        return (now - since) * (1 - share) / done if done >= 0.01 else None

    def show(self) -> None:
        self._telemetry.update(self.state())
