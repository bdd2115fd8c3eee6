"""Answers of a dataset through Ray Train and DeepSpeed, against transformers' own loss and its own forward passes."""

import json
import math

import pytest
import torch

from actors.given_evaluation import HeldoutLists, heldout_folder, result_file
from actors.rank_home import RankHome
from larpo.attention import attention_implementation
from larpo.home import Home
from larpo.list_evaluation import ListResult, pair_accuracy
from larpo.list_step import PackedList, list_log_probs, rows_of, stored_references
from larpo.log_probs import packed_log_probs, plain_log_probs
from larpo.policy import load_policy
from larpo.records import write_part

RATE, CLOSE = 1e-2, 1e-4
LENGTHS = ((7,), (2,), (12,), (3,), (5,), (1,), (10,), (6,))


def heldout_of(config, run_dir) -> HeldoutLists:
    """As the one rank of a run has them."""
    return HeldoutLists(config, RankHome(Home(run_dir), 0, lambda value: [value]), 0, 1)


@pytest.fixture
def given(make_list):
    """`given(number, lengths)`: a list of a dataset, with these response lengths in tokens."""

    def make(number: int, lengths):
        item = make_list(number, lengths)
        of_dataset = {"origin": "given", "log_probs": (), "versions": ()}
        return item.replace(candidates=tuple(c.replace(**of_dataset) for c in item.candidates))

    return make


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def tuned(policy, batches):
    """The policy after steps of AdamW on transformers' loss, and the loss of each step."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1)
    losses = []
    for batch in batches:
        tokens = sum(len(item.candidates[0].token_ids) for item in batch)
        loss = sum(cross_entropy(policy, item) for item in batch) / tokens
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def cross_entropy(policy, item):
    """The sum over the answer's tokens: transformers' loss is their mean."""
    prompt, answer = list(item.prompt_token_ids), list(item.candidates[0].token_ids)
    labels = torch.tensor([[-100] * len(prompt) + answer])
    return policy(input_ids=torch.tensor([prompt + answer]), labels=labels).loss * len(answer)


@pytest.mark.parametrize(
    ("ranks", "stage"),
    [(1, 2), *(pytest.param(ranks, stage, marks=pytest.mark.slow) for ranks, stage in ((2, 0), (2, 3)))],
)
def test_fine_tuning_takes_the_steps_of_transformers_loss(
    train, trainer_config, given, tiny_policy, tmp_path, ranks, stage
):
    """Two ranks hold three lists and two, of unequal tokens; held-out lists are judged before and after."""
    lists = [given(number, lengths) for number, lengths in enumerate(LENGTHS)]
    heldout = [given(20 + number, lengths) for number, lengths in enumerate(((4,), (9,), (2,)))]
    write_part(heldout_folder(tmp_path), heldout, 0, 0)
    policy = load_policy(tiny_policy, dtype="float32", attn_implementation="eager")
    start, before = weights(policy), heldout_loss(policy, heldout)
    losses = tuned(policy, [lists[:5], lists[5:]])

    config = trainer_config(training={"workers": ranks, "zero_stage": stage}, objective={"name": "sft"})
    trained = train(config, tmp_path, [[lists[:5], lists[5:]]])
    assert trained.metric("loss") == pytest.approx(losses, rel=1e-4)
    assert trained.metric("lists") == [5, 3]
    assert not trained.references
    moved = max(float((weights(policy)[name] - start[name]).abs().max()) for name in start)
    apart = max(float((trained.policy(1)[name] - value).abs().max()) for name, value in weights(policy).items())
    assert apart / moved < CLOSE
    for iteration, loss in ((0, before), (1, heldout_loss(policy, heldout))):
        result = ListResult.from_json(result_file(tmp_path, iteration).read_text())
        assert result.list_ids == tuple(item.id for item in heldout)
        assert result.weights_P == (4.0, 9.0, 2.0)
        assert result.losses_P == pytest.approx(loss, rel=1e-3)
        assert result.measures == ("loss",)


def heldout_loss(policy, lists) -> list[float]:
    """Of each list, the mean over its tokens."""
    with torch.no_grad():
        return [float(cross_entropy(policy, item)) / len(item.candidates[0].token_ids) for item in lists]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), (2, 0), (2, 3)])
def test_held_out_lists_are_judged_before_and_after_training(
    train, trainer_config, given, tiny_policy, tmp_path, ranks, stage
):
    lists = [given(number, (5, 3, 4)) for number in range(4)]
    heldout = [given(20 + number, (4, 2, 6)) for number in range(3)]
    write_part(heldout_folder(tmp_path), heldout, 0, 0)
    config = trainer_config(training={"workers": ranks, "zero_stage": stage, "lists_per_step": 4, "row_tokens": 16})
    trained = train(config, tmp_path, [[lists]])
    base, after = (ListResult.from_json(result_file(tmp_path, n).read_text()) for n in (0, 1))
    assert base.score_accuracy_P == (0.5, 0.5, 0.5)  # the policy is the reference: every score is zero
    policy, reference = models(tiny_policy)
    policy.load_state_dict(trained.policy(1), strict=False)
    check_judged(after, heldout, policy, reference)


def models(folder):
    """Twice the same."""
    return [load_policy(folder, dtype="float32", attn_implementation="eager") for _ in range(2)]


def check_judged(result, heldout, policy, reference) -> None:
    """Lambdarank's loss at beta = 1, and accuracies, from a forward pass of each sequence."""
    for number, item in enumerate(heldout):
        now, then = log_probs(policy, item), log_probs(reference, item)
        rewards = [candidate.reward for candidate in item.candidates]
        scores = [a - b for a, b in zip(now, then, strict=True)]
        assert result.log_prob_accuracy_P[number] == pair_accuracy(now, rewards)
        assert result.score_accuracy_P[number] == pair_accuracy(scores, rewards)
        pairs = [(scores[i], scores[j]) for i in range(3) for j in range(i + 1, 3)]
        expected = sum(math.log1p(math.exp(low - high)) for high, low in pairs)
        assert result.losses_P[number] == pytest.approx(expected, rel=1e-2, abs=1e-3)


