"""What a run on a dataset needs, known and refused before an actor starts: preferences, their tokens, the policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.preparation import PreparedRun, lora_size
from larpo.chat import end_of_turn, stop_token_ids
from larpo.compute_type import settled
from larpo.config import Config
from larpo.errors import ConfigError, DataError
from larpo.given_lists import Encoder, GivenList, check_some
from larpo.objective_table import get_spec
from larpo.policy import open_policy, prepare_policy
from larpo.preferences import load_preferences
from larpo.types import stable_hash


@dataclass(frozen=True)
class OfflineRun(PreparedRun):
    """A run whose lists come from a dataset; nothing is sampled and nothing is rewarded."""

    given: tuple[GivenList, ...] = ()
    given_heldout: tuple[GivenList, ...] = ()

    def fingerprints(self) -> dict[str, str]:
        answers = [
            (item.preference.prompt.id, item.preference.rewards, [ids.tolist() for ids in item.response_token_ids])
            for item in (*self.given, *self.given_heldout)
        ]
        return super().fingerprints() | {"answers": f"{stable_hash(sorted(answers)):016x}"}


def prepare_offline(config: Config, folder: Path, *, resumed: bool) -> OfflineRun:
    """Load and check the inputs of offline preference training or supervised fine-tuning.

    Writes nothing but the policy cache. Raises ConfigError or DataError naming what cannot be used.
    """
    if config.preferences.source is None:
        raise ConfigError("preferences.source is not given: set a .jsonl or .parquet path, a hub id, or reasoning_gym")
    config = settled(config)
    sets = load_preferences(config.preferences)
    policy = prepare_policy(config.policy)
    tokenizer, generation, shape = open_policy(policy, config.policy.trust_remote_code)
    encoder = _encoder(config, tokenizer, generation, shape)
    train, left_out = encoder.encode(sets.train)
    heldout, left_out_heldout = encoder.encode(sets.heldout)
    check_some(train, left_out, "training")
    _check_lists(config, train)
    notes = [f"{count} {reason}" for reason, count in (left_out + left_out_heldout).items()]
    too_long = len(sets.train) + len(sets.heldout) - len(train) - len(heldout)
    prompts = {item.preference.prompt.id: tuple(item.prompt_token_ids) for item in (*train, *heldout)}
    return OfflineRun(
        config=_resolved(config, len(train)),
        name=folder.name,
        folder=folder,
        resumed=resumed,
        policy=policy,
        train=tuple(item.preference.prompt for item in train),
        heldout=tuple(item.preference.prompt for item in heldout),
        token_ids=prompts,
        stop_token_ids=stop_token_ids(tokenizer, generation),
        notes=(*sets.notes, *policy.notes, *notes),
        too_long=too_long,
        has_chat_template=tokenizer.chat_template is not None,
        adapter_size=lora_size(config, policy),
        given=train,
        given_heldout=heldout,
    )


def _encoder(config: Config, tokenizer: Any, generation: Any, shape: Any) -> Encoder:
    positions = getattr(shape, "max_position_embeddings", None) or config.training.row_tokens
    return Encoder(
        tokenizer=tokenizer,
        end=end_of_turn(tokenizer, generation),
        system=config.preferences.system,
        require_template=config.policy.require_chat_template,
        limit=min(config.training.row_tokens, positions),
    )


def _check_lists(config: Config, train: tuple[GivenList, ...]) -> None:
    """Enough lists for a step, enough answers in them for the objective, and no other number of lists asked for."""
    name, step, training = config.objective.name, config.training.lists_per_step, config.training
    if "prompts_per_iteration" in training.model_fields_set and training.prompts_per_iteration != len(train):
        raise ConfigError(
            f"training.prompts_per_iteration = {training.prompts_per_iteration}: a run on a dataset takes all its "
            f"{len(train)} training lists; leave it out, and set preferences.train_count for fewer"
        )
    if step > len(train):
        raise DataError(
            f"training.lists_per_step = {step}: there are {len(train)} training lists; lower it, or bring more rows"
        )
    single = all(len(item.response_token_ids) == 1 for item in train)
    if single and get_spec(name).uses != "one":
        raise ConfigError(
            f"objective.name = {name!r}: compares answers, and every prompt of {config.preferences.source} has one; "
            "set objective.name=sft and start scripts.sft, or name the columns of more answers"
        )


def _resolved(config: Config, lists: int) -> Config:
    """With the knob that the dataset decides: its one iteration is over all lists."""
    training = config.training.model_copy(update={"prompts_per_iteration": lists})
    return config.model_copy(update={"training": training})
