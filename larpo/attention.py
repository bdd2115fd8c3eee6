"""Attention for packed rows: a response sees its prompt and itself.

Three ways to the same rule, by the model's `attn_implementation`:

- `larpo_segments` (CPU): an attention call for prompt and first response, and one for each other response, on the
  prompt's keys and its own. Masks are of prompt and response, in steps of 256 tokens, and what one would throw away is
  not computed.
  Serves softcaps (Gemma-2) and sliding windows too.
- `flex_attention` (CUDA): FlexAttention with a block mask made from the segment ids.
- `sdpa`, `eager` (any): an additive [1, 1, T, T] mask; simple and slower, for a model that FlexAttention does not
  serve, or that came loaded so.

flash-attn's kernels cannot express the rule: they serve plain causal rows (`gpu_attention`: reward models).

T tokens of a row, Q queries, K keys, H heads, G key-value heads, D head dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from larpo.errors import ConfigError
from larpo.gpu_attention import FLEX, serves_flex
from larpo.packing import PackedRow

SEGMENTS = "larpo_segments"

LayerMask = Tensor | BlockMask

# Of a span: up to so many, pass and gradient together are faster in float32 than in bfloat16, on two cores with AMX.
FLOAT32_KEYS = 320
MASK_STEP = 256  # tokens by which the shared masks grow
SHARED_MASK = 2048  # tokens up to which they do so for few queries: 16 MiB in float32
NO_WINDOW = 2**30
_SQUARES: dict[tuple[torch.dtype, torch.device, int | None], Tensor] = {}  # for the longest prompt and response so far


def attention_implementation(config: PreTrainedConfig, device_type: str) -> str:
    """The `attn_implementation` with which to load a policy that trains on packed rows.

    Raises:
        ConfigError: the packed rule is not defined for a layer of the model.
    """
    _windows(config)
    if device_type != "cuda":
        return SEGMENTS
    if serves_flex(config):
        return FLEX
    return "eager" if _softcaps(config) else "sdpa"


def packed_attention_mask(
    config: PreTrainedConfig, row: PackedRow, dtype: torch.dtype
) -> LayerMask | dict[str, LayerMask]:
    """What to pass a backbone as `attention_mask`, so that it attends to `row` by the packed rule.

    transformers takes a ready 4D mask as it is, or a dict of one for each layer type where layers differ.

    Raises:
        ConfigError: the model's attention implementation cannot serve packed rows.
    """
    implementation = config._attn_implementation
    windows = _windows(config)
    if implementation == SEGMENTS:
        lengths = [length for shape in row.lists for length in (-shape.prompt_length, *shape.response_lengths)]
        return torch.tensor(lengths).view(1, 1, 1, -1)
    if implementation == FLEX:
        masks = {layer_type: _block_mask(row, window) for layer_type, window in windows.items()}
    elif implementation == "eager" or (implementation == "sdpa" and not _softcaps(config)):
        masks = {layer_type: _additive_mask(row, window, dtype) for layer_type, window in windows.items()}
    else:
        raise ConfigError(
            f"attention {implementation!r} cannot serve packed rows of a {config.model_type} model; load it "
            f"with attn_implementation={attention_implementation(config, row.input_ids_T.device.type)!r}"
        )
    return masks if len(masks) > 1 else next(iter(masks.values()))


def segment_attention(
    module: torch.nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' registry knows as `larpo_segments`.

    An int64 `attention_mask` announces a packed row and holds the lengths of its segments, those of prompts negative;
    it comes from `packed_attention_mask`. Any other mask is transformers' own, for plain rows.

    Returns:
        the attended values, [1, T, H, D], and no weights.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        plain = sdpa_attention_forward if softcap is None else _plain_softcapped
        options = {"sliding_window": sliding_window, "softcap": softcap, **kwargs}
        return plain(module, query_1HTD, key_1GTD, value_1GTD, attention_mask, dropout, scaling, **options)
    lists = list(_spans(attention_mask.flatten().tolist()))
    inputs = query_1HTD, key_1GTD, value_1GTD
    if softcap is None and _is_faster_in_float32(query_1HTD, lists):
        inputs = query_1HTD.float(), key_1GTD.float(), value_1GTD.float()
    sizes = [length for _, lengths in lists for length in lengths]
    parts = zip(*(x.split(sizes, dim=2) for x in inputs), strict=True)
    outputs: list[Tensor] = []
    for prompt_length, lengths in lists:
        spans = list(itertools.islice(parts, len(lengths)))
        outputs += _attend_list(prompt_length, spans, dropout, scaling, sliding_window, softcap)
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1).to(query_1HTD.dtype), None


def _spans(signed_lengths: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Of each list the length of its prompt, and those of its spans: prompt and first response, then each response.

    >>> list(_spans([-5, 2, 3, -4, 1]))
    [(5, [7, 3]), (4, [5])]
    """
    prompts = [number for number, length in enumerate(signed_lengths) if length < 0]
    for start, end in itertools.pairwise([*prompts, len(signed_lengths)]):
        first, *others = signed_lengths[start + 1 : end]
        yield -signed_lengths[start], [first - signed_lengths[start], *others]


def _is_faster_in_float32(query: Tensor, lists: Sequence[tuple[int, Sequence[int]]]) -> bool:
    """Whether a CPU's fused kernels, whose backward pass is slow over few keys in half precision, should get float32.

    Without a gradient to come too: the reference's pass is to round as the policy's does.
    """
    if query.dtype.itemsize > 2 or query.device.type != "cpu":
        return False
    keys = [max([first, *(prompt + length for length in others)]) for prompt, (first, *others) in lists]
    return max(keys) <= FLOAT32_KEYS


