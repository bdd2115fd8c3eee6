"""The baselines of the paper's Table 2: against TRL where it has the same loss, else against their formulas by hand."""

import dataclasses
import doctest
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import pad

import larpo.baselines
from larpo.attention import SEGMENTS
from larpo.baselines import ListBatch, cpo, ipo, kto, log_ratios, rdpo, rrhf, simpo, slic_hf
from larpo.log_probs import packed_log_probs
from larpo.objectives import pairwise
from larpo.packing import pack_list

OPTIONS = {
    ipo: {"beta": 0.3},
    slic_hf: {"margin": 2.0, "sft_weight": 0.2},
    rrhf: {"sft_weight": 0.5},
    cpo: {"beta": 0.3, "sft_weight": 0.2},
    kto: {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5},
    rdpo: {"beta": 0.3, "length_weight": 0.1},
    simpo: {"beta": 2.0, "margin": 0.8},
}
each_baseline = pytest.mark.parametrize("baseline", OPTIONS, ids=lambda baseline: baseline.__name__)


def loss_of(baseline, batch):
    return baseline(batch, **OPTIONS[baseline])


def random_batch(lists=40, candidates=6, levels=4, where=True, seed=0) -> ListBatch:
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(lists, candidates, generator=generator, dtype=torch.float64)

    return ListBatch(
        log_probs_LM=4 * normal() - 20,
        reference_LM=4 * normal() - 20,
        rewards_LM=torch.randint(levels, (lists, candidates), generator=generator).double() - 1,
        lengths_LM=torch.randint(1, 30, (lists, candidates), generator=generator),
        where_LM=torch.rand(lists, candidates, generator=generator) < 0.7 if where else None,
        divergence=torch.tensor(0.4),
    )


