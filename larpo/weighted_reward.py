"""Several rewards added up by weight, and a term for the length of a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from larpo.reward_config import Reward as RewardSection
from larpo.rewards import Maker, Request, Reward, finite, make_reward_model
from larpo.types import Prompt, stable_hash


class WeightedReward:
    """`reward = sum over parts of weight * reward of the part + word_weight * words`.

    A response that one part could not score gets `failed_reward`, and the part's reason: a sum without it would rank
    it by something else than the others.
    """

    def __init__(self, section: RewardSection, makers: Mapping[str, Maker] | None = None) -> None:
        self._section = section
        self._models = [make_reward_model(part, makers) for part in section.parts]
        self.joint = any(model.joint for model in self._models)
        parts = [f"{model.fingerprint}*{part.weight}" for model, part in zip(self._models, section.parts, strict=True)]
        self.fingerprint = f"{stable_hash('weighted', *parts, section.word_weight, section.failed_reward):016x}"

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[Reward]:
        return self.score_lists([(prompt, responses)])[0]

    def score_lists(self, requests: Sequence[Request]) -> list[list[Reward]]:
        by_part = [model.score_lists(requests) for model in self._models]
        return [
            [self._sum(text, [rewards[row][column] for rewards in by_part]) for column, text in enumerate(texts)]
            for row, (_, texts) in enumerate(requests)
        ]

    def close(self) -> None:
        for model in self._models:
            model.close()

    def _sum(self, text: str, rewards: Sequence[Reward]) -> Reward:
        total = self._section.word_weight * len(text.split())
        for part, reward in zip(self._section.parts, rewards, strict=True):
            if reward.failure:
                return Reward(self._section.failed_reward, f"{part.kind} {part.source}: {reward.failure}")
            total += part.weight * reward.value
        return finite(total, self._section.failed_reward)
