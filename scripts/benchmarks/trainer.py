"""`trainer`: list-wise steps against TRL's DPOTrainer on the same lists broken into all pairs, and passes against the
bare model's.

LambdaRank without weights is the sum of DPO's loss over all pairs of a list (Jin 2025, Eq. 15), so both sides minimise
the same function: what is compared is one optimizer step, reference log-probabilities included, of the trainer that
runs use (Ray Train, DeepSpeed) and of `DPOTrainer.train`. Their losses must agree, step by step, in float32.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from larpo.compute_type import settled
from larpo.config import Config
from larpo.policy import prepare_policy
from scripts.benchmarks.lists import PROMPT_TOKENS, RESPONSE_TOKENS, random_list
from scripts.benchmarks.measuring import (
    BenchmarkError,
    Comparison,
    Result,
    Series,
    in_own_process,
    in_turns,
    peak_memory_gib,
    rates,
    seconds,
)

LOSS_TOLERANCE = 1e-3  # of both sides' losses in float32, relative
CHECKED = 2  # steps in float32 that must agree, beside a warm-up, where those that count are in another type
SPEED_TARGETS = {2: ">= 1.8", 4: ">= 9", 8: ">= 20"}
BARE_TARGETS = {4: "<= 1.05", 8: "<= 1.10"}
RATE, BETA = 1e-5, 0.1
DISTINCT_LISTS = 2  # that steps take in turn, so that the losses fall, and agree for a reason
PAIRS_A_PASS = 4  # of TRL's side; more need more memory and are no faster on two cores


@dataclass(frozen=True)
class Steps:
    """What both sides are asked for: one list a step, `warm_ups` steps before those that count."""

    policy: str  # folder
    dtype: str
    candidates: int
    repetitions: int
    warm_ups: int = 1
    prompt_tokens: int = PROMPT_TOKENS
    response_tokens: int = RESPONSE_TOKENS

    @property
    def count(self) -> int:
        return self.warm_ups + self.repetitions

    def lists(self) -> list:
        vocabulary = json.loads((Path(self.policy) / "config.json").read_text())["vocab_size"]
        shape = {"prompt_tokens": self.prompt_tokens, "response_tokens": self.response_tokens}
        numbers = (number % DISTINCT_LISTS for number in range(self.count))
        return [random_list(number, self.candidates, vocabulary, **shape) for number in numbers]


def run_trainer(policy: str, dtype: str, sizes: tuple[int, ...], repetitions: int, shape: tuple[int, int]) -> Result:
    """Both comparisons for each number of candidates."""
    folder, dtype = prepared_policy(policy, dtype)
    rows, notes = [], []
    for candidates in sizes:
        steps = Steps(str(folder), dtype, candidates, repetitions, 1, *shape)
        if dtype != "float32":
            both_sides(replace(steps, dtype="float32", repetitions=CHECKED))
        ours, theirs = both_sides(steps)
        fast, slow = rates("larpo", ours["seconds"]), rates("TRL", theirs["seconds"])
        rows.append(Comparison(f"step, k = {candidates}", "lists/s", fast, slow, SPEED_TARGETS.get(candidates, "")))
        bare = in_own_process(bare_side, vars(steps))
        packed, plain = (Series(label, tuple(values)) for label, values in bare.items())
        what = f"forward and backward, k = {candidates}"
        rows.append(Comparison(what, "s", packed, plain, BARE_TARGETS.get(candidates, "")))
        notes.append(f"k = {candidates}: losses of the steps in {dtype}: {_losses(ours)}; TRL's: {_losses(theirs)}")
    return Result("trainer", settings_of(steps, sizes), tuple(rows), tuple(notes))


def prepared_policy(policy: str, dtype: str) -> tuple[Path, str]:
    """Its folder, and the type that it is computed in: with `auto` this machine's own."""
    config = settled(Config.model_validate({"policy": {"model": policy, "dtype": dtype}}))
    return prepare_policy(config.policy).path, config.policy.dtype


