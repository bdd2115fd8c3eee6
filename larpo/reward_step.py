"""One step's forward and backward passes of a reward model over one rank's lists, and its passes over held-out ones.

A pass holds whole lists, since a list's loss needs all its rewards. Every rank makes as many passes, empty ones where
it has fewer, so that collectives stay in step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from larpo.conversations import Conversation
from larpo.errors import DataError
from larpo.objectives import order_of
from larpo.reward_data import LabelledList
from larpo.reward_losses import RewardLoss
from larpo.types import stable_hash

Score = Callable[[Sequence[Conversation]], Tensor]  # rewards [N] of N conversations, with gradient
_EMPTY = (Conversation((0,), (0,)),)  # what an empty pass reads


@dataclass(frozen=True)
class StepSums:
    """Sums over one rank's lists, to be added up over ranks."""

    loss: float = 0.0
    lists: int = 0
    right: float = 0.0  # ordered pairs whose better one has the higher reward, equal ones half
    pairs: int = 0
    gap: float = 0.0  # reward of the better minus the worse, over pairs
    tokens: int = 0

    def __add__(self, other: StepSums) -> StepSums:
        return StepSums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def step_metrics(sums: StepSums) -> dict[str, float]:
    """What a step says of itself, from the sums over all ranks."""
    return {
        "train/loss": sums.loss / max(1, sums.lists),
        "pairs/train_accuracy": sums.right / max(1, sums.pairs),
        "pairs/train_reward_gap": sums.gap / max(1, sums.pairs),
        "train/lists": sums.lists,
        "train/tokens": sums.tokens,
    }


def planned_batches(ids: Sequence[str], *, epochs: int, lists_per_step: int, seed: int) -> list[tuple[int, ...]]:
    """Indices of each step's lists: every epoch in an order of its own, its last batch smaller where they do not fit.

    >>> [len(batch) for batch in planned_batches(["a", "b", "c"], epochs=2, lists_per_step=2, seed=0)]
    [2, 1, 2, 1]
    """
    if len(set(ids)) != len(ids):
        raise DataError("two training lists have one id; make the ids of the dataset unique")
    batches = []
    for epoch in range(epochs):
        order = sorted(range(len(ids)), key=lambda i: (stable_hash("reward order", seed, epoch, ids[i]), ids[i]))
        batches += [tuple(order[at : at + lists_per_step]) for at in range(0, len(order), lists_per_step)]
    return batches


def passes_of(lists: Sequence[LabelledList], batch_tokens: int) -> list[tuple[LabelledList, ...]]:
    """Lists of similar length together, up to `batch_tokens` tokens with padding; a longer list goes alone."""
    passes: list[tuple[LabelledList, ...]] = []
    batch: list[LabelledList] = []
    rows = 0
    for item in sorted(lists, key=lambda item: (_longest(item), item.prompt_id)):
        if batch and _longest(item) * (rows + len(item.conversations)) > batch_tokens:
            passes.append(tuple(batch))
            batch, rows = [], 0
        batch.append(item)
        rows += len(item.conversations)
    return [*passes, tuple(batch)] if batch else passes


def step_lists(
    score: Score,
    passes: Sequence[Sequence[LabelledList]],
    *,
    loss: RewardLoss,
    divisor: float,
    count: int,
    backward: Callable[[Tensor, bool], None],
) -> StepSums:
    """Forward and backward passes; gradients add up to those of (sum of the lists' losses) / divisor.

    Args:
        count: passes that every rank makes, at least as many as there are here.
        backward: takes a pass's loss, and whether it is the last.
    """
    sums = StepSums()
    for number in range(count):
        last = number == count - 1
        if number >= len(passes):
            backward(score(_EMPTY).sum() * 0.0, last)
            continue
        lists = passes[number]
        rewards_LM, labels_LM, where_LM = _matrices(score, lists)
        margins_L = torch.tensor([item.margin for item in lists], device=rewards_LM.device)
        places_M = torch.arange(rewards_LM.shape[1], device=rewards_LM.device)
        own_LM = places_M < torch.tensor([item.own for item in lists], device=rewards_LM.device)[:, None]
        loss_L = loss(rewards_LM, labels_LM, where_LM, margins_L, own_LM)
        backward(loss_L.sum() / divisor, last)
        sums += _sums(rewards_LM.detach(), labels_LM, where_LM, loss_L.detach(), lists)
    return sums


@torch.no_grad()
def list_rewards(score: Score, passes: Sequence[Sequence[LabelledList]], *, count: int) -> dict[str, tuple[float, ...]]:
    """Rewards of each list's conversations by prompt id, in their order."""
    found: dict[str, tuple[float, ...]] = {}
    for number in range(count):
        lists = passes[number] if number < len(passes) else ()
        rewards_N = score([c for item in lists for c in item.conversations] or _EMPTY).tolist()
        at = 0
        for item in lists:
            found[item.prompt_id] = tuple(rewards_N[at : at + len(item.conversations)])
            at += len(item.conversations)
    return found


def _matrices(score: Score, lists: Sequence[LabelledList]) -> tuple[Tensor, Tensor, Tensor]:
    """rewards_LM, labels_LM and where_LM of a pass."""
    sizes = [len(item.conversations) for item in lists]
    rewards_N = score([conversation for item in lists for conversation in item.conversations])
    rewards_LM = pad_sequence(list(rewards_N.split(sizes)), batch_first=True)
    labels = [torch.tensor(item.labels, dtype=torch.float64) for item in lists]
    labels_LM = pad_sequence(labels, batch_first=True).to(rewards_N.device)
    where_LM = torch.arange(max(sizes))[None, :] < torch.tensor(sizes)[:, None]
    return rewards_LM, labels_LM, where_LM.to(rewards_N.device)


def _sums(
    rewards_LM: Tensor, labels_LM: Tensor, where_LM: Tensor, loss_L: Tensor, lists: Sequence[LabelledList]
) -> StepSums:
    _, _, beats_LMM = order_of(rewards_LM, labels_LM, where_LM)
    gaps = (rewards_LM[:, :, None] - rewards_LM[:, None, :])[beats_LMM]
    right = float(((gaps.sign() + 1) / 2).sum())
    tokens = sum(item.tokens for item in lists)
    return StepSums(float(loss_L.sum()), len(lists), right, len(gaps), float(gaps.sum()), tokens)


def _longest(item: LabelledList) -> int:
    return max(map(len, item.conversations))
