"""What the training of a reward model is made of: the root of its recipes. Nothing here imports torch or ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from larpo.config import Checkpoints, Lora, Optimizer, Positive, Preferences, Resources, Run, Telemetry, Timeouts
from larpo.config_checks import lora_problems, problem_list, run_problems
from larpo.errors import ConfigError
from larpo.knobs import Section
from larpo.preference_checks import CONSTRUCTED, source_problems
from larpo.recipe import read_config


class Base(Section):
    """The model that becomes a reward model: its body, and a head of one output."""

    model: str = "minilm"  # bundled encoder (minilm), Hugging Face hub id or local folder; a causal LM gets a new head
    revision: str | None = None  # hub revision
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of its weights, in training and when written
    trained: Literal["all", "head"] = "all"  # the whole model, or its head (with an encoder's pooler) alone
    lora: Lora = Lora()  # adapters beside a frozen body, the head trained in full; merged into what is written
    max_tokens: Positive = 4096  # lists with a longer conversation are left out (reported), never cut


class RewardFit(Section):
    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"  # of all pairs, or of the whole order
    epochs: Positive = 1  # passes over the training lists
    lists_per_step: Positive = 32  # global batch of one optimizer step, whatever the number of ranks
    batch_tokens: Positive = 16384  # tokens of one forward pass, padding included; a list is never parted
    workers: Positive = 1  # Ray Train workers (ranks)
    resources_per_worker: Resources = Field(default={"CPU": 1.0})  # Ray resources of a worker, such as {"GPU": 1}
    threads: Annotated[int, Field(ge=0)] = 0  # torch threads of a CPU worker; 0: its CPUs, and idle ones if alone
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2  # DeepSpeed ZeRO
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    max_failures: Annotated[int, Field(ge=0)] = 3  # restarts of the worker group before the run gives up
    max_bad_steps: Positive = 3  # steps in a row with a loss or gradient that is not finite
    optimizer: Optimizer = Optimizer(learning_rate=1e-5, schedule="cosine")


class RewardTraining(Section):
    """A whole run of `scripts.train_reward`. Sections are as in a recipe's YAML."""

    description: str = ""  # one line, shown by --dry-run and in the model card
    run: Run = Run()
    base: Base = Base()
    preferences: Preferences = Preferences()
    answer_words: Positive = 60  # alpaca_eval_constructed: words that an answer is cut to, at a sentence's end
    degenerate: bool = True  # add to every list, as its worst: a copy of the prompt, and one sentence repeated
    training: RewardFit = RewardFit()
    checkpoints: Checkpoints = Checkpoints(every_steps=200)
    bootstrap: Positive = 10000  # resamples over held-out prompts behind the interval
    telemetry: Telemetry = Telemetry()
    timeouts: Timeouts = Timeouts()


def load_reward_training(recipe: str, overrides: Sequence[str] = ()) -> RewardTraining:
    """The checked configuration of a recipe after overrides; ConfigError with everything that is wrong."""
    config = read_config(recipe, overrides, RewardTraining)
    problems = reward_training_problems(config)
    if problems:
        raise ConfigError(problem_list(f"recipe {recipe}: cannot run, {len(problems)} to change", problems))
    return config


def reward_training_problems(config: RewardTraining) -> list[str]:
    """One line a problem between knobs."""
    training, section = config.training, config.preferences
    problems = run_problems(config.run)
    if section.source is None:
        problems.append(
            "preferences.source is not given: set a .jsonl or .parquet path, a hub id, reasoning_gym, or "
            f"{CONSTRUCTED} (bundled)"
        )
    else:
        problems += source_problems(section)
    if section.system is not None:
        problems.append(
            f"preferences.system = {section.system!r}: is for a policy; a reward model reads a conversation as its row "
            "has it: put the system turn into the rows, or leave the knob out"
        )
    if section.columns.response is not None or _one_answer(config):
        problems.append(
            "preferences.columns names one answer a row: a reward model learns from answers that are ranked; name "
            "chosen and rejected, or responses"
        )
    if training.loss == "plackett_luce" and section.columns.margin is not None:
        problems.append(
            "training.loss = 'plackett_luce': takes no preferences.columns.margin; leave it out, or set "
            "training.loss=bradley_terry"
        )
    problems += lora_problems(config.base.lora, "base.lora")
    if config.base.lora.dropout:
        problems.append(
            f"base.lora.dropout = {config.base.lora.dropout:g}: a reward model trains without dropout, so that a "
            "conversation has one reward in training and scoring; leave it out"
        )
    if config.base.lora.rank and config.base.trained == "head":
        problems.append(
            f"base.lora.rank = {config.base.lora.rank}: adapters train the body, but base.trained = 'head' leaves it "
            "as it is; set one of them only"
        )
    if section.heldout_count < 1:
        problems.append("preferences.heldout_count = 0: accuracy and calibration need held-out rows; set it")
    if training.lists_per_step < training.workers:
        problems.append(
            f"training.lists_per_step = {training.lists_per_step}: must be at least training.workers = "
            f"{training.workers}, one list a worker; raise it, or use fewer workers"
        )
    return problems


def _one_answer(config: RewardTraining) -> bool:
    columns = config.preferences.columns
    return columns.messages is not None and columns.chosen is None and columns.responses is None