def settings_of(steps: Steps, sizes: tuple[int, ...]) -> dict[str, Any]:
    return {**vars(steps), "policy": Path(steps.policy).name, "candidates": list(sizes), "rate": RATE, "beta": BETA}


def both_sides(steps: Steps) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides, each in its own process; BenchmarkError where they do not minimise the same function in float32.

    In bfloat16 each side rounds the log-probabilities in its own way, and the steps that follow go apart.
    """
    ours, theirs = (in_own_process(side, vars(steps)) for side in (larpo_side, trl_side))
    apart = _apart(ours, theirs)
    if steps.dtype == "float32" and not apart <= LOSS_TOLERANCE:
        raise BenchmarkError(
            f"k = {steps.candidates}: losses are {apart:.1e} apart, over {LOSS_TOLERANCE:g}: {ours['losses']} and"
            f" {theirs['losses']}; the sides do not do the same work"
        )
    return ours, theirs


def _apart(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    return max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(ours["losses"], theirs["losses"], strict=True))


def _losses(side: Mapping[str, Any]) -> str:
    return ", ".join(f"{loss:.3g}" for loss in side["losses"])


def larpo_side(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Steps of the trainer's engine in a Ray Train worker."""
    steps = Steps(**settings)
    optimizer = {"learning_rate": RATE, "betas": (0.9, 0.999), "clip_norm": 1e9}
    return in_train_worker(_timed_loop, trainer_config(steps.policy, steps.dtype, optimizer=optimizer), steps)


def trainer_config(policy: str, dtype: str, **training: Any) -> Config:
    """LambdaRank, by one worker that has all cores, as the other side; Ray would give a worker of one CPU one."""
    knobs = {
        "policy": {"model": policy, "dtype": dtype},
        "objective": {"name": "lambdarank", "beta": BETA},
        "training": {"threads": len(os.sched_getaffinity(0)), **training},
    }
    return settled(Config.model_validate(knobs))


def in_train_worker(loop: Callable[[dict[str, Any]], None], config: Config, work: Any) -> dict[str, Any]:
    """What `loop` writes to the file `target` of its settings, as JSON, in a Ray Train worker of this process's Ray."""
    import ray

    from actors.capacity import Bundle
    from actors.placement import start_ray
    from actors.training_group import fit_group

    with tempfile.TemporaryDirectory() as folder:
        spec = WorkerWork(work, config, str(Path(folder) / "found.json"))
        start_ray(config, "bench", [[Bundle("trainer worker", config.training.resources_per_worker)]])
        try:
            fit_group(loop, spec, Path(folder) / "train", config.training, step_s=config.timeouts.step_s)
        finally:
            ray.shutdown()
        return json.loads(Path(spec.target).read_text())


@dataclass(frozen=True)
class WorkerWork:
    """What a Ray Train worker is given as `spec`."""

    work: Any
    config: Config
    target: str


def _timed_loop(settings: dict[str, Any]) -> None:
    """In a Ray Train worker: one list a step."""
    from actors.trainer_engine import TrainerEngine
    from actors.work import StepWork

    spec: WorkerWork = settings["spec"]
    steps: Steps = spec.work
    engine = TrainerEngine(spec.config, Path(steps.policy), 0, 1)
    engine.load_reference(None)
    durations, losses = [], []
    for number, item in enumerate(steps.lists()):
        work = StepWork(number, 0, 0, (item,), (item.prompt.id,), 0.0)
        started = time.perf_counter()
        metrics, _ = engine.step(work, RATE, "reference", on_policy=True)
        durations.append(time.perf_counter() - started)
        losses.append(metrics["train/loss"])
    found = {"seconds": durations[steps.warm_ups :], "losses": losses, "memory_gib": metrics["train/memory_gib"]}
    Path(spec.target).write_text(json.dumps(found))


