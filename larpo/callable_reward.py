"""Rewards by a user's function of a prompt and all of its responses, in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence

from larpo.function_caller import FunctionCaller
from larpo.rewards import Request, Reward
from larpo.types import Prompt, stable_hash
from larpo.user_function import source_version


class CallableReward:
    """`module:function` of `(Prompt, Sequence[str]) -> Sequence[float]`: one finite number a response.

    A function that raises, crashes, exceeds the limit or gives another count or a number that is not finite costs the
    rewards of that list: each is `failed_reward`, with the reason. Other errors are those of `FunctionCaller`.
    """

    joint = True

    def __init__(self, name: str, *, timeout_s: float = 5.0, failed_reward: float = 0.0) -> None:
        version = source_version(name, "callable")
        self.fingerprint = f"{stable_hash('callable', name, version, timeout_s, failed_reward):016x}"
        self._failed = failed_reward
        self._function = FunctionCaller("callable", name, timeout_s)

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[Reward]:
        return self.score_lists([(prompt, responses)])[0]

    def score_lists(self, requests: Sequence[Request]) -> list[list[Reward]]:
        found = self._function.call(requests)
        return [self._rewards(answer, len(texts)) for answer, (_, texts) in zip(found, requests, strict=True)]

    def close(self) -> None:
        """Ends the function's process after the call that it is working on. Closing twice does nothing."""
        self._function.close()

    def _rewards(self, answer: list[float] | str, count: int) -> list[Reward]:
        if isinstance(answer, str):
            return [Reward(self._failed, answer)] * count
        return [Reward(value) for value in answer]
