"""What an evaluation of several models needs, loaded and checked before an actor starts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.preparation import CONFIG_FILE, INPUTS_FILE
from larpo.chat import encode_prompt, stop_token_ids
from larpo.compute_type import settled
from larpo.config import Config
from larpo.errors import ConfigError, DataError
from larpo.policy import PreparedPolicy, open_policy, prepare_policy
from larpo.prompts import drop_long, load_prompts
from larpo.recipe import config_to_yaml, load_config, recipe_name
from larpo.records import list_parts, read_lists
from larpo.rewards import check_answer_keys, check_reward, reward_identity
from larpo.types import CandidateList, Prompt, stable_hash

MODEL_NAME = r"\w[\w.-]*"  # it names folders, too
SCORES_EACH = "a function of yours that scores each response by itself goes as reward.kind=verifier"


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that can be sampled: its folder, and the prompts in its own tokens."""

    name: str
    policy: PreparedPolicy
    token_ids: Mapping[str, tuple[int, ...]]  # prompt id -> what the samplers are given
    stop_token_ids: tuple[int, ...]
    vocabulary: str  # a hash: equal token ids mean the same text
    has_chat_template: bool  # its own; else prompts are in the plain one


@dataclass(frozen=True)
class PreparedEvaluation:
    """An evaluation that can start: the same prompts for every model; the first is what others are compared with."""

    config: Config
    folder: Path
    prompts: tuple[Prompt, ...]
    models: tuple[EvaluatedModel, ...]
    notes: tuple[str, ...]  # what was left out and why
    reward: str  # identity of what gives the rewards, with the code or the model behind it
    reranker: str  # the same of the recipe's reranker; empty without one

    def samples_of(self, model: EvaluatedModel) -> Path:
        """Where its responses are recorded."""
        return self.folder / "samples" / model.name

    def scores_of(self, model: EvaluatedModel) -> Path:
        """Where the scores are recorded that it gives to the first model's responses."""
        return self.folder / "scores" / f"{model.name}.json"

    def reranks_of(self, model: EvaluatedModel) -> Path:
        """Where the recipe's reranker has its rewards of the model's responses."""
        return self.folder / "reranks" / f"{model.name}-{self.reranker}.json"

    def recorded(self, model: EvaluatedModel) -> dict[str, CandidateList]:
        """Prompt id -> its responses that are on disk, without the sampler's log-probabilities, which are half of them.

        DataError when the prompt was given in other tokens.
        """
        folder = self.samples_of(model)
        parts = read_lists(folder) if list_parts(folder) else ()
        lists = {
            item.prompt.id: item.replace(candidates=tuple(c.replace(log_probs=()) for c in item.candidates))
            for item in parts
        }
        for prompt in self.prompts:
            if prompt.id in lists and lists[prompt.id].prompt_token_ids != model.token_ids[prompt.id]:
                raise DataError(
                    f"{folder} holds responses to another prompt under the id {prompt.id!r}; give another --out folder"
                )
        return {prompt.id: lists[prompt.id] for prompt in self.prompts if prompt.id in lists}


def chosen(
    recipe: str | None, overrides: Sequence[str], run: Path | None, models: Sequence[str]
) -> tuple[Config, str, list[tuple[str, str]]]:
    """Configuration, name and (name, model) pairs that a command line asks for.

    A run brings its configuration, and its base policy and aligned model before the others; without any model the
    recipe's own policy is evaluated. ConfigError for names that cannot be told apart or used as a folder's.
    """
    if (recipe is None) == (run is None):
        raise ConfigError("give either a recipe, such as `quickstart`, or --run RUN_DIR")
    pairs = [_named(text) for text in models]
    if run is not None:
        if not (run / CONFIG_FILE).is_file() or not (run / "model").is_dir():
            raise DataError(f"{run} is no finished run: it lacks {CONFIG_FILE} or model/; give one, such as runs/NAME")
        config, name = load_config(str(run / CONFIG_FILE), overrides), run.resolve().name
        pairs = [("base", config.policy.model), ("aligned", str(run / "model")), *pairs]
    else:
        config, name = load_config(str(recipe), overrides), recipe_name(str(recipe))
        pairs = pairs or [("base", config.policy.model)]
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--model: {', '.join(twice)} names two models; give each its own NAME=")
    return config, name, pairs


