"""Conversations through a model, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from larpo.conversations import Conversation


@torch.no_grad()
def score_rows(
    rows: Sequence[Conversation],
    forward: Callable[[dict[str, Tensor]], Tensor],
    *,
    batch_tokens: int,
    pad: int | None,
) -> list[float]:
    """One number a conversation, in their order.

    `forward` takes input_ids, attention_mask and token_type_ids, each [B, T], padded on the right with `pad`, and gives
    [B]. A batch has at most `batch_tokens` tokens, padding included, or one row; without a padding token its rows are
    of one length.
    """
    scores: dict[int, float] = {}
    for batch in _batches([len(row) for row in rows], batch_tokens, pads=pad is not None):
        found = forward(padded_batch([rows[number] for number in batch], pad=pad, types=True))
        scores |= dict(zip(batch, found.float().tolist(), strict=True))
    return [scores[number] for number in range(len(rows))]


def padded_batch(batch: Sequence[Conversation], *, pad: int | None, types: bool) -> dict[str, Tensor]:
    """The model's inputs, padded on the right: a decoder's head reads the last token that is not padding."""
    rows = [torch.tensor(conversation.ids) for conversation in batch]
    inputs = {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad or 0),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }
    if types:
        inputs["token_type_ids"] = pad_sequence([torch.tensor(c.types) for c in batch], batch_first=True)
    return inputs


def _batches(lengths: Sequence[int], batch_tokens: int, *, pads: bool) -> Iterator[list[int]]:
    """Numbers of the rows of each batch, the shortest rows first."""
    batch: list[int] = []
    longest = 0
    for number in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        length = lengths[number]
        if batch and (length * (len(batch) + 1) > batch_tokens or (length != longest and not pads)):
            yield batch
            batch = []
        batch.append(number)
        longest = length
    if batch:
        yield batch


def pick_device(device: str) -> torch.device:
    """The device that a recipe names; `auto` is the GPU where the process has one."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
