"""The Ray Train worker loop of reward-model training: what each rank does, step by step.

Every rank knows all lists and the seed, so that all form the same global batches and each takes its own share, dealt
by tokens. Ray Train restarts the group when a rank dies; each start goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.rank_home import RankHome
from larpo.conversations import Conversation
from larpo.home import Home, home_of
from larpo.reward_data import LabelledList
from larpo.reward_step import StepSums, list_rewards, passes_of, planned_batches, step_lists, step_metrics
from larpo.reward_training_config import RewardTraining

_BUCKET_MIB = 256  # weights that are gathered at one time
BEFORE, AFTER = "untrained", "trained"  # the two measurements on held-out lists


@dataclass(frozen=True)
class RewardSpec:
    """What every rank is given; small, picklable."""

    config: RewardTraining
    run_dir: str  # on the driver's node, until a rank puts its own in the place
    desk: Any  # handle to the TrainingDesk actor

    @property
    def home(self) -> Home:
        return home_of(self.config, Path(self.run_dir))

    @property
    def checkpoints(self) -> Path:
        return Path(self.run_dir) / "checkpoints"

    @property
    def untrained(self) -> Path:
        return self.checkpoints / "untrained"

    @property
    def weights(self) -> Path:
        return self.checkpoints / "weights"

    def measured(self, label: str) -> Path:
        """Rewards of the held-out lists: {prompt id: rewards}."""
        return Path(self.run_dir) / "evaluation" / f"{label}.json"


def reward_loop(settings: dict[str, Any]) -> None:
    """Entry point of every rank, called by Ray Train with {"spec": RewardSpec}."""
    import ray

    from larpo.errors import LarpoError

    spec: RewardSpec = settings["spec"]
    try:
        RewardRank(spec).run()
    except LarpoError as error:  # starting again would meet it again: tell the driver instead
        message = f"{type(error).__name__}: {error}"
        ray.get(spec.desk.fail.remote(message), timeout=spec.config.timeouts.answer_s)


class RewardRank:
    """One rank: its share of the model, and the place in the planned steps."""

    def __init__(self, given: RewardSpec) -> None:
        import ray.train

        from actors.zero_engine import ZeroEngine, gather, place_worker
        from larpo.reward_model import load_trainable

        context = ray.train.get_context()
        self._rank, self._ranks = context.get_world_rank(), context.get_world_size()
        self._home = RankHome(given.home.on_this_node(), self._rank, gather)
        spec = self._spec = replace(given, run_dir=str(self._home.home.folder))
        self._config, self._training = spec.config, spec.config.training
        self._home.fetch_below(self._home.home.name(spec.untrained), "evaluation")
        device, idle_cores = place_worker(self._training.threads, self._training.resources_per_worker.get("GPU", 1.0))
        torch.manual_seed(spec.config.run.seed)
        self._open_tokenizer()
        model = load_trainable(spec.untrained, spec.config.base)
        if self._training.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self._engine = ZeroEngine(
            model.to(device),
            optimizer=self._training.optimizer,
            dtype=spec.config.base.dtype,
            zero_stage=self._training.zero_stage,
            ranks=self._ranks,
            seed=spec.config.run.seed,
            idle_cores=idle_cores,
        )
        self._train: Sequence[LabelledList] = self._call(spec.desk.lists, "train")
        self._heldout: Sequence[LabelledList] = self._call(spec.desk.lists, "heldout")
        self._batches = planned_batches(
            [item.prompt_id for item in self._train],
            epochs=self._training.epochs,
            lists_per_step=self._training.lists_per_step,
            seed=spec.config.run.seed,
        )
        self._step = self._bad_steps = 0
        self._restore()

    def run(self) -> None:
        from larpo.reward_model import base_id

        if not self._spec.measured(BEFORE).exists():
            self._measure(BEFORE)
        while self._step < len(self._batches):
            self._take_step()
            if self._step % self._config.checkpoints.every_steps == 0 or self._step == len(self._batches):
                self._checkpoint()
        self._measure(AFTER)
        self._engine.write(self._spec.weights, bucket_mib=_BUCKET_MIB, rank=self._rank, base=base_id(self._config.base))
        self._home.publish(self._spec.weights)

    def _take_step(self) -> None:
        from larpo.schedule import learning_rate

        started = time.time()
        behind = sum(map(len, self._batches[: self._step + 1]))
        rate = learning_rate(self._training.optimizer, behind / sum(map(len, self._batches)))
        self._engine.set_rate(rate)
        own = self._passes([self._train[index] for index in self._batches[self._step]])
        norm, applied = self._engine.apply()
        self._step += 1
        sums = StepSums(*self._engine.total(list(vars(own).values())))  # type: ignore[arg-type]
        seconds = time.time() - started
        metrics = step_metrics(sums) | {
            "train/grad_norm": norm,
            "train/learning_rate": rate,
            "train/bad_steps": float(not applied),
            "train/step_seconds": seconds,
            "train/tokens_per_second": sums.tokens / seconds,
            "train/memory_gib": self._engine.maximum([self._engine.memory_gib()])[0],
        }
        epoch = (behind - 1) // len(self._train)
        self._report({"event": "step", "step": self._step, "iteration": 0, "epoch": epoch, "metrics": metrics})
        self._check_bad_steps(applied)

    def _passes(self, batch: Sequence[LabelledList]) -> StepSums:
        """Forward and backward passes over this rank's share of a global batch."""
        from larpo.reward_losses import LOSSES

        self._engine.model.train()
        passes = passes_of(self._mine(batch), self._training.batch_tokens)
        return step_lists(
            self._score,
            passes,
            loss=LOSSES[self._training.loss],
            divisor=len(batch) / self._ranks,  # DeepSpeed takes the mean over ranks
            count=self._engine.maximum([len(passes)])[0],
            backward=self._engine.backward,
        )

    def _check_bad_steps(self, applied: bool) -> None:
        from larpo.errors import TrainingError

        self._bad_steps = 0 if applied else self._bad_steps + 1
        if self._bad_steps >= self._training.max_bad_steps:
            raise TrainingError(
                f"loss or gradient was not finite in {self._bad_steps} steps in a row, the limit"
                f" (training.max_bad_steps = {self._training.max_bad_steps}); lower training.optimizer.learning_rate"
            )

    def _measure(self, label: str) -> None:
        """Rewards of all held-out lists, each rank scoring its share; rank 0 writes them down."""
        from actors.published import write_durably

        self._engine.model.eval()
        passes = passes_of(self._mine(self._heldout), self._training.batch_tokens)
        found = list_rewards(self._score, passes, count=self._engine.maximum([len(passes)])[0])
        shape = [(item.prompt_id, len(item.conversations)) for item in self._heldout]
        flat = self._engine.total([r for name, size in shape for r in found.get(name, (0.0,) * size)])
        if self._rank == 0:
            rewards = iter(flat)
            by_prompt = {name: [next(rewards) for _ in range(size)] for name, size in shape}
            target = self._spec.measured(label)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_durably(target.with_suffix(".partial"), json.dumps(by_prompt).encode())
            target.with_suffix(".partial").rename(target)
            self._home.home.push(target)
            self._report({"event": "measured", "label": label})
        self._engine.barrier()

    def _mine(self, lists: Sequence[LabelledList]) -> list[LabelledList]:
        from larpo.dealing import deal

        return [lists[index] for index in deal([item.tokens for item in lists], self._ranks)[self._rank]]

    def _open_tokenizer(self) -> None:
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._spec.untrained, local_files_only=True)
        self._types = "token_type_ids" in tokenizer.model_input_names
        self._pad = AutoConfig.from_pretrained(self._spec.untrained, local_files_only=True).pad_token_id

    def _score(self, conversations: Sequence[Conversation]) -> Tensor:
        from larpo.row_batches import padded_batch

        inputs = padded_batch(conversations, pad=self._pad, types=self._types)
        return self._engine.forward(**inputs).logits[:, 0].float()

    def _checkpoint(self) -> None:
        """Written by every rank, committed by rank 0; the newest few are kept."""
        from actors.checkpoints import TrainerState, checkpoint_folder
        from actors.work import Journal

        folder = checkpoint_folder(self._home.checkpoints, self._step)
        self._engine.save(folder)
        state = TrainerState(self._step, 0, 0, Journal(position=self._step))
        self._home.commit(folder, state, self._config.checkpoints.keep)

    def _restore(self) -> None:
        found = self._home.newest_checkpoint()
        if found is not None:
            folder, state, damaged = found
            self._engine.load(folder)
            self._step = state.step
            for reason in damaged:
                self._report({"event": "alarm", "message": f"a checkpoint was passed over: {reason}"})
        self._engine.barrier()
        self._report({"event": "ready", "step": self._step, "steps": len(self._batches)})

    def _report(self, record: dict[str, Any]) -> None:
        if self._rank == 0:
            self._call(self._spec.desk.report, record)

    def _call(self, method: Any, *arguments: Any) -> Any:
        """Call the desk, with a time limit."""
        import ray
        from ray.exceptions import GetTimeoutError

        from larpo.errors import PhaseTimeout

        limit = self._config.timeouts.weights_s
        try:
            return ray.get(method.remote(*arguments), timeout=limit)
        except GetTimeoutError as error:
            raise PhaseTimeout(f"{method._method_name} took over {limit:g} s (timeouts.weights_s)") from error
