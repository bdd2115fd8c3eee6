"""Everything that can be known, and refused, before an actor starts: folders, prompts, the policy, the plan."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from larpo.chat import encode_prompt, stop_token_ids
from larpo.compute_type import settled
from larpo.config import Config, Run
from larpo.errors import ConfigError, DataError
from larpo.home import Home, home_of, working_folder
from larpo.home_sessions import begin, check_new, new_folder, open_run
from larpo.knobs import Section
from larpo.placement_checks import STAGE_1
from larpo.policy import PreparedPolicy, empty_policy, open_policy, prepare_policy
from larpo.prompt_sets import HELDOUT_ONLY
from larpo.prompts import PromptOrder, drop_long, load_prompts
from larpo.recipe import changed_knobs, config_to_yaml, load_config, recipe_name
from larpo.reward_training_config import RewardTraining
from larpo.rewards import check_answer_keys, check_reward
from larpo.storage import is_uri, joined, parted
from larpo.types import Prompt, stable_hash

CONFIG_FILE = "config.yaml"
INPUTS_FILE = "inputs.json"  # fingerprints of what a run was begun with
CHANGEABLE = ("training.workers:", "training.min_workers:", "training.resize_s:")  # when a run is resumed
Root = TypeVar("Root", Config, RewardTraining)
_JOB_FILES = "working_dir_files"  # the folder in which Ray unpacks the working directories of submitted jobs


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start: its folder, policy, prompts and their token ids."""

    config: Config
    name: str
    folder: Path
    resumed: bool
    policy: PreparedPolicy
    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    token_ids: dict[str, tuple[int, ...]]  # prompt id -> what the samplers are given
    stop_token_ids: tuple[int, ...]  # what ends a response
    notes: tuple[str, ...]  # what was left out and why
    too_long: int
    has_chat_template: bool  # the policy's own; else the plain one is used
    adapter_size: int  # parameters of LoRA's adapters; 0 without LoRA
    shares: Path | None = None  # a run whose first lists and base evaluation this new one takes over

    def drawn(self, iteration: int) -> list[Prompt]:
        """The prompts of an iteration, in the order that the seed gives."""
        order = PromptOrder(len(self.train), self.config.run.seed)
        indices = order.draw(iteration, self.config.training.prompts_per_iteration)
        return [self.train[index] for index in indices]

    def prompt_counts(self) -> dict[str, float]:
        return {
            "prompts/train": len(self.train),
            "prompts/heldout": len(self.heldout),
            "prompts/too_long": self.too_long,
        }

    def fingerprints(self) -> dict[str, str]:
        """Of what the run is begun with: it goes on with nothing else."""
        prompts = f"{stable_hash(sorted(self.token_ids.items())):016x}"
        return {"policy": self.policy.fingerprint, "prompts": prompts}

    @property
    def home(self) -> Home:
        """Where the run durably lies."""
        return home_of(self.config, self.folder)

    @property
    def lists(self) -> Path:
        return self.folder / "lists"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def new_run(recipe: str, overrides: Sequence[str]) -> tuple[Config, Path]:
    """Configuration and folder of a new run; DataError when the folder holds another run."""
    config = load_config(recipe, overrides)
    if config.prompts.source in HELDOUT_ONLY:
        raise ConfigError(
            f"prompts.source = {config.prompts.source!r}: is for evaluation only; give a set to train on, and evaluate"
            " with python -m scripts.evaluate"
        )
    return config, new_folder_of(config.run, recipe)


def new_folder_of(run: Run, recipe: str) -> Path:
    """Where a new run of any stage goes; DataError when it holds another run, or cannot be made or reached."""
    name = run.name or f"{recipe_name(recipe)}-{time.strftime('%Y%m%d-%H%M%S')}"
    if is_uri(run.output_dir):
        uri = joined(run.output_dir, name)
        check_new(uri)
        return working_folder(uri)
    folder = Path(run.output_dir) / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} already holds another run; choose another run.name, or go on with that one: --resume"
        )
    above = next(parent for parent in folder.resolve().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise DataError(f"run.output_dir = {run.output_dir!r}: no folder can be made in {above}; give another")
    if _JOB_FILES in folder.resolve().parts:
        raise ConfigError(
            f"run.output_dir = {run.output_dir!r}: a submitted job works in Ray's copy of the working directory, which"
            " Ray deletes; give an absolute path on storage that stays"
        )
    return folder.resolve()


def resumed_run(location: str | Path, overrides: Sequence[str]) -> tuple[Config, Path]:
    """Configuration and folder of an interrupted run, by its folder or URI; only how many workers train can change."""
    before, wanted, folder = resumed(location, overrides, load_config, CHANGEABLE)
    workers, now = before.training.workers, wanted.training
    if now.stage == 1 and now.workers != workers:
        raise ConfigError(f"training.workers = {now.workers}, where {workers} trained: {STAGE_1}; go on with {workers}")
    return wanted, folder


def resumed(
    location: str | Path, overrides: Sequence[str], load: Callable[..., Root], changeable: tuple[str, ...] = ()
) -> tuple[Root, Root, Path]:
    """Configuration as the run has it and as it goes on, and its folder, for the recipes that `load` reads.

    What lies at a URI is pulled as far as it is needed to go on.
    """
    folder = open_run(str(location)) if is_uri(location) else Path(location)
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise DataError(f"{folder} is not a run folder: it has no {CONFIG_FILE}; give the folder that a run printed")
    before, wanted = load(str(file)), load(str(file), overrides)
    changed = [change for change in changed_knobs(before, wanted) if not change.startswith(changeable or "\0")]
    if changed:
        raise ConfigError(
            f"a resumed run keeps its knobs; these differ: {'; '.join(changed)}. Leave them out, or start a new run"
        )
    return before, _found_at(wanted, location, folder.resolve()), folder.resolve()


def _found_at(config: Root, location: str | Path, folder: Path) -> Root:
    """A run that was moved goes on where it lies now, from a folder to a URI or back."""
    output = parted(str(location))[0] if is_uri(location) else str(folder.parent)
    if not is_uri(location) and not is_uri(config.run.output_dir):
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"output_dir": output})})