def changed(batch, change) -> ListBatch:
    """`change` of every [L, M] tensor."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return ListBatch(**{name: change(name, value) if name != "divergence" else value for name, value in fields.items()})


def test_docstring_examples():
    assert doctest.testmod(larpo.baselines).failed == 0


# Formulas, pair by pair.


def softplus(x):
    return math.log1p(math.exp(x))


def by_hand(baseline, one):
    """The loss of one list of plain numbers."""
    o, candidates = OPTIONS[baseline], range(len(one.rewards))
    best = [i for i in candidates if one.rewards[i] == max(one.rewards)]
    worst = [i for i in candidates if one.rewards[i] == min(one.rewards)]
    lp, ref, n = one.log_probs, one.reference, one.lengths
    if max(one.rewards) == min(one.rewards):
        return 0.0
    if baseline is rrhf:
        ranks = sum(
            max(0.0, lp[j] / n[j] - lp[i] / n[i])
            for i in candidates
            for j in candidates
            if one.rewards[i] > one.rewards[j]
        )
        return ranks - o["sft_weight"] * sum(lp[i] for i in best) / len(best)
    if baseline is kto:
        mean, z, losses = sum(one.rewards) / len(one.rewards), 0.4, []
        for i in candidates:
            ratio = lp[i] - ref[i]
            if one.rewards[i] > mean + 1e-9:
                losses.append(o["desirable_weight"] * (1 - 1 / (1 + math.exp(-o["beta"] * (ratio - z)))))
            elif one.rewards[i] < mean - 1e-9:
                losses.append(o["undesirable_weight"] * (1 - 1 / (1 + math.exp(-o["beta"] * (z - ratio)))))
        return sum(losses) / len(losses)

    def pair(w, l):  # noqa: E741
        h = (lp[w] - ref[w]) - (lp[l] - ref[l])
        if baseline is ipo:
            return (h - 1 / (2 * o["beta"])) ** 2
        if baseline is slic_hf:
            return max(0.0, o["margin"] - lp[w] + lp[l]) - o["sft_weight"] * lp[w]
        if baseline is cpo:
            return softplus(-o["beta"] * (lp[w] - lp[l])) - o["sft_weight"] * lp[w]
        if baseline is rdpo:
            return softplus(-(o["beta"] * h + o["length_weight"] * (n[w] - n[l])))
        return softplus(-(o["beta"] * (lp[w] / n[w] - lp[l] / n[l]) - o["margin"]))

    return sum(pair(w, l) for w in best for l in worst) / (len(best) * len(worst))  # noqa: E741


@each_baseline
def test_it_is_its_formula(baseline):
    batch = random_batch(where=False)
    expected = [
        by_hand(
            baseline,
            SimpleNamespace(
                log_probs=batch.log_probs_LM[l].tolist(),
                reference=batch.reference_LM[l].tolist(),
                rewards=batch.rewards_LM[l].tolist(),
                lengths=batch.lengths_LM[l].tolist(),
            ),
        )
        for l in range(40)  # noqa: E741
    ]
    assert loss_of(baseline, batch).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rewards", [(0.1, 0.2, 0.3), (-7.7, -7.8, -7.9), (0.1, 0.2, 0.3, 0.2), (1e-9, 2e-9, 3e-9)])
def test_kto_leaves_out_what_is_at_the_mean_in_any_order(dtype, rewards):
    """The sum of 0.1, 0.2 and 0.3 is rounded, by their order, so that 0.2 is not a third of it."""
    for order in itertools.permutations(rewards):
        ratios = [{max(rewards): 2.0, min(rewards): -3.0}.get(reward, 9.0) for reward in order]
        batch = ListBatch(
            log_probs_LM=torch.tensor([ratios], dtype=dtype),
            reference_LM=torch.zeros(1, len(order), dtype=dtype),
            rewards_LM=torch.tensor([order], dtype=dtype),
            lengths_LM=torch.ones(1, len(order), dtype=torch.int64),
            divergence=torch.tensor(0.5),
        )
        best, worst = 1 - 1 / (1 + math.exp(0.5 - 2.0)), 1 - 1 / (1 + math.exp(-3.0 - 0.5))
        loss_L = kto(batch, beta=1.0, desirable_weight=1.0, undesirable_weight=2.0)
        assert loss_L.tolist() == pytest.approx([(best + 2 * worst) / 2])


def test_kto_takes_a_reward_that_is_near_the_mean_but_not_at_it():
    """0.51 of (0, 0.51, 1): the mean is 0.5033."""
    batch = ListBatch(
        log_probs_LM=torch.zeros(1, 3),
        reference_LM=torch.zeros(1, 3),
        rewards_LM=torch.tensor([[0.0, 0.51, 1.0]]),
        lengths_LM=torch.ones(1, 3, dtype=torch.int64),
        divergence=torch.tensor(0.0),
    )
    assert kto(batch, beta=1.0, desirable_weight=3.0, undesirable_weight=0.0).tolist() == [2 * 3 * 0.5 / 3]


def test_r_dpo_learns_less_from_a_longer_winner():
    """The sign that follows from the reward: see the docstring."""
    batch = random_batch(candidates=2, where=False)
    longer = changed(batch, lambda name, x: torch.where(batch.rewards_LM > 0, x + 20, x) if name == "lengths_LM" else x)
    plain = pairwise(0.3 * log_ratios(batch), batch.rewards_LM)
    torch.testing.assert_close(rdpo(batch, beta=0.3, length_weight=0.0), plain)
    one_sided = (batch.rewards_LM > 0).sum(1) == 1
    assert (loss_of(rdpo, longer) < loss_of(rdpo, batch))[one_sided & (plain > 0)].all()


# Behaviour that all share.


@each_baseline
def test_candidates_may_stand_in_any_order(baseline):
    batch, order_M = random_batch(), torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = changed(batch, lambda _, x: x[:, order_M])
    torch.testing.assert_close(loss_of(baseline, permuted), loss_of(baseline, batch))


@each_baseline
@pytest.mark.parametrize("junk", [0.0, 1e30, torch.nan, torch.inf, -torch.inf])
def test_padding_reaches_neither_value_nor_gradient(baseline, junk):
    batch = random_batch()

    def with_junk(name, x):
        if name == "where_LM":
            return x
        return x.masked_fill(~batch.where_LM, 0 if name == "lengths_LM" else junk)

    padded = changed(batch, with_junk)
    padded = dataclasses.replace(padded, log_probs_LM=padded.log_probs_LM.requires_grad_())
    loss_L = loss_of(baseline, padded)
    loss_L.sum().backward()
    for index, where_M in enumerate(batch.where_LM):
        alone = changed(batch, lambda name, x: x[index : index + 1, where_M])  # noqa: B023
        alone = dataclasses.replace(alone, log_probs_LM=alone.log_probs_LM.requires_grad_(), where_LM=None)
        loss = loss_of(baseline, alone)
        torch.testing.assert_close(loss_L[index : index + 1], loss)
        loss.sum().backward()
        torch.testing.assert_close(padded.log_probs_LM.grad[index, where_M], alone.log_probs_LM.grad[0])
    assert (padded.log_probs_LM.grad[~batch.where_LM] == 0).all()


@each_baseline
def test_a_list_without_signal_has_no_loss_and_no_gradient(baseline):
    batch = changed(random_batch(lists=3), lambda name, x: torch.full_like(x, 2) if name == "rewards_LM" else x)
    batch = dataclasses.replace(batch, log_probs_LM=batch.log_probs_LM.requires_grad_())
    loss_L = loss_of(baseline, batch)
    loss_L.sum().backward()
    assert loss_L.tolist() == [0, 0, 0]
    assert (batch.log_probs_LM.grad == 0).all()


@each_baseline
def test_gradients_are_right(baseline):
    batch = random_batch(lists=6)

    def loss(log_probs_LM):
        return loss_of(baseline, dataclasses.replace(batch, log_probs_LM=log_probs_LM))

    assert torch.autograd.gradcheck(loss, batch.log_probs_LM.requires_grad_())


@each_baseline
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_log_probabilities_stay_finite(baseline, dtype):
    log_probs_LM = torch.tensor([[-1e4, -1.0, 0.0], [0.0, -1e4, -1e4]], dtype=dtype).requires_grad_()
    batch = ListBatch(
        log_probs_LM=log_probs_LM,
        reference_LM=torch.tensor([[-1.0, -1e4, -5.0], [-1e4, 0.0, 0.0]]),
        rewards_LM=torch.tensor([[2.0, 1.0, 0.0]]).expand(2, 3),
        lengths_LM=torch.tensor([[1, 1, 4096]]).expand(2, 3),
        divergence=torch.tensor(1e4),
    )
    loss_L = loss_of(baseline, batch)
    loss_L.sum().backward()
    assert loss_L.dtype == torch.float32
    assert loss_L.isfinite().all()
    assert log_probs_LM.grad.isfinite().all()


# Against TRL.


def two(lists=20) -> ListBatch:
    """Winner first, in float32 as TRL has it."""
    batch = random_batch(lists, candidates=2, where=False)
    rewards_LM = torch.tensor([[1.0, 0.0]]).expand(lists, 2)
    return changed(batch, lambda name, x: rewards_LM if name == "rewards_LM" else None if x is None else x.float())


def trl_pair_loss(loss_type, winner_L, loser_L, *, beta, margin=0.0):
    """TRL's CPOTrainer on log-probabilities."""
    trainer = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    settings = SimpleNamespace(
        alpha=0.0,
        beta=beta,
        loss_type=loss_type,
        simpo_gamma=margin,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    return trainer.cpo_loss(settings, winner_L, loser_L)[0]


def test_cpo_simpo_and_ipo_equal_trl():
    batch = two()
    (winner_L, loser_L), means = batch.log_probs_LM.unbind(1), (batch.log_probs_LM / batch.lengths_LM).unbind(1)
    torch.testing.assert_close(
        cpo(batch, beta=0.3, sft_weight=0.0), trl_pair_loss("sigmoid", winner_L, loser_L, beta=0.3)
    )
    torch.testing.assert_close(simpo(batch, beta=2.0, margin=0.8), trl_pair_loss("simpo", *means, beta=2.0, margin=0.8))
    torch.testing.assert_close(ipo(batch, beta=0.3), trl_pair_loss("ipo", *log_ratios(batch).unbind(1), beta=0.3))


def test_cpo_with_the_winners_likelihood_equals_trl():
    """Of one pair, of whose winner TRL takes the mean over the tokens: `cpo_alpha` is the weight times their number."""
    trainer = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    prompt, winner, loser = [5, 6, 7], [8, 9, 10, 11], [12, 13]
    logits = torch.randn(2, len(prompt) + len(winner), 20, generator=torch.Generator().manual_seed(0))
    settings = SimpleNamespace(
        is_encoder_decoder=False,
        aux_loss_enabled=False,
        pad_token_id=0,
        loss_type="sigmoid",
        cpo_alpha=1.0,
        accelerator=SimpleNamespace(device="cpu"),
        concatenated_inputs=trainer.concatenated_inputs,
        get_batch_logps=trainer.get_batch_logps,
    )
    pair = {}
    for name, response in (("chosen", winner), ("rejected", loser)):
        ids = torch.tensor([prompt + response])
        labels = torch.tensor([[-100] * len(prompt) + response])
        pair |= {f"{name}_input_ids": ids, f"{name}_labels": labels, f"{name}_attention_mask": torch.ones_like(ids)}
    found = trainer.concatenated_forward(settings, lambda ids, **_: SimpleNamespace(logits=logits), pair)
    winner_L, loser_L, nll = found[0], found[1], found[-1]
    batch = ListBatch(
        log_probs_LM=torch.stack([winner_L, loser_L], dim=1),
        rewards_LM=torch.tensor([[1.0, 0.0]]),
        lengths_LM=torch.tensor([[len(winner), len(loser)]]),
        reference_LM=None,
    )
    expected = trl_pair_loss("sigmoid", winner_L, loser_L, beta=0.3) + 0.2 * len(winner) * nll
    torch.testing.assert_close(cpo(batch, beta=0.3, sft_weight=0.2), expected)


@pytest.fixture
def tokenizer():
    """One word a token, <pad> 0, <bos> 1, <eos> 2: what TRL's trainers want to see."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{f"w{i}": i for i in range(3, 97)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")


@pytest.fixture
def trl_arguments(tmp_path):
    return {
        "output_dir": str(tmp_path),
        "beta": 0.3,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }


def padded_inputs(rows):
    """TRL's collated tensors of (prompt, response) rows."""
    length = max(len(prompt) + len(response) for prompt, response in rows)

    def tensor(values):
        return torch.stack([pad(torch.tensor(v), (0, length - len(v))) for v in values])

    return {
        "input_ids": tensor([[*p, *y] for p, y in rows]),
        "attention_mask": tensor([[1] * (len(p) + len(y)) for p, y in rows]),
        "completion_mask": tensor([[0] * len(p) + [1] * len(y) for p, y in rows]),
    }


def our_batch(tiny_model, lists, *, mismatched=()):
    """Winner first, from packed rows of the tiny Llama of seed 0, with that of seed 1 as the reference."""
    policy, reference = (tiny_model("llama", SEGMENTS, seed=seed) for seed in (0, 1))

    @torch.no_grad()
    def log_probs(model, items):
        return torch.stack([packed_log_probs(model, pack_list(*one)).log_probs_M for one in items])

    divergence = None
    if mismatched:
        divergence = (log_probs(policy, mismatched) - log_probs(reference, mismatched)).mean()
    return ListBatch(
        log_probs_LM=log_probs(policy, lists),
        reference_LM=log_probs(reference, lists),
        rewards_LM=torch.tensor([[1.0, 0.0]]).expand(len(lists), 2),
        lengths_LM=torch.tensor([[len(response) for response in responses] for _, responses in lists]),
        divergence=divergence,
    )


def test_ipo_on_log_ratios_a_token_equals_trls_dpo_trainer(tiny_model, random_list, tokenizer, trl_arguments):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    lists = [random_list(2, seed=seed) for seed in range(3)]
    trainer = trl.DPOTrainer(
        model=tiny_model("llama", "eager", seed=0),
        ref_model=tiny_model("llama", "eager", seed=1),
        args=trl.DPOConfig(**trl_arguments, loss_type="ipo"),
        train_dataset=Dataset.from_list([{"prompt": "w3 w4", "chosen": " w5", "rejected": " w6"}]),
        processing_class=tokenizer,
    )
    inputs = padded_inputs([(p, responses[side]) for side in (0, 1) for p, responses in lists])
    batch = our_batch(tiny_model, lists)
    a_token = dataclasses.replace(
        batch,
        log_probs_LM=batch.log_probs_LM / batch.lengths_LM,
        reference_LM=batch.reference_LM / batch.lengths_LM,
    )
    theirs = trainer.compute_loss(trainer.model, inputs).detach()
    torch.testing.assert_close(ipo(a_token, beta=0.3).mean(), theirs, rtol=1e-5, atol=1e-5)


def test_kto_equals_trls_kto_trainer(tiny_model, random_list, tokenizer, trl_arguments):
    """Two responses a prompt, and a third of another prompt for the divergence."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    lists = [random_list(2, seed=seed) for seed in range(3)]
    rows = [(p, responses[side]) for side in (0, 1) for p, responses in lists]
    strangers = [(lists[n][0], lists[(n + 1) % 3][1][side]) for side in (0, 1) for n in range(3)]
    trainer = trl.KTOTrainer(
        model=tiny_model("llama", "eager", seed=0),
        ref_model=tiny_model("llama", "eager", seed=1),
        args=trl.KTOConfig(
            **trl_arguments,
            per_device_train_batch_size=2,
            desirable_weight=1.5,
            undesirable_weight=0.5,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": "w3 w4", "completion": f" w{n}", "label": bool(n % 2)} for n in (5, 6)]
        ),
        processing_class=tokenizer,
    )
    inputs = padded_inputs(rows) | {f"KL_{name}": tensor for name, tensor in padded_inputs(strangers).items()}
    theirs = trainer.compute_loss(trainer.model, inputs | {"label": torch.tensor([True] * 3 + [False] * 3)}).detach()
    batch = our_batch(tiny_model, lists, mismatched=[(prompt, [response]) for prompt, response in strangers])
    ours = kto(batch, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5).mean()
    assert float(batch.divergence) > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
