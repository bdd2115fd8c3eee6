"""Objectives that the paper compares with (Jin 2025, Table 2), as functions of more than scores.

Each is a pure function of a `ListBatch` with keyword numbers and returns `loss_L`. Log-probabilities are sums over the
tokens of a response, as the papers write them; where a paper divides by the length, the formula here says so.

The papers know pairs. In a longer list the winners are the candidates of the highest reward, the losers those of the
lowest, and a pair loss is the mean over winners x losers, as `larpo.objectives.pairwise` has it. A list of equal
rewards has loss 0 and no gradient (but for `sft`); what stands in the padding reaches neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from larpo.errors import DataError
from larpo.list_objectives import labels
from larpo.objectives import order_of

AT_THE_MEAN = 1e-4  # of a list's spread of rewards: nearer than this to their mean is at it, for `kto`


@dataclass(frozen=True, eq=False)
class ListBatch:
    """L lists of M candidates, all tensors [L, M] but `divergence`."""

    log_probs_LM: Tensor  # log pi(y | x), summed over tokens
    rewards_LM: Tensor
    lengths_LM: Tensor  # response tokens, at least 1
    reference_LM: Tensor | None = None  # log pi_ref(y | x), summed over tokens
    where_LM: Tensor | None = None  # True for real candidates; all by default
    divergence: Tensor | None = None  # scalar: KL(pi || pi_ref) estimated on mismatched prompts and responses


def ipo(batch: ListBatch, *, beta: float) -> Tensor:
    """Pulls the log-ratio margin to a target instead of to infinity.

    `loss = (h - 1 / (2 beta))^2`, `h = log(pi / pi_ref)(y_w) - log(pi / pi_ref)(y_l)`, with sums over tokens (Azar
    2023, arXiv 2310.12036, Eq. 17, beta being its tau). TRL's `ipo` divides each log-ratio by its length first.

    Args:
        batch: log-probabilities, those under the reference, and rewards, [L, M] each.
        beta: tau, the strength of the pull to the reference.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: no reference log-probabilities, or shapes that differ.

    >>> ipo(_example(), beta=0.5)  # h = 1, the target too
    tensor([0.])
    """
    ratios_LM, winners_LMM = _pairs(batch, log_ratios(batch))
    margin_LMM = ratios_LM[:, :, None] - ratios_LM[:, None, :]
    return _mean_over(winners_LMM, (margin_LMM - 1 / (2 * beta)) ** 2)


def slic_hf(batch: ListBatch, *, margin: float, sft_weight: float) -> Tensor:
    """A hinge on the log-probabilities, and the likelihood of the winner.

    `loss = max(0, margin - log pi(y_w) + log pi(y_l)) - sft_weight log pi(y_w)` (Zhao 2023, arXiv 2305.10425, section
    2, with the winner as the text that the regularizer holds on to). TRL's `hinge` is another loss: it has a reference
    and no regularizer.

    Args:
        batch: log-probabilities and rewards, [L, M] each.
        margin: log-probability that the winner is to be ahead by.
        sft_weight: of the winner's likelihood.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: shapes that differ.

    >>> slic_hf(_example(), margin=3.0, sft_weight=0.1)  # 3 - 2, and a tenth of 3
    tensor([1.3000])
    """
    log_probs_LM, pairs_LMM = _pairs(batch, batch.log_probs_LM)
    hinge_LMM = F.relu(margin - log_probs_LM[:, :, None] + log_probs_LM[:, None, :])
    return _mean_over(pairs_LMM, hinge_LMM - sft_weight * log_probs_LM[:, :, None])


def rrhf(batch: ListBatch, *, sft_weight: float) -> Tensor:
    """Length-normalized log-probabilities in the order of the rewards, and the likelihood of the best response.

    `loss = sum over r_i > r_j of max(0, p_j - p_i) - sft_weight log pi(y_best)`, `p = log pi(y) / |y|` (Yuan 2023,
    arXiv 2304.05302, section 3; the second term is a sum over tokens there). Several best: the mean of their terms.

    Args:
        batch: log-probabilities, rewards and lengths, [L, M] each.
        sft_weight: of the best response's likelihood.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: shapes that differ.

    >>> rrhf(_example(), sft_weight=0.0)  # p of the winner -3/2, of the loser -5/4
    tensor([0.2500])
    """
    log_probs_LM, where_LM, beats_LMM = order_of(batch.log_probs_LM, batch.rewards_LM, batch.where_LM)
    means_LM = log_probs_LM / _lengths(batch, where_LM)
    rank_L = torch.where(beats_LMM, F.relu(means_LM[:, None, :] - means_LM[:, :, None]), 0.0).sum((1, 2))
    best_LM = where_LM & ~beats_LMM.any(1) & beats_LMM.any(2)
    likelihood_L = torch.where(best_LM, log_probs_LM, 0.0).sum(1) / best_LM.sum(1).clamp(min=1)
    return rank_L - sft_weight * likelihood_L


def cpo(batch: ListBatch, *, beta: float, sft_weight: float) -> Tensor:
    """DPO with a uniform reference, and the likelihood of the winner.

    `loss = -log sigmoid(beta (log pi(y_w) - log pi(y_l))) - sft_weight log pi(y_w)` (Xu 2024, arXiv 2401.08417,
    section 3), with sums over tokens. TRL takes the mean over a batch's winning tokens in the second term: for one
    pair its `cpo_alpha` is `sft_weight` times the winner's tokens. The first is the same.

    Args:
        batch: log-probabilities and rewards, [L, M] each.
        beta: what multiplies the log-probabilities.
        sft_weight: of the winner's likelihood.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: shapes that differ.

    >>> cpo(_example(), beta=1.0, sft_weight=0.0)  # -log sigmoid(2)
    tensor([0.1269])
    """
    log_probs_LM, pairs_LMM = _pairs(batch, batch.log_probs_LM)
    loss_LMM = -F.logsigmoid(beta * (log_probs_LM[:, :, None] - log_probs_LM[:, None, :]))
    return _mean_over(pairs_LMM, loss_LMM - sft_weight * log_probs_LM[:, :, None])


def kto(batch: ListBatch, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """Prospect theory: each response alone against the policy's divergence from the reference.

    `loss = mean over candidates of weight (1 - sigmoid(beta (ratio - z)))` for desirable ones and
    `weight (1 - sigmoid(beta (z - ratio)))` for the others, `ratio = log(pi / pi_ref)(y)`, z the divergence, at least
    0 and without gradient (Ethayarajh 2024, arXiv 2402.01306, Eq. 8). In a list, a response is desirable when its
    reward is above the list's mean, undesirable below, and left out at the mean, or so near it that rounding may be
    the difference: by less than AT_THE_MEAN of the list's spread of rewards.

    Args:
        batch: log-probabilities, those under the reference, and rewards, [L, M] each; the divergence, a scalar.
        beta: what multiplies the log-ratios.
        desirable_weight: of the responses above the mean.
        undesirable_weight: of those below.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: no reference log-probabilities, no divergence, or shapes that differ.

    >>> kto(_example(), beta=1.0, desirable_weight=1.0, undesirable_weight=1.0)  # each ratio 0.5 on the right side
    tensor([0.3775])
    """
    if batch.divergence is None:
        raise DataError("kto needs the divergence of mismatched prompts and responses; give ListBatch.divergence")
    ratios_LM, where_LM, _ = order_of(log_ratios(batch), batch.rewards_LM, batch.where_LM)
    places_LM = labels(batch.rewards_LM, where_LM, ratios_LM.dtype)  # in [0, 1], and all 0 in a list of equals
    mean_L1 = places_LM.sum(1, keepdim=True) / where_LM.sum(1, keepdim=True).clamp(min=1)
    above_LM = (places_LM - mean_L1).masked_fill(~where_LM, 0.0)
    good_LM, bad_LM = above_LM > AT_THE_MEAN, above_LM < -AT_THE_MEAN
    z = batch.divergence.detach().clamp(min=0)
    loss_LM = torch.where(good_LM, desirable_weight * torch.sigmoid(beta * (z - ratios_LM)), 0.0)
    loss_LM = loss_LM + torch.where(bad_LM, undesirable_weight * torch.sigmoid(beta * (ratios_LM - z)), 0.0)
    return loss_LM.sum(1) / (good_LM | bad_LM).sum(1).clamp(min=1)


def rdpo(batch: ListBatch, *, beta: float, length_weight: float) -> Tensor:
    """DPO under a reward that subtracts `length_weight` a token.

    `loss = -log sigmoid(beta h + length_weight (|y_w| - |y_l|))`, h as in `ipo` (Park 2024, arXiv 2403.19159, section
    4). The sign follows from `r = beta log(pi / pi_ref) + length_weight |y|`: a longer winner is learned from less.
    SimPO's table of objectives prints it reversed.

    Args:
        batch: log-probabilities, those under the reference, rewards and lengths, [L, M] each.
        beta: what multiplies the log-ratios.
        length_weight: what a token takes from the reward.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: no reference log-probabilities, or shapes that differ.

    >>> rdpo(_example(), beta=1.0, length_weight=0.5)  # h = 1, and the winner is 2 tokens shorter
    tensor([0.6931])
    """
    ratios_LM, pairs_LMM = _pairs(batch, log_ratios(batch))
    lengths_LM = batch.lengths_LM.to(ratios_LM.dtype)
    utility_LM = beta * ratios_LM + length_weight * lengths_LM
    return _mean_over(pairs_LMM, -F.logsigmoid(utility_LM[:, :, None] - utility_LM[:, None, :]))


def simpo(batch: ListBatch, *, beta: float, margin: float) -> Tensor:
    """Length-normalized log-probabilities with a target margin, and no reference.

    `loss = -log sigmoid(beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - margin)` (Meng 2024, arXiv 2405.14734,
    Eq. 6; margin is its gamma, TRL's `simpo_gamma`).

    Args:
        batch: log-probabilities, rewards and lengths, [L, M] each.
        beta: what multiplies the means over tokens.
        margin: what the winner is to be ahead by, after beta.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: shapes that differ.

    >>> simpo(_example(), beta=4.0, margin=0.0)  # -log sigmoid(4 (-3/2 + 5/4))
    tensor([1.3133])
    """
    log_probs_LM, pairs_LMM = _pairs(batch, batch.log_probs_LM)
    means_LM = log_probs_LM / _lengths(batch, batch.where_LM)
    return _mean_over(pairs_LMM, -F.logsigmoid(beta * (means_LM[:, :, None] - means_LM[:, None, :]) - margin))


def sft(batch: ListBatch) -> Tensor:
    """Supervised fine-tuning: the likelihood of the best response, the others unread.

    `loss = -log pi(y_best)`, a sum over tokens, the mean where several tie. A step divides it by the response tokens of
    the global batch, not by its lists (`per` in the table), so that it is the mean cross-entropy of a token, as
    transformers and TRL's SFT have it with the prompt masked. (Ouyang 2022, arXiv 2203.02155, section 3.5.)

    Args:
        batch: log-probabilities and rewards, [L, M] each.
    Returns:
        loss_L: [L], float32 or wider.
    Raises:
        DataError: shapes that differ.

    >>> sft(_example())  # of two tokens, together -3
    tensor([3.])
    """
    log_probs_LM, where_LM, beats_LMM = order_of(batch.log_probs_LM, batch.rewards_LM, batch.where_LM)
    best_LM = where_LM & ~beats_LMM.any(1)
    return -torch.where(best_LM, log_probs_LM, 0.0).sum(1) / best_LM.sum(1).clamp(min=1)


def log_ratios(batch: ListBatch) -> Tensor:
    """`log(pi / pi_ref)`, [L, M]; DataError without a reference."""
    if batch.reference_LM is None:
        raise DataError("this objective compares with a reference; give ListBatch.reference_LM")
    return batch.log_probs_LM - batch.reference_LM


def _pairs(batch: ListBatch, values_LM: Tensor) -> tuple[Tensor, Tensor]:
    """values_LM without what stands in the padding, and [L, M, M]: True at (l, winner, loser)."""
    values_LM, where_LM, beats_LMM = order_of(values_LM, batch.rewards_LM, batch.where_LM)
    winners_LM, losers_LM = where_LM & ~beats_LMM.any(1), where_LM & ~beats_LMM.any(2)
    return values_LM, beats_LMM & winners_LM[:, :, None] & losers_LM[:, None, :]


def _lengths(batch: ListBatch, where_LM: Tensor | None) -> Tensor:
    """Lengths to divide by: 1 in the padding."""
    return batch.lengths_LM if where_LM is None else batch.lengths_LM.masked_fill(~where_LM, 1)


def _mean_over(pairs_LMM: Tensor, loss_LMM: Tensor) -> Tensor:
    """[L], the mean over a list's pairs; 0 where it has none."""
    return torch.where(pairs_LMM, loss_LMM, 0.0).sum((1, 2)) / pairs_LMM.sum((1, 2)).clamp(min=1)


def _example() -> ListBatch:
    """For the examples: a winner of 2 tokens and a loser of 4, log-ratios 2 and 1."""
    return ListBatch(
        log_probs_LM=torch.tensor([[-3.0, -5.0]]),
        rewards_LM=torch.tensor([[1.0, 0.0]]),
        lengths_LM=torch.tensor([[2, 4]]),
        reference_LM=torch.tensor([[-5.0, -6.0]]),
        divergence=torch.tensor(1.5),
    )