def prepare(config: Config, folder: Path, *, resumed: bool) -> PreparedRun:
    """Load and check the inputs of a run; writes nothing but the policy cache.

    Raises ConfigError or DataError naming what cannot be used.
    """
    if config.preferences.source is not None:
        raise ConfigError(
            f"preferences.source = {config.preferences.source!r}: this recipe trains on answers of a dataset; start it"
            " with scripts.offline, scripts.sft or scripts.train_reward"
        )
    config = settled(config)
    check_reward(config.reward)
    sets = load_prompts(config.prompts)
    check_answer_keys(config.reward, (*sets.train, *sets.heldout))
    policy = prepare_policy(config.policy)
    tokenizer, generation, shape = open_policy(policy, config.policy.trust_remote_code)
    adapter_size = lora_size(config, policy)
    _check_reach(config, getattr(shape, "max_position_embeddings", None))
    token_ids = {
        prompt.id: encode_prompt(
            tokenizer,
            prompt,
            system=config.prompts.system,
            require_template=config.policy.require_chat_template,
        )
        for prompt in (*sets.train, *sets.heldout)
    }

    def encode(prompt: Prompt) -> Sequence[int]:
        return token_ids[prompt.id]

    limit = config.prompts.max_prompt_tokens
    train, long_train = drop_long(sets.train, encode, limit)
    heldout, long_heldout = drop_long(sets.heldout, encode, limit)
    too_long = len(long_train) + len(long_heldout)
    notes = [*sets.notes, *policy.notes]
    if too_long:
        notes.append(f"{too_long} prompts are longer than {limit} tokens (prompts.max_prompt_tokens) and left out")
    _check_counts(config, len(train), len(long_train))
    _check_heldout(config, len(heldout), len(long_heldout))
    return PreparedRun(
        config=config,
        name=folder.name,
        folder=folder,
        resumed=resumed,
        policy=policy,
        train=tuple(train),
        heldout=tuple(heldout),
        token_ids=token_ids,
        stop_token_ids=stop_token_ids(tokenizer, generation),
        notes=tuple(notes),
        too_long=too_long,
        has_chat_template=tokenizer.chat_template is not None,
        adapter_size=adapter_size,
    )


def lora_size(config: Config, policy: PreparedPolicy) -> int:
    """Parameters that LoRA trains; ConfigError for layers that the policy has not, or a rank that they cannot have."""
    if not config.policy.lora.rank:
        return 0
    from larpo.lora import adapter_size

    return adapter_size(empty_policy(policy.path, config.policy.trust_remote_code), config.policy.lora)


def _check_reach(config: Config, positions: int | None) -> None:
    if positions is not None and config.samplers.max_model_len > positions:
        raise ConfigError(
            f"samplers.max_model_len = {config.samplers.max_model_len}: {config.policy.model} has {positions} positions"
            " (max_position_embeddings); lower it"
        )


def _check_counts(config: Config, train: int, too_long: int) -> None:
    wanted, limit = config.training.prompts_per_iteration, config.prompts.max_prompt_tokens
    if train < wanted:
        left_out = f" ({too_long} are longer than prompts.max_prompt_tokens = {limit})" if too_long else ""
        raise DataError(
            f"{train} training prompts are left{left_out}, and an iteration draws {wanted}"
            " (training.prompts_per_iteration), each at most once: lower it, or give more prompts"
        )


def _check_heldout(config: Config, heldout: int, too_long: int) -> None:
    if heldout == 0 and (config.evaluation.best_metric or config.evaluation.every_steps):
        raise DataError(
            f"no held-out prompts are left ({too_long} are longer than prompts.max_prompt_tokens ="
            f" {config.prompts.max_prompt_tokens}), and evaluation.best_metric and every_steps need some: raise it"
        )


def create_folder(run: PreparedRun) -> None:
    """Make the run folder and write the resolved configuration into it, and to the run's home, first of all files."""
    if run.resumed:
        check_inputs(run.folder / INPUTS_FILE, run.fingerprints())
    else:
        new_folder(run.home)
        write_inputs(run.folder, run.config, run.fingerprints(), (run.lists.name, run.checkpoints.name))
    begin(run.home)


def write_inputs(folder: Path, config: Section, inputs: Mapping[str, str], folders: Sequence[str]) -> None:
    """A new run's folders, what it was begun with, and its configuration, which makes it one that can be resumed."""
    try:
        for name in folders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / INPUTS_FILE).write_text(json.dumps(inputs) + "\n")
        partial = folder / (CONFIG_FILE + ".partial")
        partial.write_text(config_to_yaml(config))
        partial.rename(folder / CONFIG_FILE)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error}); give another run.output_dir") from error


def check_inputs(file: Path, inputs: Mapping[str, str]) -> None:
    """DataError when a run would go on with another policy or other prompts than it began with."""
    before = json.loads(file.read_text()) if file.is_file() else inputs
    changed = [name for name, value in inputs.items() if before.get(name) != value]
    if changed:
        raise DataError(
            f"{file.parent} was begun with other {' and '.join(changed)} than are there now: restore the files or the"
            " revision that the recipe names, or start a new run"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The run is this process's alone; DataError when another is at work on it."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"another process is at work on {folder}: wait for it, or stop it, then resume") from error
        yield
