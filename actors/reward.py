"""The reward actor: a reward model behind an asynchronous door. Undecorated; wrapped where it is placed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from actors.titles import show_title
from actors.vitals import vitals
from actors.vllm_reward import make_vllm_reward
from larpo.reward_config import Reward as RewardSection
from larpo.rewards import Maker, Request, Reward, RewardModel, make_reward_model

MAKERS: dict[str, Maker] = {"vllm": make_vllm_reward}


@dataclass(frozen=True)
class Described:
    """What ranks: `fingerprint` goes into every candidate that it gives a reward; `joint` as in `RewardModel`."""

    kind: str
    name: str
    fingerprint: str
    joint: bool = False


class RewardActor:
    """Ranks one batch of lists at a time, off the event loop, and keeps count of what it did."""

    def __init__(self, section: RewardSection) -> None:
        self._section = section
        self._model: RewardModel | None = None  # until it is asked for: finding a node is another wait than loading
        self._turn = asyncio.Lock()
        self._busy_seconds = 0.0
        self._lists = self._responses = self._failures = 0
        self._ranking = 0  # lists of the batch at work
        show_title(self.doing)

    def __repr__(self) -> str:
        return f"Reward of kind {self._section.kind}"

    def doing(self) -> str:
        """For its process's title."""
        at_work = f"ranks {self._ranking} lists" if self._ranking else "idle"
        return f"{at_work}, {self._lists} lists so far, {self._failures} responses failed"

    async def placed(self) -> None:
        """Returns when a node has the actor."""

    async def rank(self, requests: Sequence[Request]) -> list[list[Reward]]:
        """Rewards of several prompts' responses, in their order."""
        async with self._turn:
            model = await self._loaded()
            start, self._ranking = time.monotonic(), len(requests)
            try:
                rewards = await asyncio.to_thread(model.score_lists, requests)
            finally:
                self._busy_seconds += time.monotonic() - start
                self._ranking = 0
        self._lists += len(rewards)
        self._responses += sum(len(of_list) for of_list in rewards)
        self._failures += sum(bool(reward.failure) for of_list in rewards for reward in of_list)
        return rewards

    async def describe(self) -> Described:
        """What ranks here, once it is loaded. Raises what `make_reward_model` raises."""
        async with self._turn:
            model = await self._loaded()
        return Described(self._section.kind, self._section.name, model.fingerprint, model.joint)

    async def _loaded(self) -> RewardModel:
        if self._model is None:
            return await asyncio.to_thread(self.load)
        return self._model

    def load(self) -> RewardModel:
        """Make the model. What it starts may end with the thread that calls this."""
        if self._model is None:
            self._model = make_reward_model(self._section, MAKERS)
        return self._model

    async def stats(self) -> dict[str, float]:
        """Since the start: seconds spent on finished batches; counts of lists, responses and failures; memory."""
        return {
            "busy_seconds": self._busy_seconds,
            "lists": self._lists,
            "responses": self._responses,
            "failures": self._failures,
            "memory_bytes": vitals().memory_bytes,
        }

    async def close(self) -> None:
        """Frees the reward model, after the batch that it is working on."""
        async with self._turn:
            if self._model is not None:
                await asyncio.to_thread(self._model.close)
