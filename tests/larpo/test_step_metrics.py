"""Metrics of a step, from outcomes small enough to compute by hand."""

import math
from dataclasses import replace

import pytest
import torch

from larpo.list_step import ListOutcome
from larpo.step_metrics import SUMS, rank_sums, step_metrics


@pytest.fixture
def outcome(make_list):
    """Two responses, of 2 tokens (better) and 1 token, with log-probabilities that the policy has moved."""
    item = make_list(0, (2, 1), rewards=(1.0, 0.0))  # the sampler gave -0.5 a token

    def make(scores=(0.3, 0.1), source=item, loss=0.5, rows=1):
        return ListOutcome(
            source=source,
            rows=rows,
            loss=loss,
            log_probs_M=torch.tensor([-1.0, -0.7]),
            reference_M=torch.tensor([-1.6, -0.9]),
            scores_M=torch.tensor(scores),
            token_log_probs_N=torch.tensor([-0.4, -0.6, -0.7]),
            token_entropies_N=torch.tensor([1.0, 2.0, 3.0]),
        )

    return make


def metrics_of(outcomes, publication=0, on_policy=True):
    sums, stalest = rank_sums(outcomes, publication)
    return step_metrics(sums, stalest, on_policy=on_policy)


def test_metrics_of_one_list(outcome):
    metrics = metrics_of([outcome()])
    second = math.exp(-0.7 + 0.5)  # the policy gives the second response less than the sampler did
    assert metrics == pytest.approx(
        {
            "train/lists": 1,
            "train/tokens": 4 + 2 + 1,  # the prompt once
            "train/rows": 1,
            "train/loss": 0.5,
            "train/kl_to_reference": (0.6 + 0.2 * second) / (2 + second),
            "train/entropy": (1 + 2 + 3) / 3,
            "train/score_gap": 0.3 - 0.1,
            "train/ranking_accuracy": 1.0,
            "train/staleness_mean": 0.0,
            "train/staleness_max": 0.0,
            "train/log_prob_gap": (0.1 + 0.1 + 0.2) / 3,
        }
    )


def test_the_score_gap_is_between_winners_and_all_losers(outcome, make_list):
    """As `hardness` defines it for rewards; the position of equal candidates is of no account."""
    item = make_list(0, (1, 1, 1, 1), rewards=(0.2, 1.0, 0.2, 0.5))
    four = replace(
        outcome(source=item, scores=(3.0, 4.0, 1.0, 0.5)),
        log_probs_M=torch.zeros(4),
        reference_M=torch.zeros(4),
        token_log_probs_N=torch.zeros(4),
        token_entropies_N=torch.zeros(4),
    )
    assert metrics_of([four])["train/score_gap"] == pytest.approx(4.0 - (3.0 + 1.0 + 0.5) / 3)
    equal = replace(four, source=make_list(0, (1, 1, 1, 1), rewards=(0.5, 0.5, 0.5, 0.5)))
    assert "train/score_gap" not in metrics_of([equal])


def test_means_are_over_all_lists_of_all_ranks(outcome):
    ranks = [[outcome(loss=1.0), outcome(scores=(0.0, 0.2), loss=4.0)], [outcome(loss=1.0, rows=2)], []]
    added = {name: sum(rank_sums(rank, 0)[0][name] for rank in ranks) for name in SUMS}
    metrics = step_metrics(added, 0.0, on_policy=True)
    assert metrics == pytest.approx(metrics_of([item for rank in ranks for item in rank]))
    assert metrics["train/loss"] == pytest.approx((1 + 4 + 1) / 3)
    assert metrics["train/ranking_accuracy"] == pytest.approx(2 / 3)
    assert metrics["train/rows"] == 1 + 1 + 2


