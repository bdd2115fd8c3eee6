"""One step's passes of a reward model: whole lists, any number of passes and ranks, one gradient."""

import pytest
import torch

from larpo.conversations import Conversation
from larpo.dealing import deal
from larpo.errors import DataError
from larpo.reward_data import LabelledList
from larpo.reward_losses import LOSSES
from larpo.reward_step import StepSums, list_rewards, passes_of, planned_batches, step_lists

WEIGHTS = torch.linspace(-1.0, 1.5, 12, dtype=torch.float64)
LISTS = tuple(
    LabelledList(
        f"p{number}",
        tuple(Conversation(tuple(range(1, size)), (0,) * (size - 1)) for size in sizes),
        tuple(float(len(sizes) - place) for place in range(len(sizes))),
    )
    for number, sizes in enumerate([(3, 5), (9, 2, 4), (6, 6), (4, 8, 3, 2), (7, 11)])
)


def scorer(weights):
    """The sum of a weight a token: a reward that every token of a conversation has a part in."""
    return lambda conversations: torch.stack([weights[list(c.ids)].sum() for c in conversations])


def gradient(hands, *, name="plackett_luce", batch_tokens=20, count=None):
    """Of all ranks together, as DeepSpeed takes their mean; and the sums over them."""
    weights = WEIGHTS.clone().requires_grad_()
    passes = [passes_of(hand, batch_tokens) for hand in hands]
    sums, calls = StepSums(), []
    for own in passes:

        def backward(loss, last):
            (loss / len(hands)).backward()
            calls.append(last)

        sums += step_lists(
            scorer(weights),
            own,
            loss=LOSSES[name],
            divisor=len(LISTS) / len(hands),
            count=count or max(map(len, passes)),
            backward=backward,
        )
    assert calls.count(True) == len(hands)
    return weights.grad, sums


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_mean_loss_whatever_the_passes_and_ranks(name):
    weights = WEIGHTS.clone().requires_grad_()
    score = scorer(weights)
    losses = [LOSSES[name](score(item.conversations)[None], torch.tensor([item.labels])) for item in LISTS]
    expected = torch.autograd.grad(torch.stack(losses).mean(), weights)[0]
    tokens = [item.tokens for item in LISTS]
    for ranks, batch_tokens, count in (
        (1, 1, None),
        (1, 1000, None),
        (1, 20, 9),
        (2, 20, None),
        (3, 20, 4),
        (7, 5, None),
    ):
        hands = [[LISTS[index] for index in hand] for hand in deal(tokens, ranks)]
        found, sums = gradient(hands, name=name, batch_tokens=batch_tokens, count=count)
        assert torch.allclose(found, expected, atol=1e-12), (ranks, batch_tokens)
        assert (sums.lists, sums.pairs, sums.tokens) == (5, 1 + 3 + 1 + 6 + 1, sum(tokens))
        assert sums.loss / sums.lists == pytest.approx(float(torch.stack(losses).mean()))


def test_margins_reach_the_loss():
    plain, _ = gradient([LISTS], name="bradley_terry")
    with_margin = [LabelledList(x.prompt_id, x.conversations, x.labels, margin=2.0) for x in LISTS]
    moved, _ = gradient([with_margin], name="bradley_terry")
    assert not torch.allclose(plain, moved)


def test_passes_hold_whole_lists_within_the_limit():
    passes = passes_of(LISTS, 20)
    assert sorted(item.prompt_id for own in passes for item in own) == [item.prompt_id for item in LISTS]
    for own in passes:
        longest = max(len(c) for item in own for c in item.conversations)
        assert len(own) == 1 or longest * sum(len(item.conversations) for item in own) <= 20
    assert passes_of([], 20) == []


def test_rewards_come_back_by_prompt():
    passes = passes_of(LISTS, 20)
    found = list_rewards(scorer(WEIGHTS), passes, count=len(passes) + 2)
    assert found.keys() == {item.prompt_id for item in LISTS}
    assert found["p1"] == pytest.approx([float(WEIGHTS[1:size].sum()) for size in (9, 2, 4)])


def test_every_epoch_takes_each_list_once_in_an_order_of_its_own():
    ids = [f"p{number}" for number in range(7)]
    batches = planned_batches(ids, epochs=2, lists_per_step=3, seed=0)
    assert [len(batch) for batch in batches] == [3, 3, 1] * 2
    first, second = [i for b in batches[:3] for i in b], [i for b in batches[3:] for i in b]
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert batches == planned_batches(ids, epochs=2, lists_per_step=3, seed=0)
    assert batches != planned_batches(ids, epochs=2, lists_per_step=3, seed=1)
    with pytest.raises(DataError, match="one id"):
        planned_batches(["a", "a"], epochs=1, lists_per_step=1, seed=0)