def _named(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not equals or not model or not re.fullmatch(MODEL_NAME, name):
        raise ConfigError(
            f"--model {text}: must be NAME=FOLDER_OR_HUB_ID with a name of letters, digits, dots and dashes,"
            " such as --model tuned=runs/NAME/model"
        )
    return name, model


def prepare_evaluation(config: Config, models: Sequence[tuple[str, str]], folder: Path) -> PreparedEvaluation:
    """Load and check everything; writes nothing but the policy cache.

    Raises ConfigError or DataError naming what cannot be used.
    """
    check_comparable(config, len(models), joint=bool(config.reward.joint_kinds))
    config = settled(config)
    reranker = config.evaluation.sweep.reranker
    for section in (config.reward, *([reranker] if reranker else [])):
        check_reward(section)
    heldout = load_prompts(config.prompts).heldout[: config.evaluation.sweep.prompts]
    if not heldout:
        raise ConfigError("prompts.heldout_count = 0: an evaluation needs held-out prompts; hold some out")
    check_answer_keys(config.reward, heldout)
    opened = [_opened(config, heldout, name, model) for name, model in models]
    limit, notes = config.prompts.max_prompt_tokens, []

    def longest(prompt: Prompt) -> tuple[int, ...]:
        return max((model.token_ids[prompt.id] for model in opened), key=len)

    kept, long = drop_long(heldout, longest, limit)
    if long:
        notes.append(
            f"{len(long)} held-out prompts are longer than {limit} tokens (prompts.max_prompt_tokens), left out"
        )
    if not kept:
        raise DataError(f"no held-out prompt is left: {notes[-1]}; raise the knob")
    return PreparedEvaluation(
        config,
        folder.resolve(),
        kept,
        tuple(opened),
        tuple(notes),
        reward=reward_identity(config.reward),
        reranker=reward_identity(reranker) if reranker else "",
    )


def check_comparable(config: Config, models: int, *, joint: bool) -> None:
    """ConfigError for several models whose rewards would compare within one list alone."""
    if joint and models > 1:
        raise ConfigError(
            f"reward.kind = {config.reward.kind!r}: ranks the responses to a prompt together, so that its rewards do"
            f" not compare models; evaluate one model at a time, or choose another reward ({SCORES_EACH})"
        )


def _opened(config: Config, prompts: Sequence[Prompt], name: str, model: str) -> EvaluatedModel:
    knobs = config.policy
    revision = knobs.revision if model == knobs.model else None
    policy = prepare_policy(knobs.model_copy(update={"model": model, "revision": revision}))
    tokenizer, generation, shape = open_policy(policy, knobs.trust_remote_code)
    positions = getattr(shape, "max_position_embeddings", None)
    if positions is not None and config.samplers.max_model_len > positions:
        raise ConfigError(
            f"samplers.max_model_len = {config.samplers.max_model_len}: {name} ({model}) has {positions} positions"
            " (max_position_embeddings); lower it"
        )
    token_ids = {
        prompt.id: tuple(
            encode_prompt(tokenizer, prompt, system=config.prompts.system, require_template=knobs.require_chat_template)
        )
        for prompt in prompts
    }
    vocabulary = f"{stable_hash(sorted(tokenizer.get_vocab().items())):016x}"
    ends = stop_token_ids(tokenizer, generation)
    return EvaluatedModel(name, policy, token_ids, ends, vocabulary, tokenizer.chat_template is not None)


def begin(evaluation: PreparedEvaluation) -> None:
    """Make the folder, or go on with the one there; DataError when it was begun with other models or settings."""
    config, file = evaluation.config, evaluation.folder / INPUTS_FILE
    if evaluation.folder.exists() and not file.is_file() and any(evaluation.folder.iterdir()):
        raise DataError(f"{evaluation.folder} holds something else; give another --out folder")
    sweep = config.evaluation.sweep
    settings: dict[str, Any] = {
        "samples": sweep.samples,
        "temperatures": list(sweep.temperatures),
        "max_new_tokens": config.sampling.max_new_tokens,
        "stop": list(config.sampling.stop),
        "dtype": config.policy.dtype,
        "reward": evaluation.reward,
    }
    models = {
        model.name: f"{model.policy.fingerprint}-{stable_hash(model.stop_token_ids):016x}"
        for model in evaluation.models
    }
    before = json.loads(file.read_text()) if file.is_file() else {"settings": settings, "models": {}}
    changed = [name for name, value in settings.items() if before["settings"].get(name) != value]
    changed += [name for name, value in models.items() if before["models"].get(name, value) != value]
    if changed:
        raise DataError(
            f"{evaluation.folder} was begun with other values of {', '.join(changed)}; give another --out folder, or"
            " the values that it was begun with"
        )
    try:
        evaluation.folder.mkdir(parents=True, exist_ok=True)
        (evaluation.folder / CONFIG_FILE).write_text(config_to_yaml(config))
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"settings": settings, "models": before["models"] | models}, indent=2) + "\n")
        partial.rename(file)
    except OSError as error:
        raise DataError(f"{evaluation.folder} cannot be written ({error}); give another --out folder") from error