def test_staleness_counts_publications_since_the_prompt_was_asked_for_and_spares_remembered_lists(outcome, make_list):
    item = make_list(0, (2, 1), rewards=(1.0, 0.0)).replace(publication=3)
    other = item.candidates[1].replace(origin="remembered")
    mixed = item.replace(candidates=(item.candidates[0], other))
    old = tuple(candidate.replace(origin="remembered") for candidate in item.candidates)
    remembered = item.replace(candidates=old, publication=0)
    metrics = metrics_of([outcome(source=mixed), outcome(source=item.replace(publication=5))], publication=5)
    assert (metrics["train/staleness_mean"], metrics["train/staleness_max"]) == ((2 + 0) / 2, 2)
    sums, stalest = rank_sums([outcome(source=remembered)], 5)
    assert (sums["fresh_lists"], stalest) == (0, 0)


def test_the_gap_of_a_stale_list_is_not_taken_for_noise(outcome):
    metrics = metrics_of([outcome()], publication=1)
    assert metrics["train/policy_gap"] == pytest.approx(0.4 / 3)
    assert "train/log_prob_gap" not in metrics


def test_the_gap_has_another_name_once_the_policy_has_moved(outcome):
    metrics = metrics_of([outcome()], on_policy=False)
    assert metrics["train/policy_gap"] == pytest.approx(0.4 / 3)
    assert "train/log_prob_gap" not in metrics


def test_equal_scores_rank_a_pair_by_chance(outcome):
    """As at a run's first step, where the policy is the reference and every score is 0."""
    assert metrics_of([outcome(scores=(0.0, 0.0))])["train/ranking_accuracy"] == 0.5


def test_equal_rewards_are_no_pair(outcome, make_list):
    metrics = metrics_of([outcome(source=make_list(0, (2, 1), rewards=(1.0, 1.0)))])
    assert "train/ranking_accuracy" not in metrics


def test_a_step_without_lists_has_zeros():
    assert set(metrics_of([]).values()) == {0.0}


def test_the_divergence_is_that_of_the_policy_and_not_of_what_was_sampled_before(make_list):
    """A policy that has moved from p = (1/2, 1/2) to (4/5, 1/5) over two answers, each sampled once."""
    item = make_list(0, (1, 1)).replace(
        candidates=tuple(c.replace(log_probs=(math.log(0.5),)) for c in make_list(0, (1, 1)).candidates)
    )
    policy, reference = torch.tensor([0.8, 0.2]).log(), torch.tensor([0.5, 0.5]).log()
    outcome = ListOutcome(item, 1, 0.0, policy, reference, policy - reference, policy, torch.zeros(2))
    assert (policy - reference).mean() < 0
    kl = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert metrics_of([outcome])["train/kl_to_reference"] == pytest.approx(kl)


def test_a_loss_of_tokens_is_their_mean(outcome):
    sums, stalest = rank_sums([outcome(loss=1.0), outcome(loss=5.0)], 0)
    assert step_metrics(sums, stalest, on_policy=True, per="token")["train/loss"] == (1 + 5) / (3 + 3)


def test_lists_of_a_dataset_say_nothing_of_samplers(outcome, make_list):
    item = make_list(0, (2, 1), rewards=(1.0, 0.0))
    given = item.replace(
        candidates=tuple(c.replace(origin="given", log_probs=(), versions=()) for c in item.candidates)
    )
    metrics = metrics_of([outcome(source=given)])
    silent = {"train/log_prob_gap", "train/policy_gap", "train/staleness_mean", "train/kl_to_reference"}
    assert not silent & set(metrics)
    assert metrics["train/ranking_accuracy"] == 1.0


def test_lists_of_one_response_say_nothing_of_ranking(make_list):
    item = make_list(0, (2,))
    numbers = {"log_probs_M": torch.tensor([-1.0]), "reference_M": None, "scores_M": torch.tensor([-1.0])}
    tokens = {"token_log_probs_N": torch.tensor([-0.4, -0.6]), "token_entropies_N": torch.tensor([1.0, 2.0])}
    metrics = metrics_of([ListOutcome(source=item, rows=1, loss=1.0, **numbers, **tokens)])
    assert not {"train/ranking_accuracy", "train/score_gap"} & set(metrics)
