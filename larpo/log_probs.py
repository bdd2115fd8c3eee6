"""Log-probabilities of the responses of a packed row, without a [tokens, vocabulary] logit tensor.

The backbone runs once over the row; then the LM head runs over the response positions only, in chunks. A
chunk's logits are recomputed in the backward pass, except the last chunk's, which the backward pass needs
first: so at most one chunk of logits is alive, and a row of one chunk recomputes nothing.

Only modules are called, the backbone and the head, never their weights: parameters that are gathered in the
hooks of a module (DeepSpeed ZeRO-3) are there when needed, and tied weights get one gradient. Such an engine must
itself wrap a module whose forward calls `packed_log_probs`: ZeRO-3 keeps its books in hooks on the outermost module,
and rows that go past it get wrong gradients without an error (tried with DeepSpeed 0.19.8, two passes a step).

T tokens of a row, M responses, N response tokens, C tokens of a chunk, B of a block, V vocabulary, H hidden
size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from larpo.attention import packed_attention_mask
from larpo.errors import ConfigError
from larpo.gpu_attention import FLEX, FLEX_TOKENS, flex_options
from larpo.packing import PackedRow, pack_list, pad_row

# Float32 temporaries of so many elements: 4 MiB stay in a CPU's cache, 256 MiB are a small part of a GPU's memory.
_BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}


@dataclass(frozen=True, eq=False)
class PackedLogProbs:
    """What the policy says of each response token, all float32; entropies carry no gradient."""

    token_log_probs_N: Tensor
    token_entropies_N: Tensor
    response_lengths: tuple[int, ...]

    @property
    def log_probs_M(self) -> Tensor:
        """`log pi(y_m | x)`: the sum over the tokens of each response."""
        return torch.stack([part.sum() for part in self.token_log_probs_N.split(self.response_lengths)])

    def detached(self) -> PackedLogProbs:
        return PackedLogProbs(self.token_log_probs_N.detach(), self.token_entropies_N, self.response_lengths)

    def of_lists(self, row: PackedRow) -> list[PackedLogProbs]:
        """The same of each list of the row that it was computed of."""
        counts = [sum(shape.response_lengths) for shape in row.lists]
        parts = zip(self.token_log_probs_N.split(counts), self.token_entropies_N.split(counts), row.lists, strict=True)
        return [PackedLogProbs(values, entropies, shape.response_lengths) for values, entropies, shape in parts]


def packed_log_probs(model: PreTrainedModel, row: PackedRow, *, chunk_size: int = 512) -> PackedLogProbs:
    """Log-probabilities and entropies of every response token of a row.

    Equal, within float tolerance, to `plain_log_probs` of each response. `log softmax` is taken in float32,
    after the model's final softcap where its configuration has one.

    Args:
        model: a causal language model, loaded with `larpo.attention.attention_implementation`.
        row: one list or several, from `larpo.packing`.
        chunk_size: response tokens whose logits are alive at once.
    Raises:
        ConfigError: a chunk size below 1, or the model's attention implementation cannot serve packed rows.
    """
    row, options = row.to(model.device), {}
    if model.config._attn_implementation == FLEX:
        row, options = pad_row(row, FLEX_TOKENS), flex_options(model.config, model.device)
    hidden_TH = model.base_model(
        input_ids=row.input_ids_T[None],
        position_ids=row.position_ids_T[None],
        attention_mask=packed_attention_mask(model.config, row, model.dtype),
        use_cache=False,
        **options,
    ).last_hidden_state[0]
    log_probs_N, entropies_N = chunked_log_probs(
        model.get_output_embeddings(),
        hidden_TH.index_select(0, row.predictor_indices_N),
        row.target_ids_N,
        chunk_size=chunk_size,
        softcap=getattr(model.config, "final_logit_softcapping", None),
    )
    return PackedLogProbs(log_probs_N, entropies_N, row.response_lengths)


def plain_log_probs(model: PreTrainedModel, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Tensor:
    """The same of one response, token_log_probs_N, by the model's own forward pass and all its logits."""
    row = pack_list(prompt_ids, [response_ids]).to(model.device)
    logits_TV = model(input_ids=row.input_ids_T[None], use_cache=False).logits[0]
    log_probs_NV = logits_TV[len(prompt_ids) - 1 : -1].float().log_softmax(-1)
    return log_probs_NV.gather(1, row.target_ids_N[:, None]).squeeze(1)


