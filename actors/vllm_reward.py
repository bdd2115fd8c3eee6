"""Rewards by a model with a head of one output that vLLM's pooling runner serves in the reward actor itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.engine import EngineOptions, PoolingEngine
from larpo.conversations import encode_conversation
from larpo.errors import RewardError
from larpo.model_folder import reader_fingerprint
from larpo.reward_config import Pooling
from larpo.reward_config import Reward as RewardSection
from larpo.rewards import Request, Reward, finite
from larpo.types import Prompt, stable_hash


class VllmReward:
    """Scores whole conversations as `larpo.classifier_reward` does: the same tokens, and the head's raw output.

    A conversation of more than `max_model_len` tokens, and a score that is not finite, cost that one reward.

    Raises ConfigError or DataError as `larpo.classifier_reward.pooling_folder`, RewardError when vLLM's engine does not
    start or has died; after its death the model scores nothing any more.
    """

    joint = False

    def __init__(self, section: Pooling, *, failed_reward: float = 0.0) -> None:
        from transformers import AutoTokenizer

        from larpo.classifier_reward import pooling_folder

        folder = pooling_folder(section)
        self._section, self._failed = section, failed_reward
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=section.trust_remote_code
        )
        model = reader_fingerprint(folder)
        self.fingerprint = f"{stable_hash('vllm', model, section.dtype, section.max_model_len):016x}"
        self._engine = _started(section, folder)

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[Reward]:
        return self.score_lists([(prompt, responses)])[0]

    def score_lists(self, requests: Sequence[Request]) -> list[list[Reward]]:
        """All conversations of all lists at once; the engine makes its own batches."""
        conversations = [encode_conversation(self._tokenizer, p, text) for p, texts in requests for text in texts]
        encoded = [list(conversation.ids) for conversation in conversations]
        limit = self._section.max_model_len
        whole = [ids for ids in encoded if len(ids) <= limit]
        try:
            scores = iter(self._engine.scores(whole))
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise RewardError(f"vLLM's engine of reward.pooling.model = {self._section.model!r}: {cause}") from error
        too_long = "{} tokens, over the limit of {} (reward.pooling.max_model_len)"
        flat = iter(
            [
                finite(next(scores), self._failed)
                if len(ids) <= limit
                else Reward(self._failed, too_long.format(len(ids), limit))
                for ids in encoded
            ]
        )
        return [[next(flat) for _ in texts] for _, texts in requests]

    def close(self) -> None:
        """Ends the engine's processes."""
        try:
            self._engine.shutdown()
        except Exception as error:  # it is gone already: nothing is left to free
            logging.getLogger(__name__).warning("vLLM's engine did not shut down: %s", error)


def _started(section: Pooling, folder: Path) -> PoolingEngine:
    options = EngineOptions(
        dtype=section.dtype,
        trust_remote_code=section.trust_remote_code,
        tensor_parallel_size=section.tensor_parallel_size,
        max_model_len=section.max_model_len,
        max_num_seqs=section.max_num_seqs,
        memory_fraction=section.memory_fraction,
        cpu_kv_cache_gib=section.cpu_kv_cache_gib,
        cpu_cores=section.cpu_cores,
        enforce_eager=section.enforce_eager,
    )
    try:
        return PoolingEngine(folder, options)
    except Exception as error:
        raise RewardError(
            f"vLLM's engine for reward.pooling.model = {section.model!r} did not start "
            f"({type(error).__name__}: {error}); "
            "the actor's log has the cause: often memory (reward.pooling.memory_fraction, "
            "cpu_kv_cache_gib), too few positions for max_model_len, or a model that vLLM does not know"
        ) from error


def make_vllm_reward(section: RewardSection) -> VllmReward:
    return VllmReward(section.pooling, failed_reward=section.failed_reward)
