"""Score objectives of the whole list beside the paper's four: they look at the rewards' values, not only their order.

Rewards are of any scale and sign, while `2^label - 1` overflows or goes below zero on raw ones: labels are the rewards
scaled to [0, 1] within the list. Shapes, padding and lists without signal are as in `larpo.objectives`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from larpo.objectives import order_of


def lipo_lambda(scores_LM: Tensor, rewards_LM: Tensor, where_LM: Tensor | None = None) -> Tensor:
    """LambdaRank with metric weights: a pair counts by what swapping its ranks would cost in DCG.

    `loss = -sum over i, j with r_i > r_j of w_ij log sigmoid(gamma_i - gamma_j)`,
    `w_ij = |G_i - G_j| |1 / D(tau_i) - 1 / D(tau_j)|`, `G = 2^label - 1`, `D(rank) = log(1 + rank)`, natural logarithm
    and no division by the ideal DCG (Liu 2024, arXiv 2402.01878, section 3.3). tau is the rank by current score, 1 for
    the highest; of equal scores the lower reward ranks higher, as if the policy had erred: before the first step, when
    every score is 0, there is something to learn. Weights carry no gradient.

    Args:
        scores_LM: policy scores, floating point [L, M].
        rewards_LM: rewards [L, M]; higher is better.
        where_LM: bool [L, M], True for real candidates; all by default.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: the three are not of one shape [L, M].

    >>> loss_L = lipo_lambda(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    >>> loss_L / (math.log(2) * abs(1 / math.log(2) - 1 / math.log(3)))
    tensor([1.])
    """
    scores_LM, where_LM, beats_LMM = order_of(scores_LM, rewards_LM, where_LM)
    gains_LM = torch.exp2(labels(rewards_LM, where_LM, scores_LM.dtype)) - 1
    discounts_LM = 1 / torch.log1p(_ranks(scores_LM.detach(), where_LM, beats_LMM))
    weights_LMM = (gains_LM[:, :, None] - gains_LM[:, None, :]) * (discounts_LM[:, :, None] - discounts_LM[:, None, :])
    loss_LMM = -F.logsigmoid(scores_LM[:, :, None] - scores_LM[:, None, :]) * weights_LMM.abs()
    return torch.where(beats_LMM, loss_LMM, 0.0).sum((1, 2))


def listnet(scores_LM: Tensor, rewards_LM: Tensor, where_LM: Tensor | None = None) -> Tensor:
    """Cross entropy between what rewards and scores say of who comes first.

    `loss = -sum over i of softmax(r)_i log softmax(gamma)_i` over the list's real candidates, with the rewards as the
    reward model gave them (Cao 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach", top-one form).
    A list of equal rewards, whose formula would pull the scores together, has loss 0 as everywhere here.

    Args:
        scores_LM: policy scores, floating point [L, M].
        rewards_LM: rewards [L, M]; higher is better.
        where_LM: bool [L, M], True for real candidates; all by default.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: the three are not of one shape [L, M].

    >>> listnet(torch.zeros(1, 4), torch.tensor([[9.0, 0.0, 5.0, 1.0]])).exp()  # any rewards, scores all alike
    tensor([4.])
    """
    scores_LM, where_LM, beats_LMM = order_of(scores_LM, rewards_LM, where_LM)
    signal_L1 = beats_LMM.any(2).any(1, keepdim=True)
    real_LM = where_LM & signal_L1  # a row of padding alone would make softmax nan
    target_LM = _softmax_inputs(rewards_LM.to(scores_LM.dtype), real_LM).softmax(1)
    log_chosen_LM = _softmax_inputs(scores_LM, real_LM).log_softmax(1)
    return -torch.where(real_LM, target_LM * log_chosen_LM.masked_fill(~real_LM, 0.0), 0.0).sum(1)


def approx_ndcg(
    scores_LM: Tensor, rewards_LM: Tensor, where_LM: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """One minus NDCG with ranks made smooth.

    `loss = 1 - (sum over i of G_i / log2(1 + rank_i)) / ideal`, `rank_i = 1 + sum over j != i of
    sigmoid((gamma_j - gamma_i) / temperature)`, `G = 2^label - 1` (Qin 2010, "A general approximation framework for
    direct optimization of information retrieval measures"; as an alignment objective: Zhao 2024, arXiv 2410.04346). At
    a temperature near 0 the ranks are exact, and the gradient is gone.

    Args:
        scores_LM: policy scores, floating point [L, M].
        rewards_LM: rewards [L, M]; higher is better.
        where_LM: bool [L, M], True for real candidates; all by default.
        temperature: of the sigmoid that stands for "is ranked above".
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: the three are not of one shape [L, M].

    >>> approx_ndcg(torch.tensor([[50.0, 0.0]]), torch.tensor([[1.0, 0.0]]))  # ranked as it should be
    tensor([0.])
    """
    scores_LM, where_LM, beats_LMM = order_of(scores_LM, rewards_LM, where_LM)
    gains_LM = torch.where(where_LM, torch.exp2(labels(rewards_LM, where_LM, scores_LM.dtype)) - 1, 0.0)
    above_LMM = torch.sigmoid((scores_LM[:, None, :] - scores_LM[:, :, None]) / temperature)
    others_LMM = where_LM[:, None, :] & ~torch.eye(scores_LM.shape[1], dtype=torch.bool, device=scores_LM.device)
    ranks_LM = 1 + torch.where(others_LMM, above_LMM, 0.0).sum(2)
    positions_M = torch.arange(1, scores_LM.shape[1] + 1, dtype=scores_LM.dtype, device=scores_LM.device)
    ideal_L = (gains_LM.sort(1, descending=True).values / torch.log2(1 + positions_M)).sum(1)
    signal_L = beats_LMM.any(2).any(1)
    ndcg_L = (gains_LM / torch.log2(1 + ranks_LM)).sum(1) / torch.where(signal_L, ideal_L, 1.0)
    return torch.where(signal_L, 1 - ndcg_L, 0.0)


def labels(rewards_LM: Tensor, where_LM: Tensor, dtype: torch.dtype) -> Tensor:
    """Rewards scaled to [0, 1] within each list; 0 where all are equal, and in the padding."""
    rewards_LM = rewards_LM.to(dtype)
    low_L1 = rewards_LM.masked_fill(~where_LM, math.inf).amin(1, keepdim=True)
    high_L1 = rewards_LM.masked_fill(~where_LM, -math.inf).amax(1, keepdim=True)
    spread_L1 = torch.where(high_L1 > low_L1, high_L1 - low_L1, 1.0)
    return torch.where(where_LM, (rewards_LM - low_L1) / spread_L1, 0.0)


def _ranks(scores_LM: Tensor, where_LM: Tensor, beats_LMM: Tensor) -> Tensor:
    """1 for the highest score; of equal scores the lower reward first, and equals in both share their mean rank."""
    real_LMM = where_LM[:, :, None] & where_LM[:, None, :]
    higher_LMM = scores_LM[:, None, :] > scores_LM[:, :, None]
    same_LMM = scores_LM[:, None, :] == scores_LM[:, :, None]
    twins_LMM = same_LMM & ~beats_LMM & ~beats_LMM.transpose(1, 2)
    before_LMM = higher_LMM | (same_LMM & beats_LMM)
    shared_LM = (twins_LMM & real_LMM).sum(2) - 1  # without itself
    ranks_LM = 1 + (before_LMM & real_LMM).sum(2).to(scores_LM.dtype)
    return ranks_LM + shared_LM.clamp(min=0) / 2


def _softmax_inputs(values_LM: Tensor, real_LM: Tensor) -> Tensor:
    """-inf where nothing real stands, so that it gets no share; zeros in a row of nothing."""
    return values_LM.masked_fill(~real_LM, -math.inf).masked_fill(~real_LM.any(1, keepdim=True), 0.0)
