import doctest
import math

import pytest
import torch
from torch.nn import functional as F

import larpo.objectives
from larpo.attention import SEGMENTS
from larpo.errors import DataError
from larpo.list_objectives import approx_ndcg, lipo_lambda, listnet
from larpo.log_probs import packed_log_probs
from larpo.objectives import contrastive, lambdarank, listmle, pairwise
from larpo.packing import pack_list

ALL = [pairwise, contrastive, lambdarank, listmle]
EVERY = [*ALL, lipo_lambda, listnet, approx_ndcg]  # score objectives; test_list_objectives.py has what is theirs alone
each_objective = pytest.mark.parametrize("objective", ALL, ids=lambda objective: objective.__name__)
every_objective = pytest.mark.parametrize("objective", EVERY, ids=lambda objective: objective.__name__)


def pair(winner, loser):
    """-log sigmoid(winner - loser)"""
    return math.log(1 + math.exp(loser - winner))


def choice(winner, *losers):
    """-log of the winner's share in the softmax of all"""
    return math.log(sum(map(math.exp, (winner, *losers)))) - winner


TABLE = [
    # scores, rewards, pairwise, contrastive, lambdarank, listmle
    # In order.
    ([3.0, 2.0, 1.0], [9, 5, 0], pair(3, 1), choice(3, 2, 1), pair(3, 2) + pair(3, 1) + pair(2, 1),
     choice(3, 2, 1) + choice(2, 1)),
    # The rewards give the order, not the positions.
    ([0.5, -1.0, 2.0], [5, 0, 9], pair(2, -1), choice(2, 0.5, -1), pair(2, 0.5) + pair(2, -1) + pair(0.5, -1),
     choice(2, 0.5, -1) + choice(0.5, -1)),
    # Negative rewards.
    ([1.0, 4.0], [-3, -7], pair(1, 4), choice(1, 4), pair(1, 4), choice(1, 4)),
    # Two best: the mean over them; neither is a loser to the other.
    ([1.0, 2.0, 4.0], [7, 7, 3], (pair(1, 4) + pair(2, 4)) / 2, (choice(1, 4) + choice(2, 4)) / 2,
     pair(1, 4) + pair(2, 4), choice(1, 4) + choice(2, 4)),
    # Two worst.
    ([1.0, 2.0, 4.0], [7, 3, 3], (pair(1, 2) + pair(1, 4)) / 2, choice(1, 2, 4), pair(1, 2) + pair(1, 4),
     choice(1, 2, 4)),
    # Two best and two worst: four pairs.
    ([1.0, 2.0, 4.0, 8.0], [7, 7, 3, 3], (pair(1, 4) + pair(1, 8) + pair(2, 4) + pair(2, 8)) / 4,
     (choice(1, 4, 8) + choice(2, 4, 8)) / 2, pair(1, 4) + pair(1, 8) + pair(2, 4) + pair(2, 8),
     choice(1, 4, 8) + choice(2, 4, 8)),
    # A tie in the middle.
    ([1.0, 2.0, 4.0, 8.0], [7, 5, 5, 3], pair(1, 8), choice(1, 2, 4, 8),
     pair(1, 2) + pair(1, 4) + pair(1, 8) + pair(2, 8) + pair(4, 8),
     choice(1, 2, 4, 8) + choice(2, 8) + choice(4, 8)),
    # No signal.
    ([1.0, 2.0, 4.0], [7, 7, 7], 0, 0, 0, 0),
    ([1.0], [7], 0, 0, 0, 0),
]  # fmt: skip


def test_docstring_examples():
    assert doctest.testmod(larpo.objectives).failed == 0


@pytest.mark.parametrize(("scores", "rewards", "pairs", "contrast", "ranks", "order"), TABLE)
def test_values(scores, rewards, pairs, contrast, ranks, order):
    actual = [f(torch.tensor([scores]), torch.tensor([rewards])).item() for f in ALL]
    assert actual == pytest.approx([pairs, contrast, ranks, order], rel=1e-5, abs=1e-6)