def log_probs(model, item) -> list[float]:
    with torch.no_grad():
        return [float(plain_log_probs(model, item.prompt_token_ids, c.token_ids).sum()) for c in item.candidates]


class PlainEngine:
    """What a rank's engine can do, without DeepSpeed: one rank that scores packed rows."""

    device = torch.device("cpu")

    def __init__(self, policy, reference):
        self.policy, self.reference, self.stored = policy, reference, []

    def maximum(self, numbers):
        return numbers

    def divergence(self, lists):
        return None

    def barrier(self):
        pass

    def log_probs(self, lists, name):
        return [self._one(item, name) for item in lists]

    def _one(self, item, name):
        rows = rows_of(item, 16)
        self.stored.append(None not in stored_references(item.candidates, name))
        sums = [list_log_probs(lambda row, m=m: packed_log_probs(m, row), rows) for m in (self.policy, self.reference)]
        rewards_M = torch.tensor([candidate.reward for candidate in item.candidates])
        return PackedList(item, rows, rewards_M, sums[1]), sums[0]


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_held_out_lists_are_judged_as_a_forward_pass_of_each_sequence(
    one_process, trainer_config, given, tiny_policy, tmp_path
):
    heldout = [given(20 + number, (4, 2, 6)) for number in range(3)]
    write_part(heldout_folder(tmp_path), heldout, 0, 0)
    policy, reference = models(tiny_policy)
    packed, packed_reference = (
        load_policy(tiny_policy, dtype="float32", attn_implementation=attention_implementation(policy.config, "cpu"))
        for _ in range(2)
    )
    lists, engine = (
        heldout_of(trainer_config(), tmp_path),
        PlainEngine(packed, packed_reference),
    )
    assert lists.evaluate(engine, 0, "tiny")
    base = ListResult.from_json(result_file(tmp_path, 0).read_text())
    assert (base.label, base.score_accuracy_P) == ("base policy", (0.5, 0.5, 0.5))
    assert base.losses_P == pytest.approx((3 * math.log(2),) * 3)
    for model in (policy, packed):
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    assert lists.evaluate(engine, 1, "tiny")
    check_judged(ListResult.from_json(result_file(tmp_path, 1).read_text()), heldout, policy, reference)
    assert engine.stored == [False] * 3 + [True] * 3  # the reference is computed once


def test_a_result_that_is_there_is_not_made_again(tmp_path, trainer_config, given):
    write_part(heldout_folder(tmp_path), [given(0, (3, 2))], 0, 0)
    file = result_file(tmp_path, 0)
    file.parent.mkdir()
    file.write_text(json.dumps({}))
    lists = heldout_of(trainer_config(), tmp_path)
    assert not lists.evaluate(PlainEngine(None, None), 0, "tiny")
    assert file.read_text() == "{}"
    result_file(tmp_path, 1).write_text("{}")  # of a policy that is rolled back
    lists.forget_after(0)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