def chunked_log_probs(
    head: nn.Module, hidden_NH: Tensor, targets_N: Tensor, *, chunk_size: int, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """`log softmax(cap(head(hidden)))[target]` and the entropy, float32 [N] each, by chunks.

    `cap(x) = softcap * tanh(x / softcap)` (Gemma-2, arXiv 2408.00118, section 2), or nothing.
    """
    if chunk_size < 1:
        raise ConfigError(f"chunk size is {chunk_size}; it counts tokens: choose 1 or more, 512 for example")
    count = len(targets_N)
    # The short chunk goes first, for the last one is spared the recomputation.
    sizes = [size for size in [count % chunk_size] + [chunk_size] * (count // chunk_size) if size]
    *early, last = zip(hidden_NH.split(sizes), targets_N.split(sizes), strict=True)

    def of_chunk(hidden_CH: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
        return _TargetLogProbs.apply(head(hidden_CH), targets_C, softcap)

    parts = [checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in early]
    log_probs, entropies = zip(*parts, of_chunk(*last), strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


class _TargetLogProbs(torch.autograd.Function):
    """(logits_CV, targets_C, softcap) -> (log_probs_C, entropies_C), in float32 by blocks of rows.

    log p = x_target - logsumexp(x) and its gradient in x is onehot(target) - softmax(x). Written out, for
    autograd would keep several float32 copies of the logits; here a copy is as large as a block.
    """

    @staticmethod
    def forward(ctx: Any, logits_CV: Tensor, targets_C: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
        log_normalizers_C = logits_CV.new_empty(len(logits_CV), dtype=torch.float32)
        log_probs_C, entropies_C = torch.empty_like(log_normalizers_C), torch.empty_like(log_normalizers_C)
        for block in _blocks(logits_CV):
            x_BV = _capped(logits_CV[block].float(), softcap)
            top_B1 = x_BV.amax(1, keepdim=True)
            x_BV = x_BV - top_B1
            weights_BV = x_BV.exp()
            totals_B = weights_BV.sum(1)
            log_normalizers_C[block] = top_B1.squeeze(1) + totals_B.log()
            log_probs_C[block] = x_BV.gather(1, targets_C[block, None]).squeeze(1) - totals_B.log()
            entropies_C[block] = totals_B.log() - torch.linalg.vecdot(weights_BV, x_BV) / totals_B
        ctx.save_for_backward(logits_CV, targets_C, log_normalizers_C)
        ctx.softcap = softcap
        ctx.mark_non_differentiable(entropies_C)
        return log_probs_C, entropies_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_C: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        logits_CV, targets_C, log_normalizers_C = ctx.saved_tensors
        grad_CV = torch.empty_like(logits_CV)
        for block in _blocks(logits_CV):
            x_BV = _capped(logits_CV[block].float(), ctx.softcap)
            grad_BV = (x_BV - log_normalizers_C[block, None]).exp_().mul_(-grad_C[block, None])
            grad_BV.scatter_add_(1, targets_C[block, None], grad_C[block, None])
            if ctx.softcap is not None:
                grad_BV.mul_(1 - (x_BV / ctx.softcap) ** 2)
            grad_CV[block] = grad_BV
        return grad_CV, None, None


def _blocks(logits_CV: Tensor) -> Iterator[slice]:
    rows, vocabulary = logits_CV.shape
    size = max(1, _BLOCK_ELEMENTS.get(logits_CV.device.type, rows * vocabulary) // vocabulary)
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _capped(x: Tensor, softcap: float | None) -> Tensor:
    return x if softcap is None else torch.tanh(x / softcap).mul_(softcap)


@torch.no_grad()
def check_packed(model: PreTrainedModel, *, tolerance: float | None = None) -> float:
    """Refuse a model whose packed log-probabilities are not those of its own plain forward pass.

    A small random list is computed both ways, the plain one with eager attention. What makes them differ:
    logits that are not `head(backbone(x))` (a logit scale), layers with a state, attention that ignores the
    mask. A sliding window longer than the 32 tokens of the list's sequences is not seen here.

    Args:
        tolerance: the largest mean absolute difference of a token's log-probability; by default 1e-4 in float32,
            0.25 in half precision, where SmolLM2 shows 0.05.
    Returns:
        the mean absolute difference.
    Raises:
        ConfigError: the difference exceeds the tolerance, or attention cannot serve packed rows.
    """
    if tolerance is None:
        tolerance = 1e-4 if model.dtype == torch.float32 else 0.25
    generator = torch.Generator().manual_seed(0)
    vocabulary: int = model.config.vocab_size
    prompt, *responses = (
        torch.randint(vocabulary, (length,), generator=generator).tolist() for length in (20, 12, 5, 9)
    )
    with _evaluating(model):
        packed_N = packed_log_probs(model, pack_list(prompt, responses), chunk_size=7).token_log_probs_N
        with _eager(model):
            plain_N = torch.cat([plain_log_probs(model, prompt, response) for response in responses])
    difference = (packed_N - plain_N).abs().mean().item()
    if not difference <= tolerance:
        raise ConfigError(
            f"packed log-probabilities of {type(model).__name__} differ from its own by {difference:.2g} a "
            f"token, the limit is {tolerance:g}: its logits are not its head applied to its backbone, or its "
            "layers do not keep to the packed mask; choose a policy of another architecture (Llama, Qwen2, "
            "Mistral and Gemma-2 pass)"
        )
    return difference


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)
