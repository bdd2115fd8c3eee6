"""Reward models: what ranks the responses of a list.

A reward model sees a prompt and all of its responses at once, so a verifier and a pairwise ranker fit the
same protocol. Where a response's reward depends on the others it was seen with, the model is `joint`: its rewards
compare within the list that was asked for, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from larpo.errors import ConfigError
from larpo.model_folder import reader_fingerprint
from larpo.reward_config import Reward as RewardSection
from larpo.types import Prompt, stable_hash
from larpo.user_function import source_version


@dataclass(frozen=True)
class Reward:
    """The reward of one response; `failure` is empty, or says why it is not the reward model's own."""

    value: float
    failure: str = ""


Request = tuple[Prompt, Sequence[str]]


class RewardModel(Protocol):
    """What ranks. `fingerprint` changes whenever the same response could get another reward.

    `joint`: the reward of a response is a function of the prompt and of all responses, in their order.
    """

    fingerprint: str
    joint: bool

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[Reward]:
        """Rewards of a prompt's responses, in their order."""
        ...

    def score_lists(self, requests: Sequence[Request]) -> list[list[Reward]]:
        """Rewards of several prompts' responses, in their order."""
        ...

    def close(self) -> None:
        """Frees what the model holds; it cannot score afterwards."""
        ...


Maker = Callable[[RewardSection], RewardModel]


def make_reward_model(section: RewardSection, makers: Mapping[str, Maker] | None = None) -> RewardModel:
    """The reward model that a recipe's `reward` section names.

    `makers` make the kinds that need more than this room may import: `actors.reward` has them.
    Raises ConfigError or DataError for one that cannot be loaded, RewardError for one that does not start.
    """
    if makers and section.kind in makers:
        return makers[section.kind](section)
    if section.kind == "vllm":
        raise ConfigError("reward.kind = 'vllm': only a reward actor has vLLM; use actors.reward.RewardActor")
    if section.kind == "sequence_classification":
        from larpo.classifier_reward import ClassifierReward

        return ClassifierReward(section.classifier, failed_reward=section.failed_reward)
    if section.kind == "pairwise":
        from larpo.pairwise_reward import PairwiseReward

        return PairwiseReward(section.ranker, failed_reward=section.failed_reward)
    if section.kind == "weighted":
        from larpo.weighted_reward import WeightedReward

        return WeightedReward(section, makers)
    if section.kind == "http":
        from larpo.http_reward import HttpReward

        return HttpReward(section.endpoint, failed_reward=section.failed_reward)
    if section.kind == "callable":
        from larpo.callable_reward import CallableReward

        return CallableReward(section.name, timeout_s=section.timeout_s, failed_reward=section.failed_reward)
    from larpo.verifier_reward import VerifierReward

    return VerifierReward(section.name, timeout_s=section.timeout_s, failed_reward=section.failed_reward)


def check_reward(section: RewardSection) -> None:
    """What can be known before a run starts: ConfigError or DataError for a reward model that cannot be used.

    A hub model is downloaded here; a server is not asked.
    """
    if section.kind == "verifier":
        from larpo.verifier_reward import VerifierReward
        from larpo.verifiers import verifier_version

        verifier_version(section.name)
        if ":" in section.name:  # a user's function: whether it loads is seen in its own process
            VerifierReward(section.name).close()
    if section.kind == "callable":
        from larpo.callable_reward import CallableReward

        CallableReward(section.name).close()
    reward_folder(section)
    for part in section.parts:
        check_reward(part)


def check_answer_keys(section: RewardSection, prompts: Iterable[Prompt]) -> None:
    """DataError where a verifier of the section cannot give a right answer to such prompts its whole reward."""
    if any(part.kind == "verifier" and part.name == "reasoning_gym" for part in section.sections()):
        from larpo.verifiers import check_answers

        check_answers(prompts)


def reward_folder(section: RewardSection) -> Path | None:
    """The checked folder of the model that a section names itself, downloaded if it is a hub id; None if it names none.

    Raises ConfigError or DataError for one that cannot be used.
    """
    if section.kind == "sequence_classification":
        from larpo.classifier_reward import classifier_folder

        return classifier_folder(section.classifier)
    if section.kind == "pairwise":
        from larpo.pairwise_reward import ranker_folder

        return ranker_folder(section.ranker)
    if section.kind == "vllm":
        from larpo.classifier_reward import pooling_folder

        return pooling_folder(section.pooling)
    return None


def reward_identity(section: RewardSection) -> str:
    """16 hex digits that change with the section, and with the code or the model behind it; a server is not asked."""
    parts = []
    for part in section.sections():
        behind = ""
        if part.kind == "verifier":
            from larpo.verifiers import verifier_version

            behind = verifier_version(part.name)
        elif part.kind == "callable":
            behind = source_version(part.name, "callable")
        elif (folder := reward_folder(part)) is not None:
            behind = reader_fingerprint(folder)
        parts.append(behind)
    return f"{stable_hash(section.model_dump_json(), *parts):016x}"


def finite(value: float, failed_reward: float) -> Reward:
    """A model's number as a reward: one that is not finite is a failure."""
    return Reward(value) if math.isfinite(value) else Reward(failed_reward, f"not finite ({value})")
