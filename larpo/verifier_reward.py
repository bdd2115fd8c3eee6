"""Rewards by a verifier that runs in a process of its own, with a time limit a response."""

from __future__ import annotations

from collections.abc import Sequence

from larpo.function_caller import FunctionCaller
from larpo.rewards import Request, Reward
from larpo.types import Prompt, stable_hash
from larpo.verifiers import check_verifier_name, verifier_version


class VerifierReward:
    """A response that the verifier gave no finite number in time gets `failed_reward`, and the reason.

    An empty response is scored as any other. Errors are those of `FunctionCaller`.
    """

    joint = False

    def __init__(self, name: str, *, timeout_s: float = 5.0, failed_reward: float = 0.0) -> None:
        check_verifier_name(name)
        self.fingerprint = verifier_fingerprint(name, timeout_s, failed_reward)
        self._failed = failed_reward
        self._verifier = FunctionCaller("verifier", name, timeout_s)

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[Reward]:
        return self.score_lists([(prompt, responses)])[0]

    def score_lists(self, requests: Sequence[Request]) -> list[list[Reward]]:
        found = iter(self._verifier.call([(prompt, [text]) for prompt, texts in requests for text in texts]))
        return [[self._reward(next(found)) for _ in texts] for _, texts in requests]

    def close(self) -> None:
        """Ends the verifier's process after the call that it is working on. Closing twice does nothing."""
        self._verifier.close()

    def _reward(self, found: list[float] | str) -> Reward:
        return Reward(self._failed, found) if isinstance(found, str) else Reward(found[0])


def verifier_fingerprint(name: str, timeout_s: float, failed_reward: float) -> str:
    """Short hash of everything that decides a verifier's rewards: name, versions and the two knobs."""
    return f"{stable_hash('verifier', name, verifier_version(name), timeout_s, failed_reward):016x}"
