"""What reward-model training can know, and refuse, before an actor starts: folders, base model, lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.preparation import INPUTS_FILE, check_inputs, new_folder_of, resumed, write_inputs
from larpo.conversations import encode_conversation, longest_conversation
from larpo.errors import DataError
from larpo.home import Home, home_of
from larpo.home_sessions import begin, new_folder
from larpo.model_folder import fingerprint
from larpo.reward_data import LabelledList, LabelledSets, labelled_sets, reward_preferences
from larpo.reward_model import check_adapters, find_base
from larpo.reward_step import planned_batches
from larpo.reward_training_config import RewardTraining, load_reward_training
from larpo.types import stable_hash


@dataclass(frozen=True)
class PreparedRewardRun:
    """A training that can start."""

    config: RewardTraining
    folder: Path
    resumed: bool
    base: Path
    base_fingerprint: str
    sets: LabelledSets

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def home(self) -> Home:
        """Where the run durably lies."""
        return home_of(self.config, self.folder)

    @property
    def steps(self) -> int:
        training = self.config.training
        ids = [item.prompt_id for item in self.sets.train]
        return len(planned_batches(ids, epochs=training.epochs, lists_per_step=training.lists_per_step, seed=0))


def new_reward_run(recipe: str, overrides: Sequence[str]) -> tuple[RewardTraining, Path]:
    """Configuration and folder of a new run; DataError when the folder holds another run."""
    config = load_reward_training(recipe, overrides)
    return config, new_folder_of(config.run, recipe)


def resumed_reward_run(location: str | Path, overrides: Sequence[str]) -> tuple[RewardTraining, Path]:
    """Configuration and folder of an interrupted run, by its folder or URI; knobs cannot change on the way."""
    _, wanted, folder = resumed(location, overrides, load_reward_training)
    return wanted, folder


def prepare_reward_run(config: RewardTraining, folder: Path, *, resumed: bool) -> PreparedRewardRun:
    """Load and check the inputs of a run; writes nothing. Raises ConfigError or DataError naming what is wrong."""
    base = find_base(config.base)
    tokenizer, limit = _reach(config, base)
    check_adapters(base, config.base)
    sets = labelled_sets(
        reward_preferences(config),
        partial(encode_conversation, tokenizer),
        limit=limit,
        degenerate=config.degenerate,
    )
    return PreparedRewardRun(config, folder, resumed, base, fingerprint(base), sets)


def describe_reward_run(run: PreparedRewardRun) -> str:
    """What `--dry-run` prints."""
    from larpo.recipe import config_to_yaml

    lists, training = run.sets, run.config.training
    tokens = sum(item.tokens for item in lists.train)
    lines = [
        f"base       {run.base}",
        f"lists      {len(lists.train)} for training ({tokens:,} tokens), {len(lists.heldout)} held out",
        f"training   {run.steps} steps of {training.lists_per_step} lists on {training.workers} workers",
        f"run        {run.folder}",
        *(f"note       {note}" for note in lists.notes),
    ]
    return f"{config_to_yaml(run.config)}\n" + "\n".join(lines)


def create_reward_folder(run: PreparedRewardRun) -> None:
    """Make the run folder, or check that a resumed one was begun with the same inputs."""
    lists = (*run.sets.train, *run.sets.heldout)
    inputs = {
        "base model": run.base_fingerprint,
        "preferences": f"{stable_hash(*(_identity(item) for item in lists)):016x}",
    }
    if run.resumed:
        check_inputs(run.folder / INPUTS_FILE, inputs)
    else:
        new_folder(run.home)
        write_inputs(run.folder, run.config, inputs, ("checkpoints", "evaluation"))
    begin(run.home)


def _identity(item: LabelledList) -> tuple[Any, ...]:
    return item.prompt_id, item.conversations, item.labels, item.margin


def _reach(config: RewardTraining, base: Path) -> tuple[Any, int]:
    """The base's tokenizer, and the longest conversation that the model can read."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        model_config = AutoConfig.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"base.model: {base} cannot be read ({error}); repair it, or give another folder") from error
    return tokenizer, longest_conversation(model_config, tokenizer, config.base.max_tokens)
