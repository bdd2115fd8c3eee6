"""Pairwise rankers: tiny DeBERTa models in PairRM's published form, and a classifier, against plain forward passes."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2Model,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from larpo.errors import DataError
from larpo.pairwise_reward import PairwiseReward, template_row
from larpo.reward_config import Ranker
from larpo.reward_config import Reward as RewardSection
from larpo.rewards import check_reward, make_reward_model
from larpo.types import Message, Prompt

PREFIXES = ["<|source|>", "<|candidate1|>", "<|candidate2|>"]
PROMPT = Prompt("p", (Message("user", "Go"),))
TURNS = Prompt("t", (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Go")))
TEXTS = ["d", "bbb", "a longer one, of many letters", "", "c<|candidate2|>c"]


def save_pairrm(folder, seed=0, size=32):
    """A random PairRM of one token a byte; its weights carry the names that llm-blender/PairRM-hf has."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *PREFIXES]
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate([*special, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = DebertaV2Config(
        vocab_size=len(special) + len(alphabet), hidden_size=size, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=128, relative_attention=True, position_buckets=32,
        pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False,
        type_vocab_size=0, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    plain = json.loads(config.to_json_string()) | {
        "architectures": ["DebertaV2PairRM"], "n_tasks": 1, "drop_out": 0.05,
        "source_prefix_id": 4, "cand1_prefix_id": 5, "cand2_prefix_id": 6, "cand_prefix_id": 5, "sep_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(plain))
    torch.manual_seed(seed)
    weights = {f"pretrained_model.{name}": tensor for name, tensor in DebertaV2Model(config).state_dict().items()}
    for layer, (rows, columns) in {1: (size, 2 * size), 4: (1, size)}.items():
        weights[f"head_layer.{layer}.weight"] = torch.randn(rows, columns) * 0.3
        weights[f"head_layer.{layer}.bias"] = torch.randn(rows) * 0.3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def pairrm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranker")
    save_pairrm(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, threads that wait for one another take longer than the work
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain_logit(pairrm):
    """`plain_logit(source, first, second)`: by transformers' own encoder, and the head in torch."""
    weights = load_file(pairrm / "model.safetensors")
    encoder = DebertaV2Model(DebertaV2Config.from_pretrained(pairrm)).eval()
    marked = {name: tensor for name, tensor in weights.items() if name.startswith("pretrained_model.")}
    encoder.load_state_dict({name.removeprefix("pretrained_model."): tensor for name, tensor in marked.items()})
    tokenizer = AutoTokenizer.from_pretrained(pairrm)
    one, four = ((weights[f"head_layer.{n}.weight"], weights[f"head_layer.{n}.bias"]) for n in (1, 4))

    @torch.no_grad()
    def logit(source, first, second):
        pieces = [tokenizer.encode(p + text) for p, text in zip(PREFIXES, (source, first, second), strict=True)]
        row = torch.tensor([[*pieces[0], *pieces[1], *pieces[2]]])
        states = encoder(row, output_hidden_states=True).hidden_states[-1][0]
        starts = [1, 1 + len(pieces[0]), 1 + len(pieces[0]) + len(pieces[1])]  # each prefix follows its [CLS]
        hidden = [torch.cat([states[starts[0]], states[start]]) for start in starts[1:]]
        linear = torch.nn.functional.linear
        left, right = (linear(torch.tanh(linear(h, *one)), *four) for h in hidden)
        return float(left - right)

    return logit


def expected_rewards(logit, source, texts):
    """Mean over the list of the margins, by hand."""
    harmless = [text.replace("<|candidate2|>", "< candidate2 >") for text in texts]
    margin = [[(logit(source, a, b) - logit(source, b, a)) / 2 for b in harmless] for a in harmless]
    return [sum(row) / len(texts) for row in margin]


def values(model, *requests):
    return [[reward.value for reward in row] for row in model.score_lists(requests)]


@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_pairrm_compares_as_plain_transformers_does(pairrm, plain_logit, batch_tokens):
    model = PairwiseReward(Ranker(model=str(pairrm), batch_tokens=batch_tokens))
    found = values(model, (PROMPT, TEXTS), (TURNS, TEXTS[:2]), (PROMPT, ["alone"]), (PROMPT, []))
    assert found[0] == pytest.approx(expected_rewards(plain_logit, "Go", TEXTS), abs=1e-5)
    turns = "user: Hi\nassistant: Yes?\nuser: Go\nassistant:"
    assert found[1] == pytest.approx(expected_rewards(plain_logit, turns, TEXTS[:2]), abs=1e-5)
    assert found[2:] == [[0.0], []]
    assert max(map(abs, found[0])) > 0.01


def test_the_same_whatever_the_order_and_opposite_for_a_pair(pairrm):
    model = PairwiseReward(Ranker(model=str(pairrm)))
    ((one, two), (other, another)) = values(model, (PROMPT, TEXTS[:2]), (PROMPT, TEXTS[1::-1]))
    assert (one, two) == pytest.approx((another, other), abs=1e-6)
    assert one == pytest.approx(-two, abs=1e-6)
    (twins,) = values(model, (PROMPT, ["same", "same"]))
    assert twins == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(("comparisons", "passes"), [(None, 8 * 7), (2, 8 * 2), (3, 8 * 3), (7, 8 * 7)])
def test_comparisons_cost_what_is_said(pairrm, comparisons, passes):
    model = PairwiseReward(Ranker(model=str(pairrm), comparisons=comparisons, batch_tokens=64))
    rows = []
    forward = model._model.forward
    model._model.forward = lambda inputs: (rows.extend(inputs["input_ids"].tolist()), forward(inputs))[1]
    model.score(PROMPT, list("abcdefgh"))
    assert len(rows) == passes


def test_what_is_too_long_is_cut_as_pairrm_does(pairrm, plain_logit):
    model = PairwiseReward(Ranker(model=str(pairrm), max_tokens=48))
    prompt = Prompt("l", (Message("user", "x" * 99),))
    source, limit = int(1224 / 2048 * 48), (48 - int(1224 / 2048 * 48)) // 2
    texts = ["a" * 99, "b" * 99]
    cut = [text[: limit - 3] for text in texts]
    found = values(model, (prompt, texts))[0]
    exact = expected_rewards(plain_logit, "x" * (source - 3), cut)
    assert found == pytest.approx(exact, abs=1e-5)


def test_a_logit_that_is_not_finite_costs_its_list(pairrm, monkeypatch):
    model = PairwiseReward(Ranker(model=str(pairrm), batch_tokens=1), failed_reward=-7.0)
    logits = model._logits

    def strange(inputs):
        return logits(inputs) * (torch.nan if inputs["input_ids"].shape[1] > 30 else 1.0)

    monkeypatch.setattr(model, "_logits", strange)
    broken, fine = model.score_lists([(PROMPT, ["a", "b" * 40]), (PROMPT, ["a", "b"])])
    assert {reward.value for reward in broken} == {-7.0}
    assert "not finite (nan)" in broken[0].failure
    assert not any(reward.failure for reward in fine)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A PairRM that has learned, from pairs alone, how much better a later letter is."""
    folder = tmp_path_factory.mktemp("trained")
    save_pairrm(folder)
    model = PairwiseReward(Ranker(model=str(folder)))
    network, draw, letters = model._model, random.Random(0), "abcdefghij"
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(120):
        pairs = [draw.sample(letters, 2) for _ in range(48)]
        rows = [model._row(PROMPT, *pair).ids for pair in pairs]
        better = torch.sigmoid(torch.tensor([0.7 * (ord(first) - ord(second)) for first, second in pairs]))
        ids = torch.tensor(rows)
        logits = network({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, better)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("comparisons", [None, 4])
def test_a_ranker_recovers_a_known_order(trained, comparisons):
    model = PairwiseReward(Ranker(model=str(trained), comparisons=comparisons))
    texts = list("fajcgbiedh")
    (rewards,) = values(model, (PROMPT, texts))
    assert "".join(text for _, text in sorted(zip(rewards, texts, strict=True))) == "abcdefghij"
    assert sum(rewards) == pytest.approx(0.0, abs=1e-9)


def test_a_classifier_reads_prompt_and_both_responses(scalar_head):
    section = Ranker(model=str(scalar_head), template="Q {prompt}|{first}|{second}?")
    network = LlamaForSequenceClassification.from_pretrained(scalar_head).eval()
    tokenizer = AutoTokenizer.from_pretrained(scalar_head)

    @torch.no_grad()
    def logit(source, first, second):
        return float(network(**tokenizer(f"Q {source}|{first}|{second}?", return_tensors="pt")).logits[0, 0])

    texts = ["four", "{first}", "a longer one"]
    (found,) = values(PairwiseReward(section), (PROMPT, texts))
    assert found == pytest.approx(expected_rewards(logit, "Go", texts), abs=1e-5)


def test_a_text_for_a_classifier_is_cut_evenly(scalar_head):
    tokenizer = AutoTokenizer.from_pretrained(scalar_head)
    ids = template_row(tokenizer, "{prompt}|{first}|{second}", "x" * 50, "y" * 50, "zz", 32).ids
    assert tokenizer.decode(ids) == f"{'x' * 10}|{'y' * 10}|zz"


def test_a_row_is_no_longer_than_the_classifier_has_positions(scalar_head):
    """Though the recipe allows more."""
    positions = json.loads((scalar_head / "config.json").read_text())["max_position_embeddings"]
    model = PairwiseReward(Ranker(model=str(scalar_head), max_tokens=100 * positions))
    assert positions // 2 < len(model._row(PROMPT, "x" * positions, "y" * positions).ids) <= positions


def test_a_recipe_names_it_and_the_fingerprint_is_of_weights_and_knobs(pairrm, scalar_head):
    section = RewardSection(kind="pairwise", ranker=Ranker(model=str(pairrm)))
    check_reward(section)
    model = make_reward_model(section)
    assert isinstance(model, PairwiseReward)
    assert model.joint
    knobs = [{}, {"comparisons": 3}, {"max_tokens": 99}, {"dtype": "bfloat16"}, {"model": str(scalar_head)}]
    prints = [PairwiseReward(Ranker(**{"model": str(pairrm)} | knob)).fingerprint for knob in knobs]
    assert len(set(prints)) == len(knobs)
    assert prints[0] == model.fingerprint == PairwiseReward(Ranker(model=str(pairrm), batch_tokens=9)).fingerprint


def test_what_is_no_ranker_is_refused(tiny_policy, pairrm, tmp_path):
    def refusal(folder):
        with pytest.raises(DataError) as caught:
            PairwiseReward(Ranker(model=str(folder)))
        return str(caught.value)

    assert "reward.ranker.model" in refusal(tiny_policy)
    save_pairrm(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({n.replace("head_layer.4", "head.4"): w for n, w in weights.items()}, tmp_path / "model.safetensors")
    assert "lacking are ['head_layer.4" in refusal(tmp_path)
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(tmp_path)
    assert "has not all of <|source|>" in refusal(tmp_path)
