"""Score objectives: the loss of a ranked list, from the policy's scores and the rewards.

Each objective is a pure function of `(scores_LM, rewards_LM, where_LM)` and returns `loss_L`, one number a
list; the caller averages over lists. L lists, M candidates. A score is `gamma = beta * (log pi_theta - log
pi_ref)`.

The rewards give the order, never the position in the list. Equal rewards are not ordered: a pair of equals
contributes nothing, and a list of equals only has loss 0 and gradient 0. `where_LM` marks the real
candidates; what stands in the padding, nan and inf included, reaches neither the value nor the gradient.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from larpo.errors import DataError


class Objective(Protocol):
    """The signature that every score objective shares; some take keyword options beside."""

    def __call__(self, scores_LM: Tensor, rewards_LM: Tensor, where_LM: Tensor | None = None) -> Tensor: ...


def pairwise(scores_LM: Tensor, rewards_LM: Tensor, where_LM: Tensor | None = None) -> Tensor:
    """The best candidate against the worst; this is DPO.

    `loss = -log sigmoid(gamma_w - gamma_l)`, the mean over all best x worst pairs where several tie.
    (Jin 2025, arXiv 2502.03699, Table 1; Rafailov 2023, arXiv 2305.18290, Eq. 7.)

    Args:
        scores_LM: policy scores, floating point [L, M].
        rewards_LM: rewards [L, M]; higher is better.
        where_LM: bool [L, M], True for real candidates; all by default.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: the three are not of one shape [L, M].

    >>> pairwise(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[9.0, 0.0, 5.0]]))  # -log sigmoid(3 - 1)
    tensor([0.1269])
    """
    scores_LM, where_LM, beats_LMM = order_of(scores_LM, rewards_LM, where_LM)
    best_LM, worst_LM = where_LM & ~beats_LMM.any(1), where_LM & ~beats_LMM.any(2)
    pairs_LMM = beats_LMM & best_LM[:, :, None] & worst_LM[:, None, :]
    loss_LMM = torch.where(pairs_LMM, _pair_loss(scores_LM), 0.0)
    return loss_LMM.sum((1, 2)) / pairs_LMM.sum((1, 2)).clamp(min=1)


def contrastive(scores_LM: Tensor, rewards_LM: Tensor, where_LM: Tensor | None = None) -> Tensor:
    """The best candidate against all the others at once (InfoNCE).

    `loss = -log( exp gamma_w / (exp gamma_w + sum over losers exp gamma_l) )`, the losers those of strictly
    lower reward; the mean over the best where several tie. (Jin 2025, arXiv 2502.03699, Eq. 9.)

    Args:
        scores_LM: policy scores, floating point [L, M].
        rewards_LM: rewards [L, M]; higher is better.
        where_LM: bool [L, M], True for real candidates; all by default.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: the three are not of one shape [L, M].

    >>> contrastive(torch.zeros(1, 4), torch.tensor([[9.0, 0.0, 5.0, 1.0]])).exp()  # one of four, all alike
    tensor([4.])
    """
    scores_LM, where_LM, beats_LMM = order_of(scores_LM, rewards_LM, where_LM)
    best_LM = where_LM & ~beats_LMM.any(1)
    return torch.where(best_LM, _choice_loss(scores_LM, beats_LMM), 0.0).sum(1) / best_LM.sum(1).clamp(min=1)


def lambdarank(scores_LM: Tensor, rewards_LM: Tensor, where_LM: Tensor | None = None) -> Tensor:
    """Every ordered pair of the list, without metric weights.

    `loss = -sum over i, j with r_i > r_j of log sigmoid(gamma_i - gamma_j)`.
    (Jin 2025, arXiv 2502.03699, Eq. 15; the pair loss is Burges 2005's RankNet.)

    Args:
        scores_LM: policy scores, floating point [L, M].
        rewards_LM: rewards [L, M]; higher is better.
        where_LM: bool [L, M], True for real candidates; all by default.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: the three are not of one shape [L, M].

    >>> lambdarank(torch.zeros(1, 3), torch.tensor([[9.0, 0.0, 5.0]])).div(3).exp()  # three pairs, log 2 each
    tensor([2.])
    """
    scores_LM, _, beats_LMM = order_of(scores_LM, rewards_LM, where_LM)
    return torch.where(beats_LMM, _pair_loss(scores_LM), 0.0).sum((1, 2))


def listmle(scores_LM: Tensor, rewards_LM: Tensor, where_LM: Tensor | None = None) -> Tensor:
    """The likelihood of the whole order under the Plackett-Luce model.

    `loss = -sum over i of log( exp gamma_i / (exp gamma_i + sum over j with r_j < r_i of exp gamma_j) )`;
    where nothing ties, the second sum is "all that come later". (Jin 2025, arXiv 2502.03699, Eq. 23; Xia
    2008, ListMLE.)

    Args:
        scores_LM: policy scores, floating point [L, M].
        rewards_LM: rewards [L, M]; higher is better.
        where_LM: bool [L, M], True for real candidates; all by default.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: the three are not of one shape [L, M].

    >>> listmle(torch.zeros(1, 3), torch.tensor([[9.0, 0.0, 5.0]])).exp()  # one order of 3!
    tensor([6.])
    """
    scores_LM, _, beats_LMM = order_of(scores_LM, rewards_LM, where_LM)
    return _choice_loss(scores_LM, beats_LMM).sum(1)


def order_of(scores_LM: Tensor, rewards_LM: Tensor, where_LM: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What every score objective starts from: scores_LM, where_LM and beats_LMM.

    Scores are at least float32, and 0 in the padding, so that no nan of it can reach a gradient. beats_LMM
    is True at (l, i, j) where i and j are real and i's reward is strictly higher.
    """
    where_LM = torch.ones_like(scores_LM, dtype=torch.bool) if where_LM is None else where_LM
    shapes = [tuple(x.shape) for x in (scores_LM, rewards_LM, where_LM)]
    if scores_LM.dim() != 2 or len(set(shapes)) != 1:
        raise DataError(f"scores, rewards, where have shapes {shapes}; pass one shape [lists, candidates] for all")
    scores_LM = scores_LM.to(torch.promote_types(scores_LM.dtype, torch.float32)).masked_fill(~where_LM, 0.0)
    real_LMM = where_LM[:, :, None] & where_LM[:, None, :]
    return scores_LM, where_LM, real_LMM & (rewards_LM[:, :, None] > rewards_LM[:, None, :])


def _pair_loss(scores_LM: Tensor) -> Tensor:
    """[L, M, M], `-log sigmoid(gamma_i - gamma_j)` at (l, i, j)."""
    return -F.logsigmoid(scores_LM[:, :, None] - scores_LM[:, None, :])


def _choice_loss(scores_LM: Tensor, beats_LMM: Tensor) -> Tensor:
    """[L, M], `-log` of the chance that i is chosen among itself and those it beats; 0 where it beats none.

    Written as `-log sigmoid(gamma_i - logsumexp of the beaten)`. A row that beats none would make logsumexp
    -inf and its gradient nan, so such a row is filled with zeros before and masked after.
    """
    beats_none_LM1 = ~beats_LMM.any(2, keepdim=True)
    beaten_LMM = torch.where(beats_LMM, scores_LM[:, None, :], -torch.inf).masked_fill(beats_none_LM1, 0.0)
    loss_LM = -F.logsigmoid(scores_LM - beaten_LMM.logsumexp(2))
    return torch.where(beats_none_LM1.squeeze(2), 0.0, loss_LM)
