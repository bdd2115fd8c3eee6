"""The Ray Train worker loop: what each rank of the trainer does with the stream's work.

A rank asks the stream for the work at its position and does it: an optimizer step, or the end of an iteration
(publish the weights, checkpoint), until the run ends. Ray Train restarts the group when a rank dies; each start goes
on from the newest whole checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.policies import policy_folder, roll_back
from actors.rank_home import RankHome
from actors.titles import show_title
from actors.vitals import vitals
from actors.work import IterationEnd, Journal, RunEnd, StepWork, Work
from larpo.best_policy import Point
from larpo.config import Config
from larpo.home import Home, home_of
from larpo.policy import PreparedPolicy, folder_on_this_node
from larpo.staleness import staleness


@dataclass(frozen=True)
class TrainSpec:
    """What the conductor gives every rank; small, picklable."""

    config: Config
    policy: PreparedPolicy
    run_dir: str  # on the driver's node
    stream: Any  # handle to the ListStream actor
    store: Any  # handle to the WeightStore actor
    turns: Any = None  # handle to the Turns actor, where sampler and trainer share a GPU by turns

    @property
    def home(self) -> Home:
        return home_of(self.config, Path(self.run_dir))

    @property
    def checkpoints(self) -> Path:
        return Path(self.run_dir) / "checkpoints"


def train_loop(settings: dict[str, Any]) -> None:
    """Entry point of every rank, called by Ray Train with {"spec": TrainSpec}."""
    import ray

    from larpo.errors import LarpoError

    spec: TrainSpec = settings["spec"]
    try:
        Rank(spec).run()
    except LarpoError as error:  # starting again would meet it again: tell the conductor instead
        message = f"{type(error).__name__}: {error}"
        ray.get(spec.stream.fail.remote(message), timeout=spec.config.timeouts.answer_s)


class Rank:
    """One rank: the engine, the reference, and the place in the stream's lineage."""

    def __init__(self, spec: TrainSpec) -> None:
        import ray.train

        from actors.given_evaluation import HeldoutLists
        from actors.publishing import Publisher
        from actors.trainer_engine import TrainerEngine
        from actors.turns import Visits
        from actors.zero_engine import gather

        context = ray.train.get_context()
        self._spec, self._config = spec, spec.config
        self._rank, self._ranks = context.get_world_rank(), context.get_world_size()
        self._spans: list[tuple[str, float, float]] = []
        answer = ("answer_s", spec.config.timeouts.answer_s)
        give_sign = partial(self._call, spec.stream.waits_for_turn, limit=answer)
        self._visits = Visits(spec.turns, spec.config.timeouts, give_sign)
        self._position = self._step = self._since_publish = self._bad_steps = 0
        self._saved = self._saved_step = 0  # position of the newest checkpoint, and its step
        self._journal = Journal()
        self._visits.enter()
        started, self._doing = time.time(), "starts"
        show_title(self.doing)
        self._engine = TrainerEngine(spec.config, folder_on_this_node(spec.policy), self._rank, self._ranks)
        self._home = RankHome(spec.home.on_this_node(), self._rank, gather)
        self._run_dir = self._home.home.folder
        self._publisher = Publisher(self._engine, self._home, self._rank, spec.store, spec.stream, self._call)
        self._restore()
        self._load_reference()
        self._span("start", started)
        self._heldout = HeldoutLists(spec.config, self._home, self._rank, self._ranks)
        self._heldout.forget_after(self._journal.iteration)
        if (
            self._journal.begins_iteration
        ):  # else the policy of the iteration's beginning was judged before its first step
            self._judge()
        self._visits.leave(self._engine)

    def doing(self) -> str:
        """For its process's title."""
        who = f"trainer-{self._rank} of {Path(self._spec.run_dir).name}: {self._doing}"
        if self._doing == "starts":  # there is nothing else yet
            return who
        where = f"iteration {self._journal.iteration + 1}, after step {self._step}, weights v{self._publisher.version}"
        return f"{who}, {where}"

    def run(self) -> None:
        while True:
            waited, self._doing = time.time(), "waits for lists"
            work = self._next_work()
            if not isinstance(work, RunEnd):
                self._visits.enter(self._engine)
            self._doing = "trains" if isinstance(work, StepWork) else "publishes"
            self._span("wait", waited)
            match work:
                case StepWork():
                    self._write_snapshot(work.iteration)
                    self._train(work, time.time() - waited)
                case IterationEnd():
                    self._end_iteration(work)
                case RunEnd():
                    if work.position != self._saved:  # the run is stopped within an iteration
                        self._checkpoint(work.position)
                    self._send({})
                    return
            self._position += 1

    def _next_work(self) -> Work:
        """As long as the stream lets it wait, which ends that when nothing moves; meanwhile it is asked for a sign."""
        import ray

        work = self._spec.stream.next_work.remote(self._rank, self._ranks, self._position)
        while not ray.wait([work], timeout=self._config.timeouts.answer_s)[0]:
            self._call(self._spec.stream.is_there, limit=("answer_s", self._config.timeouts.answer_s))
        return ray.get(work)

    def _train(self, work: StepWork, waited: float) -> None:
        from larpo.schedule import learning_rate

        started = time.time()
        rate = learning_rate(self._config.training.optimizer, work.planned_share)
        metrics, references = self._engine.step(
            work,
            rate,
            self._reference_name,
            on_policy=self._since_publish == 0,
            policy_is_reference=self._policy_is_reference,
        )
        self._journal = self._journal.after(work)
        self._step += 1
        self._since_publish += 1
        self._span("train", started)
        seconds = time.time() - started
        metrics |= {"train/wait_seconds": waited, "train/step_seconds": seconds}
        metrics["train/tokens_per_second"] = metrics["train/tokens"] / seconds
        self._report(work, metrics, references)
        self._check_bad_steps(metrics)
        if self._step - self._saved_step >= self._config.checkpoints.every_steps or self._is_evaluated():
            self._checkpoint(work.position + 1)
        if work.publishes:
            self._publish_within(work.publication + 1)

    @property
    def _policy_is_reference(self) -> bool:
        """Whether no step was taken since the reference was the policy: the iteration's, or the initial model."""
        ours = self._config.objective.reference == "iteration" or self._journal.iteration == 0
        return ours and self._journal.begins_iteration

    def _publish_within(self, publication: int) -> None:
        started = time.time()
        self._publisher.within_iteration(Point(self._journal.iteration, self._step), publication)
        self._since_publish = 0
        self._span("publish", started)

    def _is_evaluated(self) -> bool:
        """Whether the policy of this step is one that `evaluation.every_steps` names."""
        every = self._config.evaluation.every_steps
        return every is not None and self._step % every == 0

    def _write_snapshot(self, iteration: int) -> None:
        """Before a step changes them: the weights that are to be evaluated within an iteration.

        Their step has a checkpoint already, so that no result is of a step that is rolled back.
        """
        if not self._is_evaluated() or self._journal.begins_iteration:  # an iteration's end is evaluated by itself
            return
        started = time.time()
        if self._publisher.snapshot(Point(iteration, self._step)):
            self._span("publish", started)

    def _report(self, work: StepWork, metrics: dict[str, float], references: dict) -> None:
        """Every rank hands over the references it computed; rank 0 speaks for the step."""
        alarms = []
        gap, bound = metrics.get("train/log_prob_gap", 0.0), self._config.training.gap_alarm
        if gap > bound and self._rank == 0:
            alarms.append(
                f"step {self._step}: sampler and trainer differ by {gap:.3f} nats a token, over the bound of {bound:g}"
                " (training.gap_alarm): check that both run the same weights, dtype and template"
            )
        record = {"step": self._step, "iteration": work.iteration, "epoch": work.epoch, "metrics": metrics}
        self._send(record if self._rank == 0 else {}, references, alarms)

    def _send(self, record: dict[str, Any], references: dict | None = None, alarms: Sequence[str] = ()) -> None:
        """A record, and what this rank did since the last one."""
        spans, self._spans = self._spans, []
        report = {**record, "rank": self._rank, "spans": spans, "memory_bytes": vitals().memory_bytes}
        self._call(self._spec.stream.report, report, references or {}, list(alarms))

    def _check_bad_steps(self, metrics: dict[str, float]) -> None:
        from larpo.errors import TrainingError

        self._bad_steps = self._bad_steps + 1 if metrics["train/bad_steps"] else 0
        limit = self._config.training.max_bad_steps
        if self._bad_steps >= limit:
            raise TrainingError(
                f"loss or gradient was not finite in {self._bad_steps} steps in a row, the limit"
                f" (training.max_bad_steps = {limit}); start a new run with a lower"
                " training.optimizer.learning_rate"
            )

    def _end_iteration(self, work: IterationEnd) -> None:
        started = time.time()
        self._journal = self._journal.after(work)
        folder = self._publisher.end_of_iteration(work.iteration)
        self._since_publish = 0
        self._span("publish", started)
        self._checkpoint(work.position + 1)
        self._publisher.hand_over(folder)
        if self._rank == 0 and staleness(self._config) is not None:
            self._call(self._spec.stream.published, work.iteration + 1, self._publisher.version, 0)
        self._judge()
        self._send({})
        if self._spec.turns is not None:  # the samplers are told when the GPU is theirs
            self._load_reference()
            self._visits.leave(self._engine)
        if self._rank == 0:
            self._call(self._spec.stream.trained, work.iteration)
        if self._spec.turns is None:
            self._load_reference()

    def _judge(self) -> None:
        """What the published policy makes of held-out lists, where the run has any."""
        started = time.time()
        if self._heldout.evaluate(self._engine, self._journal.iteration, self._reference_name):
            self._span("evaluate", started)

    def _checkpoint(self, position: int) -> None:
        """Written by every rank, committed by rank 0; the newest few are kept."""
        from actors.checkpoints import TrainerState, checkpoint_folder

        started = time.time()
        folder = checkpoint_folder(self._home.checkpoints, position)
        self._engine.save(folder)
        journal = replace(self._journal, position=position)
        state = TrainerState(self._step, self._publisher.version, self._since_publish, journal)
        self._home.commit(folder, state, self._config.checkpoints.keep)
        self._saved, self._saved_step = position, self._step
        self._span("checkpoint", started)

    def _restore(self) -> None:
        """Go on from the newest whole checkpoint; the stream is rolled back to it."""
        found = self._home.newest_checkpoint()
        notes = []
        if found is not None:
            folder, state, damaged = found
            self._engine.load(folder)
            self._step, self._publisher.version = state.step, state.version
            self._since_publish, self._journal = state.steps_since_publish, state.journal
            self._position = self._saved = state.journal.position
            self._saved_step = state.step
            notes = [f"a checkpoint was passed over: {reason}" for reason in damaged]
            if self._journal.iteration > 0:
                self._publisher.hand_over(policy_folder(self._run_dir, self._journal.iteration))
        if self._ranks < self._config.training.workers:
            notes.append(f"the trainer goes on with {self._ranks} of {self._config.training.workers} workers")
        self._engine.barrier()
        if self._rank == 0:
            roll_back(self._home.home, self._journal.iteration, self._step)
            self._call(self._spec.stream.restore, self._journal, self._step)
            self._send({}, alarms=notes)
        self._engine.barrier()
        self._publish_again()

    def _publish_again(self) -> None:
        """Samplers may not have what this iteration had published, or have what came of steps that are rolled back.

        They get the weights of the checkpoint for it.
        """
        bound, iteration = staleness(self._config), self._journal.iteration
        if bound is None or self._journal.epoch > 0:
            return
        publication = bound.publication(bound.steps(len(self._journal.used(iteration, 0))))
        ahead = self._rank == 0 and self._call(self._spec.stream.has_published, iteration)
        if self._engine.maximum([publication, int(ahead)]) != [0, 0]:
            self._publish_within(publication)

    def _load_reference(self) -> None:
        """The reference of this iteration: the initial model, or the iteration's behaviour policy."""
        from actors.published import published_version

        iteration = self._journal.iteration
        weights, name = None, self._spec.policy.fingerprint
        if self._config.objective.reference == "iteration" and iteration > 0:
            weights = self._home.fetch_policy(policy_folder(self._run_dir, iteration))
            name = f"{name}@{published_version(weights)}"
        self._reference_name = name
        self._engine.load_reference(weights)

    def _span(self, kind: str, started: float) -> None:
        self._spans.append((kind, started, time.time()))

    def _call(self, method: Any, *arguments: Any, limit: tuple[str, float] | None = None) -> Any:
        """Call an actor of ours, with a time limit: the knob's name and its value."""
        import ray
        from ray.exceptions import GetTimeoutError

        from larpo.errors import PhaseTimeout

        knob, seconds = limit or ("weights_s", self._config.timeouts.weights_s)
        try:
            return ray.get(method.remote(*arguments), timeout=seconds)
        except GetTimeoutError as error:
            raise PhaseTimeout(f"{method._method_name} took over {seconds:g} s (timeouts.{knob})") from error