def _attend_list(
    prompt_length: int,
    spans: Sequence[tuple[Tensor, Tensor, Tensor]],
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
) -> Iterator[Tensor]:
    """What each span of one list attends to, [1, H, Q, D], from its (query, key, value): the first is plain causal."""
    query, key, value = spans[0]
    length = query.shape[2]
    windowed = sliding_window is not None and sliding_window < length
    mask_QK = _causal_mask(0, length, sliding_window, query) if windowed else None
    yield _attend(query, key, value, mask_QK, dropout, scaling, softcap)
    prompt_key, prompt_value = key[:, :, :prompt_length], value[:, :, :prompt_length]
    for query, key, value in spans[1:]:
        key, value = torch.cat([prompt_key, key], dim=2), torch.cat([prompt_value, value], dim=2)
        mask_QK = _causal_mask(prompt_length, query.shape[2], sliding_window, query)
        yield _attend(query, key, value, mask_QK, dropout, scaling, softcap)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """`softmax(cap(query key^T * scaling) + mask) value`, [1, H, Q, D]; no mask means causal.

    `cap(x) = softcap * tanh(x / softcap)` (Gemma-2, arXiv 2408.00118, section 2), which no SDPA kernel
    computes.
    """
    grouped = query.shape[1] != key.shape[1]
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
    mask = _causal_mask(0, query.shape[2], None, query) if mask is None else mask
    if grouped:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = softcap * torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap)) + mask
    return F.dropout(logits.softmax(-1, dtype=torch.float32).to(query.dtype), dropout) @ value


def _plain_softcapped(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    *,
    sliding_window: int | None,
    softcap: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Plain rows of a softcapped model. A padded row may see nothing: a finite ban keeps nan out of it."""
    if mask is None:
        mask = _causal_mask(key.shape[2] - query.shape[2], query.shape[2], sliding_window, query)
    elif mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    return _attend(query, key, value, mask, dropout, scaling, softcap).transpose(1, 2), None


def _causal_mask(prefix: int, length: int, window: int | None, like: Tensor) -> Tensor:
    """Additive [length, prefix + length]: query i sees keys up to prefix + i, of those the last `window`.

    Autograd keeps the mask of each call until backward, and to make one takes as long as a small call: they are views
    of one square that all layers, lists and steps share. One that would be a small part of a large one is made by
    itself.
    """
    end, kind = prefix + length, (like.dtype, like.device, window)
    if length < prefix and end > SHARED_MASK:
        return _square(end, window, like.dtype, like.device, prefix)
    if kind not in _SQUARES or len(_SQUARES[kind]) < end:
        size = -(-end // MASK_STEP) * MASK_STEP
        _SQUARES[kind] = _square(size, window, like.dtype, like.device)
    return _SQUARES[kind][prefix:end, :end]


def _square(size: int, window: int | None, dtype: torch.dtype, device: torch.device, first: int = 0) -> Tensor:
    """Additive [size - first, size]: the causal mask of a plain row of `size` tokens, from that query on."""
    ban_QK = torch.full((size - first, size), -torch.inf, dtype=dtype, device=device)
    later_QK = ban_QK.triu(first + 1)
    return later_QK if window is None else later_QK + ban_QK.tril(first - window)


def _rule(row: PackedRow, window: int | None) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
    """FlexAttention's mask function: may the query at that index of the row see that key?

    The window counts positions, not indices: responses stand side by side, each right after the prompt.
    """
    segments_T, prompts_T, positions_T = row.segment_ids_T, row.prompt_segments_T, row.position_ids_T
    # A tensor, whatever it is: FlexAttention would be compiled once more for layers of another kind.
    limit = torch.tensor(NO_WINDOW if window is None else window, device=segments_T.device)

    def sees(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        related = (segments_T[key] == prompts_T[query]) | (segments_T[key] == segments_T[query])
        return related & (key <= query) & (positions_T[query] - positions_T[key] < limit)

    return sees


def _block_mask(row: PackedRow, window: int | None) -> LayerMask:
    """Compiled on a GPU, where making it eagerly would need several [T, T] tensors."""
    length, device = len(row.input_ids_T), row.input_ids_T.device
    on_gpu = device.type == "cuda"
    return create_block_mask(_rule(row, window), None, None, length, length, device=str(device), _compile=on_gpu)


def _additive_mask(row: PackedRow, window: int | None, dtype: torch.dtype) -> LayerMask:
    """Additive, not bool: SDPA on CPU converts a bool mask once a layer, and keeps each for the backward."""
    indices_T = torch.arange(len(row.input_ids_T), device=row.input_ids_T.device)
    sees_TT = _rule(row, window)(None, None, indices_T[:, None], indices_T[None, :])
    return torch.zeros_like(sees_TT, dtype=dtype).masked_fill(~sees_TT, -torch.inf)[None, None]


def _windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """The sliding window of each layer type that the model has; None sees everything."""
    window = getattr(config, "sliding_window", None)
    known = {"full_attention": None, "sliding_attention": window}
    plain = "full_attention" if window is None else "sliding_attention"
    layer_types = sorted(set(getattr(config, "layer_types", None) or [plain]))
    unknown = [layer_type for layer_type in layer_types if layer_type not in known]
    if unknown:
        raise ConfigError(
            f"a {config.model_type} model has layers of type {unknown}, packed rows serve {sorted(known)}; "
            "choose a policy that has no others"
        )
    return {layer_type: known[layer_type] for layer_type in layer_types}


def _softcaps(config: PreTrainedConfig) -> bool:
    return getattr(config, "attn_logit_softcapping", None) is not None


AttentionInterface.register(SEGMENTS, segment_attention)
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
