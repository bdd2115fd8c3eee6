"""Objectives of the rewards' values, against libraries and against sums written out."""

import doctest
import math

import numpy
import pytest
import torch

import larpo.list_objectives
from larpo.list_objectives import approx_ndcg, labels, lipo_lambda, listnet

ALL = [lipo_lambda, listnet, approx_ndcg]
each_objective = pytest.mark.parametrize("objective", ALL, ids=lambda objective: objective.__name__)


def random_batch(lists=40, candidates=7, dtype=torch.float64, distinct=False):
    generator = torch.Generator().manual_seed(1)
    scores_LM = torch.randn(lists, candidates, generator=generator, dtype=dtype)
    rewards_LM = torch.randint(-2, 2, (lists, candidates), generator=generator).to(dtype) * 1.5
    if distinct:
        rewards_LM = torch.rand(lists, candidates, generator=generator, dtype=dtype) * 8 - 4
    return scores_LM, rewards_LM, torch.rand(lists, candidates, generator=generator) < 0.7


def test_docstring_examples():
    assert doctest.testmod(larpo.list_objectives).failed == 0


def by_hand(scores, rewards):
    """lipo_lambda of one list, pair by pair."""
    low, high = min(rewards), max(rewards)
    gains = [2 ** ((r - low) / (high - low)) - 1 for r in rewards]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    rank = {i: place + 1 for place, i in enumerate(order)}
    total = 0.0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if rewards[i] > rewards[j]:
                swap = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
                total += abs(gains[i] - gains[j]) * swap * math.log1p(math.exp(scores[j] - scores[i]))
    return total


def test_lipo_lambda_is_its_formula():
    scores_LM, rewards_LM, _ = random_batch(distinct=True)
    expected = [by_hand(s, r) for s, r in zip(scores_LM.tolist(), rewards_LM.tolist(), strict=True)]
    assert lipo_lambda(scores_LM, rewards_LM).tolist() == pytest.approx(expected, rel=1e-9)


class ScoresAsGiven:
    """A cross-encoder whose scores are known, for sentence-transformers' losses."""

    num_labels, device = 1, torch.device("cpu")

    def __init__(self, scores_LM):
        self.scores = scores_LM.flatten()

    def preprocess(self, pairs, **_):
        first, self.scores = self.scores[: len(pairs)], self.scores[len(pairs) :]
        return {"scores": first}

    def __call__(self, features):
        return features


def theirs(make, scores_LM, rewards_LM):
    lists, candidates = scores_LM.shape
    loss = make(ScoresAsGiven(scores_LM))
    return loss((["query"] * lists, [["document"] * candidates] * lists), list(rewards_LM))


@pytest.mark.parametrize("candidates", [2, 3, 8])
def test_listnet_equals_sentence_transformers(candidates):
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")
    scores_LM, rewards_LM, _ = random_batch(candidates=candidates, dtype=torch.float32, distinct=True)
    expected = theirs(losses.ListNetLoss, scores_LM, rewards_LM)
    torch.testing.assert_close(listnet(scores_LM, rewards_LM).mean(), expected)


@pytest.mark.parametrize("candidates", [2, 5])
def test_lipo_lambda_equals_sentence_transformers_lambda_loss(candidates):
    """Theirs is a mean over pairs, with log2 in the discount, and gains divided by the ideal DCG."""
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")
    scores_LM, rewards_LM, _ = random_batch(lists=10, candidates=candidates, dtype=torch.float32, distinct=True)
    labels_LM = labels(rewards_LM, torch.ones_like(rewards_LM, dtype=torch.bool), torch.float32)
    positions_M = torch.arange(candidates) + 2.0
    ideal_L = ((torch.exp2(labels_LM.sort(1, descending=True).values) - 1) / positions_M.log2()).sum(1)

    def make(model):
        return losses.LambdaLoss(model, weighting_scheme=losses.LambdaRankScheme(), reduction_log="natural")

    pairs = math.comb(candidates, 2)
    for index in range(10):
        one = slice(index, index + 1)
        expected = theirs(make, scores_LM[one], labels_LM[one]) * ideal_L[index] / math.log(2) * pairs
        torch.testing.assert_close(lipo_lambda(scores_LM[one], rewards_LM[one])[0], expected, rtol=1e-4, atol=1e-6)


def test_approx_ndcg_at_a_low_temperature_is_ndcg():
    metrics = pytest.importorskip("sklearn.metrics")
    scores_LM, rewards_LM, _ = random_batch(distinct=True)
    gains_LM = torch.exp2(labels(rewards_LM, torch.ones_like(rewards_LM, dtype=torch.bool), torch.float64)) - 1
    expected = [
        1 - metrics.ndcg_score(gains[None], scores[None])
        for gains, scores in zip(numpy.array(gains_LM), numpy.array(scores_LM), strict=True)
    ]
    assert approx_ndcg(scores_LM, rewards_LM, temperature=1e-6).tolist() == pytest.approx(expected, abs=1e-6)


@each_objective
def test_candidates_may_stand_in_any_order_when_scores_tie(objective):
    scores_LM, rewards_LM, where_LM = random_batch()
    scores_LM = scores_LM.round()
    order_M = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    permuted_L = objective(scores_LM[:, order_M], rewards_LM[:, order_M], where_LM[:, order_M])
    torch.testing.assert_close(permuted_L, objective(scores_LM, rewards_LM, where_LM))


@each_objective
def test_before_the_first_step_the_gradient_lifts_the_better(objective):
    """Policy and reference are one: every score is 0."""
    scores_LM = torch.zeros(1, 3, requires_grad=True)
    objective(scores_LM, torch.tensor([[1.0, 3.0, 2.0]])).sum().backward()
    worst, best, middle = scores_LM.grad[0].tolist()
    assert best < middle < worst
    assert best < 0 < worst


@each_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_scores_and_rewards_stay_finite(objective, dtype):
    scores_LM = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], dtype=dtype)
    scores_LM.requires_grad_()
    loss_L = objective(scores_LM, torch.tensor([[2e6, 1.0, -3e6]]).expand(3, 3))
    loss_L.sum().backward()
    assert loss_L.dtype == torch.float32
    assert loss_L.isfinite().all()
    assert scores_LM.grad.isfinite().all()
