"""What a reward model is trained by: the loss of a list, from the model's rewards and the data's labels.

Each loss is a pure function of `(rewards_LM, labels_LM, where_LM, margins_L)` and returns `loss_L`, one number a list;
the caller averages over lists. L lists, M candidates. The labels give the order, never the position in the list, and
equal labels are not ordered. `where_LM` marks the real candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from larpo.errors import DataError
from larpo.objectives import listmle, order_of


class RewardLoss(Protocol):
    """The signature that the losses share."""

    def __call__(
        self,
        rewards_LM: Tensor,
        labels_LM: Tensor,
        where_LM: Tensor | None = None,
        margins_L: Tensor | None = None,
        apart_LM: Tensor | None = None,
    ) -> Tensor: ...


def bradley_terry(
    rewards_LM: Tensor,
    labels_LM: Tensor,
    where_LM: Tensor | None = None,
    margins_L: Tensor | None = None,
    apart_LM: Tensor | None = None,
) -> Tensor:
    """Every ordered pair of the list, each against its margin; for a list of two the loss of a preference pair.

    `loss = -(mean over i, j with label_i > label_j of log sigmoid(r_i - r_j - margin))`.
    (Bradley and Terry 1952; the mean over a list's pairs is Ouyang 2022's, arXiv 2203.02155, Eq. 1; the margin is
    Touvron 2023's, arXiv 2307.09288, Eq. 2. TRL's RewardTrainer computes the same for pairs.)

    Args:
        rewards_LM: what the model gave, floating point [L, M].
        labels_LM: what the data says [L, M]; higher is better, only the order counts.
        where_LM: bool [L, M], True for real candidates; all by default.
        margins_L: how far apart a list's rewards should be at least [L]; 0 by default.
        apart_LM: bool [L, M], True for candidates that the margin is between, as the data knows it; all by default.
    Returns:
        loss_L: [L], float32 or wider; 0 for a list of equal labels.
    Raises:
        DataError: the shapes do not fit.

    >>> bradley_terry(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 0.0]]))  # -log sigmoid(3 - 1)
    tensor([0.1269])
    """
    rewards_LM, _, beats_LMM = order_of(rewards_LM, labels_LM, where_LM)
    differences_LMM = rewards_LM[:, :, None] - rewards_LM[:, None, :]
    if margins_L is not None:
        if margins_L.shape != rewards_LM.shape[:1]:
            raise DataError(f"margins have shape {tuple(margins_L.shape)} for {len(rewards_LM)} lists; give one a list")
        apart_LM = torch.ones_like(labels_LM, dtype=torch.bool) if apart_LM is None else apart_LM
        margins_LMM = margins_L.to(rewards_LM.dtype)[:, None, None] * (apart_LM[:, :, None] & apart_LM[:, None, :])
        differences_LMM = differences_LMM - margins_LMM
    loss_LMM = torch.where(beats_LMM, -F.logsigmoid(differences_LMM), 0.0)
    return loss_LMM.sum((1, 2)) / beats_LMM.sum((1, 2)).clamp(min=1)


def plackett_luce(
    rewards_LM: Tensor,
    labels_LM: Tensor,
    where_LM: Tensor | None = None,
    margins_L: Tensor | None = None,
    apart_LM: Tensor | None = None,
) -> Tensor:
    """The likelihood of the whole order: each candidate is chosen from itself and those of strictly lower label.

    `loss = -sum over i of log( exp r_i / (exp r_i + sum over j with label_j < label_i of exp r_j) )`, the formula of
    `larpo.objectives.listmle` with the model's rewards in the place of scores. (Plackett 1975; Xia 2008, ListMLE.) For
    a list of two it is `bradley_terry`. A margin has no place in it.

    Args, returns: as `bradley_terry`.
    Raises:
        DataError: the shapes do not fit, or there is a margin.

    >>> plackett_luce(torch.zeros(1, 3), torch.tensor([[9.0, 0.0, 5.0]])).exp()  # one order of 3!
    tensor([6.])
    """
    if margins_L is not None and bool((margins_L != 0).any()):
        raise DataError("plackett_luce takes no margins; train on pairs with bradley_terry, or leave the margin out")
    return listmle(rewards_LM, labels_LM, where_LM)


LOSSES: Mapping[str, RewardLoss] = {"bradley_terry": bradley_terry, "plackett_luce": plackett_luce}
