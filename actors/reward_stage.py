"""Training a reward model from start to end: the group, what it says on the way, and what it leaves."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors import placement
from actors.console_page import clock_text
from actors.keeping import kept
from actors.obituary import told
from actors.preparation import locked
from actors.published import published_tensors, read_beside
from actors.reward_preparation import PreparedRewardRun, create_reward_folder
from actors.reward_trainer import AFTER, BEFORE, RewardSpec
from actors.telemetry import Telemetry
from actors.training_group import fit_reward_model
from larpo.errors import LarpoError, PhaseTimeout, TrainingError
from larpo.home import files_below
from larpo.lora import save_adapter
from larpo.model_folder import save_model_folder
from larpo.reward_card import reward_card
from larpo.reward_model import write_untrained
from larpo.reward_report import write_reward_report
from larpo.reward_results import format_results, heldout_metrics

_LOOK_S = 0.5


@dataclass(frozen=True)
class RewardResults:
    """Where things are, and the numbers of the last record."""

    folder: Path
    metrics: dict[str, float]
    table: str


def train_reward_model(run: PreparedRewardRun) -> RewardResults:
    """Start or join Ray, train, write the model folder and the report, and stop Ray again."""
    import ray

    dashboard = placement.start_ray(run.config, run.name)
    try:
        return train_on_ray(run, dashboard)
    finally:
        with suppress(Exception):
            ray.shutdown()


def train_on_ray(run: PreparedRewardRun, dashboard: str = "") -> RewardResults:
    """A whole training on the Ray that is started."""
    create_reward_folder(run)
    config = run.config
    lines = config.telemetry.model_copy(update={"console": "off" if config.telemetry.console == "off" else "plain"})
    with (
        locked(run.folder),
        kept(run.home),
        Telemetry(config.model_copy(update={"telemetry": lines}), run.folder, resume=run.resumed) as telemetry,
    ):
        for note in (*run.sets.notes, *([f"Ray dashboard: http://{dashboard}"] if dashboard else [])):
            telemetry.say(note)
        desk = placement.place_desk({"train": run.sets.train, "heldout": run.sets.heldout})
        spec = RewardSpec(config, str(run.folder), desk)
        _make_untrained(run, spec)
        try:
            Watch(run, spec, telemetry).to_the_end()
        finally:
            placement.kill(desk)
        results = _results(run, spec)
        telemetry.log("done", {**results.metrics, "run/seconds": telemetry.seconds()})
        write_reward_report(run.folder, config, run.sets.heldout, _measured(spec, BEFORE), _measured(spec, AFTER))
    return results


def _make_untrained(run: PreparedRewardRun, spec: RewardSpec) -> None:
    """What the ranks begin with, here and at the run's home; its config comes last."""
    config = spec.untrained / "config.json"
    run.home.pull_below(run.home.name(spec.untrained))
    if not config.is_file():
        write_untrained(run.base, spec.untrained, run.config.base, seed=run.config.run.seed)
    run.home.push(*(path for path in files_below(spec.untrained) if path != config))
    run.home.push(config)


class Watch:
    """The training group in a thread, and what it reports, until it ends; any error ends all, with its cause."""

    def __init__(self, run: PreparedRewardRun, spec: RewardSpec, telemetry: Telemetry) -> None:
        self._run, self._spec, self._telemetry = run, spec, telemetry
        self._error: BaseException | None = None
        self._heard, self._ready, self._said = time.monotonic(), False, 0.0
        self._began: tuple[float, int] = (time.monotonic(), 0)

    def to_the_end(self) -> None:
        # A daemon: a run that ends early does not wait for the step in progress.
        group = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        group.start()
        while group.is_alive():
            group.join(_LOOK_S)
            self._look()
        self._look()
        if self._error is not None:
            raise self._error

    def _fit(self) -> None:
        try:
            fit_reward_model(self._spec)
        except BaseException as error:
            self._error = error

    def _look(self) -> None:
        import ray

        status = ray.get(self._spec.desk.status.remote(), timeout=self._run.config.timeouts.weights_s)
        for failure in status.failures:
            reason = asyncio.run(told(failure.reason, failure.actor_id))
            self._telemetry.log("failure", actor=f"trainer-{failure.rank}", reason=reason)
        for record in status.records:
            self._heard = time.monotonic()
            self._take(dict(record))
        if status.error is not None:
            raise TrainingError(f"the trainer gave up: {status.error}")
        limits = self._run.config.timeouts
        limit, name = (limits.step_s, "step_s") if self._ready else (limits.trainer_start_s, "trainer_start_s")
        if time.monotonic() - self._heard > limit:
            raise PhaseTimeout(
                f"the trainer has said nothing for {limit:g} s (timeouts.{name}); resume, or start a new run with more"
            )

    def _take(self, record: dict[str, Any]) -> None:
        event = record.pop("event")
        if event == "ready":
            self._ready, self._began = True, (time.monotonic(), record["step"])
            self._telemetry.say(f"training from step {record['step']} of {record['steps']}")
        elif event == "measured":
            self._telemetry.say(f"the {record['label']} model is measured on held-out lists")
        elif event == "alarm":
            self._telemetry.log("alarm", message=record["message"])
        else:
            metrics = record.pop("metrics")
            self._telemetry.log(event, metrics, **record)
            self._say_step(record["step"], metrics)

    def _say_step(self, step: int, metrics: Mapping[str, float]) -> None:
        now, steps = time.monotonic(), self._run.steps
        if now - self._said < self._run.config.telemetry.plain_every_s and step < steps:
            return
        self._said = now
        begun, first = self._began
        left = (now - begun) / max(1, step - first) * (steps - step)
        self._telemetry.say(
            f"[{clock_text(self._telemetry.seconds())}] step {step}/{steps}  loss {metrics['train/loss']:.4f}  "
            f"pairs right {metrics['pairs/train_accuracy']:.1%}  {metrics['train/tokens_per_second']:.0f} tokens/s  "
            f"left {clock_text(left)}"
        )


def _results(run: PreparedRewardRun, spec: RewardSpec) -> RewardResults:
    """The model folder, which appears whole or not at all, and its numbers."""
    config = run.config
    before, after = _measured(spec, BEFORE), _measured(spec, AFTER)
    metrics = heldout_metrics(run.sets.heldout, before, after, resamples=config.bootstrap, seed=config.run.seed)
    card = reward_card(config, metrics, name=run.name, notes=run.sets.notes)
    run.home.pull_published(spec.weights)
    save_model_folder(run.folder / "model", spec.untrained, published_tensors(spec.weights), card)
    card = reward_card(config, metrics, name=run.name, notes=run.sets.notes, adapter_only=True)
    save_adapter(run.folder / "adapter", read_beside(spec.weights), card)
    return RewardResults(run.folder, metrics, format_results(metrics))


def _measured(spec: RewardSpec, label: str) -> dict[str, list[float]]:
    try:
        if spec.home.elsewhere:  # a rank on another node may have written it
            spec.home.pull(spec.measured(label))
        return json.loads(spec.measured(label).read_text())
    except (OSError, ValueError) as error:
        raise LarpoError(f"{spec.measured(label)} cannot be read ({error}); remove it and resume the run") from error
