"""Forward and backward over a rank's lists: rows, empty passes and divisors change nothing that they should not."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from larpo.attention import attention_implementation
from larpo.bound_objective import BoundObjective
from larpo.list_step import PackedList, PassCounts, list_log_probs, pass_counts, rows_of, step_lists
from larpo.log_probs import packed_log_probs, plain_log_probs
from larpo.objective_table import get_spec
from larpo.objectives import lambdarank
from larpo.packed_scorer import has_dropout

LENGTHS = ((9, 1, 14), (5, 11), (2, 7, 3, 12))
BETA = 0.5


def bound(name, **options):
    return BoundObjective(get_spec(name), BETA, options)


@pytest.fixture
def policy(tiny_model):
    return tiny_model("llama", attention_implementation(tiny_model("llama", "sdpa").config, "cpu"))


@pytest.fixture
def lists(make_list):
    return [make_list(number, lengths, vocabulary=97) for number, lengths in enumerate(LENGTHS)]


def packed(lists, row_tokens):
    """With reference log-probabilities 1 to M."""
    items = []
    for item in lists:
        rewards_M = torch.tensor([candidate.reward for candidate in item.candidates])
        rows = rows_of(item, row_tokens)
        items.append(PackedList(item, rows, rewards_M, -torch.arange(1.0, len(rewards_M) + 1)))
    return items


def run_step(policy, items, *, objective="lambdarank", divisor=1.0, passes=None, divergence=None, shared_tokens=0):
    """Outcomes, the gradients of all parameters as one vector, and what `backward` was told of each pass."""
    policy.zero_grad()
    last_flags, losses = [], []

    def backward(loss, last):
        loss.backward()
        losses.append(float(loss.detach()))
        last_flags.append(last)

    outcomes = step_lists(
        lambda row: packed_log_probs(policy, row),
        items,
        objective=bound(objective),
        divisor=divisor,
        passes=passes or pass_counts(items, shared_tokens),
        backward=backward,
        divergence=divergence,
        shared_tokens=shared_tokens,
    )
    return outcomes, torch.cat([p.grad.flatten() for p in policy.parameters()]), last_flags, losses


@pytest.mark.parametrize("objective", ["lambdarank", "listmle", "approx_ndcg", "rrhf", "simpo", "kto"])
@pytest.mark.parametrize("row_tokens", [18, 20, 24])
def test_a_list_split_over_rows_has_the_loss_and_the_gradient_of_one_row(policy, lists, objective, row_tokens):
    divergence = torch.tensor(0.5)
    whole, whole_gradient, *_ = run_step(policy, packed(lists, 4096), objective=objective, divergence=divergence)
    items = packed(lists, row_tokens)
    assert max(len(item.rows) for item in items) > 1
    split, split_gradient, *_ = run_step(policy, items, objective=objective, divergence=divergence)
    assert [outcome.loss for outcome in split] == pytest.approx([outcome.loss for outcome in whole], rel=1e-5)
    torch.testing.assert_close(split_gradient, whole_gradient, rtol=1e-5, atol=1e-5 * float(whole_gradient.abs().max()))


@pytest.mark.parametrize("objective", ["lambdarank", "simpo", "kto"])
@pytest.mark.parametrize(
    ("row_tokens", "shared_tokens", "passes"), [(4096, 60, 2), (4096, 4096, 1), (28, 49, 3), (20, 4096, 6)]
)
def test_lists_that_share_rows_have_the_loss_and_the_gradient_of_rows_of_their_own(
    policy, lists, objective, row_tokens, shared_tokens, passes
):
    """Rows of 28, 21 and 30 tokens; a list that is split shares none."""
    items, divergence = packed(lists, row_tokens), torch.tensor(0.5)
    own, own_gradient, *_ = run_step(policy, items, objective=objective, divergence=divergence)
    shared, gradient, flags, _ = run_step(
        policy, items, objective=objective, divergence=divergence, shared_tokens=shared_tokens
    )
    assert flags == [False] * (passes - 1) + [True]
    assert sum(outcome.rows for outcome in shared) == passes
    assert [outcome.loss for outcome in shared] == pytest.approx([outcome.loss for outcome in own], rel=1e-5)
    for one, other in zip(shared, own, strict=True):
        torch.testing.assert_close(one.token_log_probs_N, other.token_log_probs_N)
    torch.testing.assert_close(gradient, own_gradient, rtol=1e-5, atol=1e-5 * float(own_gradient.abs().max()))


def test_the_gradient_is_that_of_the_mean_loss_computed_a_sequence_at_a_time(policy, lists):
    _, gradient, *_ = run_step(policy, packed(lists, 4096), divisor=len(lists))
    policy.zero_grad()
    for item in lists:
        log_probs_M = torch.stack(
            [plain_log_probs(policy, item.prompt_token_ids, c.token_ids).sum() for c in item.candidates]
        )
        scores_M = BETA * (log_probs_M + torch.arange(1.0, len(log_probs_M) + 1))
        rewards_M = torch.tensor([c.reward for c in item.candidates])
        (lambdarank(scores_M[None], rewards_M[None]).sum() / 3).backward()
    plain = torch.cat([p.grad.flatten() for p in policy.parameters()])
    torch.testing.assert_close(gradient, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


def test_empty_passes_add_no_gradient_and_the_last_pass_is_told(policy, lists):
    items = packed(lists, 20)
    counts = pass_counts(items)
    _, gradient, flags, _ = run_step(policy, items)
    _, padded, padded_flags, losses = run_step(
        policy, items, passes=PassCounts(counts.scoring + 2, counts.backward + 3)
    )
    assert torch.equal(padded, gradient)
    assert flags == [False] * (counts.backward - 1) + [True]
    assert padded_flags == [False] * (counts.backward + 2) + [True]
    assert losses[counts.backward :] == [0.0] * 3


def test_a_rank_without_lists_makes_only_empty_passes(policy):
    outcomes, gradient, flags, losses = run_step(policy, [], passes=PassCounts(2, 3))
    assert outcomes == []
    assert losses == [0.0] * 3
    assert flags == [False, False, True]
    assert not gradient.any()


def test_every_pass_enters_the_model_as_often_as_it_was_counted(policy, lists):
    items, rows = packed(lists, 20), []
    passes = PassCounts(pass_counts(items).scoring + 1, pass_counts(items).backward + 2)

    def score(row):
        rows.append(torch.is_grad_enabled())
        return packed_log_probs(policy, row)

    step_lists(
        score,
        items,
        objective=bound("lambdarank"),
        divisor=1.0,
        passes=passes,
        backward=lambda loss, last: loss.backward(),
    )
    assert (rows.count(False), rows.count(True)) == (passes.scoring, passes.backward)


def test_the_divisor_divides_loss_and_gradient(policy, lists):
    items = packed(lists, 4096)
    _, once, _, losses = run_step(policy, items, divisor=1.0)
    _, third, _, thirds = run_step(policy, items, divisor=3.0)
    torch.testing.assert_close(third, once / 3)
    assert thirds == pytest.approx([loss / 3 for loss in losses])


def test_outcomes_hold_what_was_computed_of_each_list(policy, lists):
    items = packed(lists, 20)
    outcomes, *_ = run_step(policy, items, divisor=7.0)
    for item, outcome in zip(items, outcomes, strict=True):
        log_probs_M = list_log_probs(lambda row: packed_log_probs(policy, row), item.rows)
        torch.testing.assert_close(outcome.log_probs_M, log_probs_M)
        torch.testing.assert_close(outcome.scores_M, BETA * (log_probs_M - item.reference_M))
        assert outcome.loss == pytest.approx(float(lambdarank(outcome.scores_M[None], item.rewards_M[None])), rel=1e-5)
        lengths = [len(candidate.token_ids) for candidate in item.source.candidates]
        sums = torch.stack([part.sum() for part in outcome.token_log_probs_N.split(lengths)])
        torch.testing.assert_close(sums, log_probs_M)
        assert len(outcome.token_entropies_N) == sum(lengths)
        assert outcome.rows == len(item.rows)
        assert not outcome.log_probs_M.requires_grad


def test_passes_are_counted_by_rows(lists):
    assert pass_counts(packed(lists, 4096)) == PassCounts(scoring=0, backward=3)
    items = packed(lists, 20)  # prompts of 4, 5 and 6 tokens: rows of (9, 1) + (14), (5) + (11), (2, 7, 3) + (12)
    assert [len(item.rows) for item in items] == [2, 2, 2]
    assert pass_counts(items) == PassCounts(scoring=6, backward=6)


@pytest.mark.parametrize("objective", ["lambdarank", "pairwise"])
@pytest.mark.parametrize(("row_tokens", "shared_tokens"), [(4096, 0), (4096, 60), (20, 0)])
def test_a_policy_that_is_the_reference_gives_what_a_reference_of_its_weights_gives(
    policy, lists, objective, row_tokens, shared_tokens
):
    items = packed(lists, row_tokens)
    beside = [replace(item, reference_M=list_log_probs(partial(packed_log_probs, policy), item.rows)) for item in items]
    own = [replace(item, reference_M=None, policy_is_reference=True) for item in items]
    found, gradient, *_ = run_step(policy, own, objective=objective, shared_tokens=shared_tokens)
    wanted, wanted_gradient, *_ = run_step(policy, beside, objective=objective, shared_tokens=shared_tokens)
    assert [outcome.loss for outcome in found] == pytest.approx([outcome.loss for outcome in wanted], rel=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5 * float(wanted_gradient.abs().max()))
    for outcome, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(outcome.reference_M, other.reference_M)
        assert outcome.scores_M.abs().max() == 0


def test_dropout_is_seen_in_modules_and_in_attention(policy):
    assert not has_dropout(policy)
    assert has_dropout(torch.nn.Sequential(policy, torch.nn.Dropout(0.1)))
    assert not has_dropout(torch.nn.Sequential(policy, torch.nn.Dropout(0.0)))
    for name in ("attention_dropout", "residual_dropout", "jitter_noise"):
        setattr(policy, name, 0.2)
        assert has_dropout(policy)
        delattr(policy, name)
    assert not has_dropout(policy)
