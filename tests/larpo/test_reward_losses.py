"""Losses of a reward model, against TRL's RewardTrainer, torch's own formulas and float64 arithmetic."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import logsigmoid

from larpo.errors import DataError
from larpo.objectives import listmle
from larpo.reward_losses import LOSSES, bradley_terry, plackett_luce

REWARDS = torch.tensor([[0.3, -1.2], [2.0, 2.5], [-0.7, 0.1]], dtype=torch.float64)
WINS = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
MARGINS = torch.tensor([0.5, 0.0, 2.0])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_a_pair_is_minus_log_sigmoid_of_its_difference_less_the_margin():
    expected = [-math.log(sigmoid(d)) for d in (0.3 + 1.2 - 0.5, 2.0 - 2.5, 0.1 + 0.7 - 2.0)]
    assert bradley_terry(REWARDS, WINS, margins_L=MARGINS).tolist() == pytest.approx(expected, abs=1e-12)


class Given(torch.nn.Module):
    """A model that gives the rewards it was told, as TRL's trainer asks: chosen first, then rejected."""

    def __init__(self, rewards_N):
        super().__init__()
        self.rewards_N = torch.nn.Parameter(rewards_N)

    def forward(self, **inputs):
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(logits=self.rewards_N[:, None])


@pytest.mark.parametrize("margins", [None, MARGINS])
def test_pairs_have_the_loss_of_trls_reward_trainer(margins):
    from trl import RewardTrainer

    chosen, rejected = torch.tensor([0.3, 2.0, 0.1]), torch.tensor([-1.2, 2.5, -0.7])
    trainer = object.__new__(RewardTrainer)
    trainer.args = SimpleNamespace(center_rewards_coefficient=None)
    trainer.model, trainer._total_train_tokens, trainer._tp_size = SimpleNamespace(training=True), 0, 1
    trainer.accelerator = SimpleNamespace(gather_for_metrics=lambda x: x, gather=lambda x: x)
    trainer._metrics = {"train": defaultdict(list)}
    inputs = {"input_ids": torch.zeros(6, 1), "attention_mask": torch.ones(6, 1)}
    inputs |= {} if margins is None else {"margin": margins}
    theirs = trainer.compute_loss(Given(torch.cat([chosen, rejected])), inputs)
    ours = bradley_terry(torch.stack([chosen, rejected], 1), torch.tensor([[1.0, 0.0]] * 3), margins_L=margins)
    assert float(ours.mean()) == pytest.approx(float(theirs), abs=1e-6)


def test_a_list_is_the_mean_over_its_ordered_pairs():
    rewards, labels = torch.tensor([[1.0, 0.5, 3.0, 9.0]]), torch.tensor([[2.0, 1.0, 1.0, 7.0]])
    where = torch.tensor([[True, True, True, False]])
    expected = -(logsigmoid(torch.tensor(0.5)) + logsigmoid(torch.tensor(-2.0))) / 2  # the equal pair does not count
    assert float(bradley_terry(rewards, labels, where)) == pytest.approx(float(expected))


def test_plackett_luce_is_the_chance_of_the_order():
    a, b, c = 0.4, -0.3, 1.1
    ea, eb, ec = (math.exp(x) for x in (a, b, c))
    expected = -math.log(ea / (ea + eb + ec) * eb / (eb + ec))
    loss = plackett_luce(torch.tensor([[a, b, c]], dtype=torch.float64), torch.tensor([[3.0, 2.0, 1.0]]))
    assert float(loss) == pytest.approx(expected, abs=1e-12)


def test_for_pairs_both_are_one():
    assert torch.allclose(plackett_luce(REWARDS, WINS), bradley_terry(REWARDS, WINS))


def test_equal_labels_are_not_ordered():
    labels = torch.tensor([[2.0, 1.0, 0.0, 0.0]])
    rewards = torch.tensor([[1.0, 0.5, -2.0, 3.0]])
    swapped = rewards[:, [0, 1, 3, 2]]
    for loss in LOSSES.values():
        assert float(loss(rewards, labels)) == pytest.approx(float(loss(swapped, labels)))
        assert float(loss(rewards, torch.zeros(1, 4))) == 0.0
    assert torch.equal(plackett_luce(rewards, labels), listmle(rewards, labels))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    torch.manual_seed(0)
    rewards = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels, where = torch.tensor([[3.0, 1.0, 1.0, 0.0]] * 3), torch.tensor([[True, True, True, False]] * 3)
    assert torch.autograd.gradcheck(lambda r: LOSSES[name](r, labels, where), (rewards,))


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_rewards_and_padding_leave_no_nan(name):
    rewards = torch.tensor([[1e4, -1e4, float("nan")]], requires_grad=True)
    where = torch.tensor([[True, True, False]])
    loss = LOSSES[name](rewards, torch.tensor([[0.0, 1.0, 5.0]]), where)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(2e4)
    assert rewards.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_a_margin_is_between_the_answers_that_the_data_compares():
    """The third is a degenerate answer, which nobody said by how much it is worse."""
    rewards, labels = torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    apart = torch.tensor([[True, True, False]])
    found = bradley_terry(rewards, labels, margins_L=torch.tensor([3.0]), apart_LM=apart)
    differences = torch.tensor([2.0 - 1.0 - 3.0, 2.0 + 1.0, 1.0 + 1.0])
    assert float(found) == pytest.approx(float(-torch.nn.functional.logsigmoid(differences).mean()))


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="give one a list"):
        bradley_terry(REWARDS, WINS, margins_L=torch.zeros(2))
    with pytest.raises(DataError, match="takes no margins"):
        plackett_luce(REWARDS, WINS, margins_L=MARGINS)