def trl_side(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Steps of TRL's DPOTrainer on all pairs of each list; its loss is the mean over pairs, here times their number."""
    steps = Steps(**settings)
    pairs = math.comb(steps.candidates, 2)
    with tempfile.TemporaryDirectory() as folder:
        trainer, clock = _dpo_trainer(steps, pairs, folder)
        with redirect_stdout(io.StringIO()):  # it prints every step's loss
            trainer.train()
    losses = [entry["loss"] * pairs for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": clock.durations[steps.warm_ups :], "losses": losses, "memory_gib": peak_memory_gib()}


def _dpo_trainer(steps: Steps, pairs: int, folder: str) -> Any:
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    a_pass = max(size for size in range(1, PAIRS_A_PASS + 1) if pairs % size == 0)
    arguments = DPOConfig(
        output_dir=folder,
        beta=BETA,
        learning_rate=RATE,
        adam_beta2=0.999,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
        per_device_train_batch_size=a_pass,
        gradient_accumulation_steps=pairs // a_pass,
        max_steps=steps.count,
        logging_steps=1,
        max_length=None,
        bf16=steps.dtype == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    arguments.model_init_kwargs = {"dtype": "float32"}  # as larpo's optimizer has them; bf16 is by autocast

    class Clock(TrainerCallback):
        durations: list[float] = []  # noqa: RUF012

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.durations.append(time.perf_counter() - self.started)

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(steps.policy)
    words = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])  # in whose place the tokens come
    clock = Clock()
    trainer = DPOTrainer(
        model=steps.policy, args=arguments, train_dataset=words, processing_class=tokenizer, callbacks=[clock]
    )
    trainer.train_dataset = pairs_in_order = Dataset.from_list(_pairs(steps))
    sampler = SequentialSampler(pairs_in_order)  # type: ignore[arg-type]
    trainer._get_train_sampler = lambda *args, **kwargs: sampler  # type: ignore[method-assign]
    return trainer, clock


def _pairs(steps: Steps) -> list[dict[str, list[int]]]:
    """All pairs of every list, better first, list by list."""
    return [
        {
            "prompt_ids": list(item.prompt_token_ids),
            "chosen_ids": list(better.token_ids),
            "rejected_ids": list(worse.token_ids),
        }
        for item in steps.lists()
        for better, worse in itertools.combinations(item.candidates, 2)
    ]


def bare_side(settings: Mapping[str, Any]) -> dict[str, list[float]]:
    """Seconds of a forward and a backward pass: of a packed list with its objective, and of the model itself on one
    causal row of as many tokens, with its own loss."""
    import torch

    from larpo.attention import attention_implementation
    from larpo.objectives import lambdarank
    from larpo.packed_scorer import PackedScorer, scored
    from larpo.packing import pack_list
    from larpo.policy import load_policy

    steps = Steps(**settings)
    (item, *_) = replace(steps, repetitions=0).lists()
    row = pack_list(item.prompt_token_ids, [candidate.token_ids for candidate in item.candidates])
    rewards_LM = torch.tensor([[candidate.reward for candidate in item.candidates]])

    def loaded(attention: str | None) -> Any:
        return load_policy(Path(steps.policy), dtype=steps.dtype, attn_implementation=attention).train()

    own = loaded(None)
    ours = loaded(attention_implementation(own.config, "cpu"))
    scorer = PackedScorer(ours, Config().training.chunk_tokens)

    def packed() -> None:
        ours.zero_grad(set_to_none=True)
        lambdarank(BETA * scored(scorer, row).log_probs_M[None], rewards_LM).sum().backward()

    def plain() -> None:
        own.zero_grad(set_to_none=True)
        own(input_ids=row.input_ids_T[None], labels=row.input_ids_T[None], use_cache=False).loss.backward()

    sides: dict[str, Callable[[], float]] = {"larpo": lambda: seconds(packed), "bare model": lambda: seconds(plain)}
    found = in_turns(sides, steps.repetitions, steps.warm_ups)
    return {label: list(series.values) for label, series in found.items()}
