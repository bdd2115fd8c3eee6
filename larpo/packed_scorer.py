"""A causal language model whose forward pass scores a packed row: what a training engine wraps and hooks into."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from larpo.log_probs import PackedLogProbs, packed_log_probs
from larpo.packing import PackedRow
from larpo.types import stable_hash


class PackedScorer(torch.nn.Module):
    """Gives (token_log_probs_N, token_entropies_N) of a row.

    Every pass calls the output head `head_calls` times at least, on no tokens if need be: under ZeRO-3 each call of a
    module is collective, and rows have more chunks or fewer.

    What dropout leaves out of a row follows from the row and `step_seed` alone: it is the same in both passes of a list
    that takes two, on whatever rank, and after a restart.
    """

    model: Any

    def __init__(self, model: torch.nn.Module, chunk_tokens: int) -> None:
        super().__init__()
        self.model, self.chunk_tokens = model, chunk_tokens
        self.head_calls, self.step_seed = 1, 0

    def forward(self, row: PackedRow) -> tuple[Tensor, Tensor]:
        torch.manual_seed(stable_hash(self.step_seed, row.input_ids_T.tolist()))
        backbone = partial(self._backbone, self.head_calls - self.chunks_of(row))
        model: Any = SimpleNamespace(
            base_model=backbone,
            get_output_embeddings=self.model.get_output_embeddings,
            config=self.model.config,
            device=self.model.device,
            dtype=self.model.dtype,
        )
        result = packed_log_probs(model, row, chunk_size=self.chunk_tokens)
        return result.token_log_probs_N, result.token_entropies_N

    def chunks_of(self, row: PackedRow) -> int:
        return -(-sum(row.response_lengths) // self.chunk_tokens)

    def _backbone(self, empty_calls: int, **inputs: Any) -> Any:
        """The model's, and then calls of the head on nothing.

        In the backward pass they gather the head as often as a chunk does, and when it does: once to repeat the call,
        because what comes after it (here `exp`) asks for its result, and once for the gradient.
        """
        output, head = self.model.base_model(**inputs), self.model.get_output_embeddings()

        def zero(hidden_0H: Tensor) -> Tensor:
            return head(hidden_0H).exp().sum()

        for _ in range(empty_calls):
            hidden_0H = output.last_hidden_state[0, :0]
            nothing = checkpoint(zero, hidden_0H, use_reentrant=False, preserve_rng_state=False)
            output.last_hidden_state = output.last_hidden_state + nothing
        return output


def scored(scorer: Callable[[PackedRow], tuple[Tensor, Tensor]], row: PackedRow) -> PackedLogProbs:
    """What a `PackedScorer`, wrapped or not, says of a row."""
    log_probs_N, entropies_N = scorer(row)
    return PackedLogProbs(log_probs_N, entropies_N, row.response_lengths)


def has_dropout(model: torch.nn.Module) -> bool:
    """Whether a pass in training mode may differ from one in evaluation mode.

    Told by what modules hold under such names, for not all dropout is a module; a share that is not used counts too.
    """
    return any(
        isinstance(value, float) and value > 0 and (name == "p" or "drop" in name or "jitter" in name)
        for module in model.modules()
        for name, value in vars(module).items()
    )
