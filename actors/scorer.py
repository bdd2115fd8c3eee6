"""The scorer actor: log-probabilities that a model gives to the responses of recorded lists. Undecorated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from larpo.config import Config

if TYPE_CHECKING:
    from larpo.policy import PreparedPolicy

Scored = tuple[Sequence[int], Sequence[Sequence[int]]]  # a prompt's token ids, and those of its responses


class Scorer:
    """One model, whole on one device: the GPU that the actor has, else its CPU."""

    def __init__(self, config: Config, policy: PreparedPolicy) -> None:
        self._config, self._policy = config, policy
        self._model: Any = None

    def load(self) -> None:
        """Load the model; ConfigError when packed rows cannot serve it."""
        import torch
        from transformers import AutoConfig

        from larpo.attention import attention_implementation
        from larpo.log_probs import check_packed
        from larpo.policy import folder_on_this_node, load_policy

        path = folder_on_this_node(self._policy)
        training, policy = self._config.training, self._config.policy
        device = "cuda" if training.resources_per_worker.get("GPU", 0) > 0 else "cpu"
        if device == "cpu" and training.threads:
            torch.set_num_threads(training.threads)
        shape = AutoConfig.from_pretrained(path, trust_remote_code=policy.trust_remote_code)
        model = load_policy(
            path,
            dtype=policy.dtype,
            attn_implementation=attention_implementation(shape, device),
            trust_remote_code=policy.trust_remote_code,
        )
        self._model = model.to(device).requires_grad_(False)
        check_packed(self._model)

    def score(self, lists: Sequence[Scored]) -> list[list[float]]:
        """`log pi(y | x)`, summed over the tokens of each response, of every list."""
        import torch

        from larpo.log_probs import packed_log_probs
        from larpo.packing import split_list

        training, scores = self._config.training, []
        with torch.no_grad():
            for prompt_ids, responses in lists:
                rows = split_list(prompt_ids, responses, training.row_tokens)
                parts = [packed_log_probs(self._model, row, chunk_size=training.chunk_tokens) for row in rows]
                scores.append([value for part in parts for value in part.log_probs_M.tolist()])
        return scores