def random_batch(lists=50, candidates=7, levels=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    scores_LM = torch.randn(lists, candidates, generator=generator, dtype=dtype)
    rewards_LM = torch.randint(levels, (lists, candidates), generator=generator).to(dtype)
    where_LM = torch.rand(lists, candidates, generator=generator) < 0.7
    return scores_LM, rewards_LM, where_LM


def test_all_four_are_one_number_for_two_candidates():
    scores_LM, rewards_LM, _ = random_batch(candidates=2)
    losses = [objective(scores_LM, rewards_LM) for objective in ALL]
    for loss_L in losses[1:]:
        torch.testing.assert_close(loss_L, losses[0])


@every_objective
def test_candidates_may_stand_in_any_order(objective):
    scores_LM, rewards_LM, where_LM = random_batch()
    order_M = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    permuted_L = objective(scores_LM[:, order_M], rewards_LM[:, order_M], where_LM[:, order_M])
    torch.testing.assert_close(permuted_L, objective(scores_LM, rewards_LM, where_LM))


@each_objective
def test_a_loss_depends_on_the_order_of_rewards_only(objective):
    scores_LM, rewards_LM, where_LM = random_batch()
    torch.testing.assert_close(
        objective(scores_LM, rewards_LM.exp() * 3 - 50, where_LM), objective(scores_LM, rewards_LM, where_LM)
    )


@every_objective
@pytest.mark.parametrize("junk", [0.0, 1e30, torch.nan, torch.inf, -torch.inf])
def test_padding_reaches_neither_value_nor_gradient(objective, junk):
    scores_LM, rewards_LM, where_LM = random_batch()
    padded_LM = scores_LM.masked_fill(~where_LM, junk).requires_grad_()
    loss_L = objective(padded_LM, rewards_LM.masked_fill(~where_LM, junk), where_LM)
    loss_L.sum().backward()
    for index, where_M in enumerate(where_LM):
        real_1M = scores_LM[index : index + 1, where_M].clone().requires_grad_()
        alone = objective(real_1M, rewards_LM[index : index + 1, where_M])
        torch.testing.assert_close(loss_L[index : index + 1], alone)
        alone.sum().backward()
        torch.testing.assert_close(padded_LM.grad[index, where_M], real_1M.grad[0])
    assert (padded_LM.grad[~where_LM] == 0).all()


@every_objective
def test_a_list_without_signal_has_no_loss_and_no_gradient(objective):
    scores_LM = torch.randn(3, 4, requires_grad=True)
    where_LM = torch.tensor([[True] * 4, [True, False, False, False], [False] * 4])
    loss_L = objective(scores_LM, torch.full((3, 4), 2.5), where_LM)
    loss_L.sum().backward()
    assert loss_L.tolist() == [0, 0, 0]
    assert (scores_LM.grad == 0).all()


@every_objective
def test_gradients_are_right(objective):
    scores_LM, rewards_LM, where_LM = random_batch(lists=6, candidates=5)
    scores_LM = scores_LM.requires_grad_()
    assert torch.autograd.gradcheck(lambda scores: objective(scores, rewards_LM, where_LM), scores_LM)


@each_objective
def test_scores_that_rise_with_the_rewards_lower_the_loss(objective):
    rewards_LM = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    losses = [objective(scale * rewards_LM, rewards_LM).item() for scale in (-1, 0, 1, 20)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0, abs=1e-6)


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_scores_stay_finite(objective, dtype):
    scores_LM = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], dtype=dtype)
    scores_LM.requires_grad_()
    loss_L = objective(scores_LM, torch.tensor([[2.0, 1.0, 0.0]]).expand(3, 3))
    loss_L.sum().backward()
    assert loss_L.dtype == torch.float32
    assert loss_L.isfinite().all()
    assert scores_LM.grad.isfinite().all()


def test_extreme_values():
    scores_LM, rewards_LM = torch.tensor([[-1e4, 1e4]]), torch.tensor([[1.0, 0.0]])
    assert [objective(scores_LM, rewards_LM).item() for objective in ALL] == [2e4] * 4
    assert [objective(-scores_LM, rewards_LM).item() for objective in ALL] == [0] * 4


@every_objective
def test_shapes_that_differ_are_refused(objective):
    with pytest.raises(DataError, match=r"\(2, 3\), \(2, 1\)"):
        objective(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(DataError, match=r"\(3,\)"):
        objective(torch.zeros(3), torch.zeros(3))


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


@pytest.mark.parametrize("candidates", [2, 3, 8])
def test_listmle_equals_sentence_transformers(candidates):
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")
    scores_LM, _, _ = random_batch(lists=5, candidates=candidates, dtype=torch.float32)
    rewards_LM = torch.stack([torch.randperm(candidates) for _ in range(5)]).float()
    theirs = losses.ListMLELoss(ScoresAsGiven(scores_LM), respect_input_order=False)
    expected = theirs((["query"] * 5, [["document"] * candidates] * 5), list(rewards_LM))
    torch.testing.assert_close(listmle(scores_LM, rewards_LM).mean(), expected)


@pytest.fixture
def trl_dpo(tiny_model, tmp_path):
    """TRL's DPOTrainer at beta 0.3, with the tiny Llama of seed 0 as policy and of seed 1 as reference."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{f"w{i}": i for i in range(3, 97)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    config = trl.DPOConfig(
        output_dir=str(tmp_path), beta=0.3, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False
    )
    return trl.DPOTrainer(
        model=tiny_model("llama", "eager", seed=0),
        ref_model=tiny_model("llama", "eager", seed=1),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "w3 w4", "chosen": " w5", "rejected": " w6"}]),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
        ),
    )


def test_pairwise_equals_trls_dpo_loss(trl_dpo, tiny_model, random_list):
    """Their pairs, padded to one length; our packed lists: one loss and one gradient."""
    lists = [random_list(2, seed=seed) for seed in range(3)]
    rows = [(prompt, responses[side]) for side in (0, 1) for prompt, responses in lists]
    length = max(len(prompt) + len(response) for prompt, response in rows)

    def padded(fill):
        return torch.tensor([fill(p, y) + [0] * (length - len(p) - len(y)) for p, y in rows])

    inputs = {
        "input_ids": padded(lambda prompt, response: prompt + response),
        "attention_mask": padded(lambda prompt, response: [1] * len(prompt + response)),
        "completion_mask": padded(lambda prompt, response: [0] * len(prompt) + [1] * len(response)),
    }
    expected = trl_dpo.compute_loss(trl_dpo.model, inputs)
    expected.backward()

    policy, reference = (tiny_model("llama", SEGMENTS, seed=seed) for seed in (0, 1))
    packed = [pack_list(*one) for one in lists]
    with torch.no_grad():
        reference_LM = torch.stack([packed_log_probs(reference, row).log_probs_M for row in packed])
    policy_LM = torch.stack([packed_log_probs(policy, row).log_probs_M for row in packed])
    loss = pairwise(0.3 * (policy_LM - reference_LM), torch.tensor([[1.0, 0.0]]).expand(3, 2)).mean()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
    loss.backward()
    theirs, ours = (model.get_input_embeddings().weight.grad for model in (trl_dpo.model, policy))
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 1 - 1e-6
    torch.testing.assert_close(ours.norm(), theirs.norm(), rtol=1e-4, atol=0)
