"""Reward models with a scalar head, against transformers' own forward pass of one conversation at a time."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    LlamaForSequenceClassification,
)

from larpo.chat import plain_text
from larpo.classifier_reward import ClassifierReward, classifier_folder
from larpo.errors import DataError
from larpo.reward_config import Classifier
from larpo.reward_config import Reward as RewardSection
from larpo.rewards import check_reward, make_reward_model
from larpo.types import Message, Prompt

TURNS = (("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Go"))
PROMPTS = [
    Prompt("short", (Message("user", "Two and two?"),)),
    Prompt("turns", tuple(Message(*turn) for turn in TURNS)),
]
RESPONSES = ["Four.", "", "It is four, of course: two and two make four. " * 3, "4", "five, or so"]
REQUESTS = [(PROMPTS[0], RESPONSES), (PROMPTS[1], RESPONSES[:2])]


@pytest.fixture(scope="module")
def make_llama(tiny_policy, tmp_path_factory):
    """`make_llama(pad)`: the tiny policy's body with a random head of one output, and its byte tokenizer."""

    def make(pad: int | None):
        folder = tmp_path_factory.mktemp("reward") / "llama"
        torch.manual_seed(0)
        model = LlamaForSequenceClassification.from_pretrained(tiny_policy, num_labels=1, dtype=torch.float32)
        torch.nn.init.normal_(model.score.weight, std=0.5)
        model.config.pad_token_id = pad
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def llama(make_llama, tiny_policy):
    return make_llama(AutoTokenizer.from_pretrained(tiny_policy).pad_token_id)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A random cross-encoder: no chat template, and token types that tell prompt from response."""
    folder = tmp_path_factory.mktemp("reward") / "bert"
    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(words), num_labels=1, initializer_range=0.3, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def plain_scores(folder, requests):
    """One conversation at a time, by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    for prompt, responses in requests:
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        for response in responses:
            if tokenizer.chat_template:
                answered = [*turns, {"role": "assistant", "content": response}]
                inputs = tokenizer.apply_chat_template(answered, return_tensors="pt", return_dict=True)
            else:
                inputs = tokenizer(plain_text(prompt.messages), response, return_tensors="pt")
                assert not response or set(inputs["token_type_ids"].flatten().tolist()) == {0, 1}
            scores.append(float(model(**inputs).logits[0, 0]))
    return scores


def rewards(folder, requests=REQUESTS, **knobs):
    model = ClassifierReward(Classifier(model=str(folder), dtype="float32", **knobs), failed_reward=-7.0)
    return [reward for row in model.score_lists(requests) for reward in row]


@pytest.mark.parametrize("batch_tokens", [1, 300, 16384])
def test_a_decoder_scores_as_plain_transformers_does(llama, batch_tokens):
    found = rewards(llama, batch_tokens=batch_tokens)
    assert [reward.value for reward in found] == pytest.approx(plain_scores(llama, REQUESTS), abs=1e-5)
    assert len({round(reward.value, 4) for reward in found}) == len(found)


def test_without_a_padding_token_too(make_llama):
    folder = make_llama(None)
    found = [reward.value for reward in rewards(folder)]
    assert found == pytest.approx(plain_scores(folder, REQUESTS), abs=1e-5)


def test_a_cross_encoder_scores_pairs_as_plain_transformers_does(bert):
    assert [reward.value for reward in rewards(bert)] == pytest.approx(plain_scores(bert, REQUESTS), abs=1e-5)


def test_a_conversation_over_the_limit_costs_one_reward(llama):
    found = rewards(llama, max_tokens=100)
    failed = [bool(reward.failure) for reward in found]
    assert failed == [False, False, True, False, False, False, False]
    assert found[2].value == -7.0
    assert "over the limit of 100 (reward.classifier.max_tokens)" in found[2].failure


def test_a_score_that_is_not_finite_costs_one_reward(llama, monkeypatch):
    model = ClassifierReward(Classifier(model=str(llama), dtype="float32"), failed_reward=-7.0)
    scores = model._scores
    monkeypatch.setattr(model, "_scores", lambda inputs: torch.cat([torch.tensor([float("nan")]), scores(inputs)[1:]]))
    found = [reward for row in model.score_lists(REQUESTS) for reward in row]
    (bad,) = [reward for reward in found if reward.failure]
    assert (bad.value, bad.failure) == (-7.0, "not finite (nan)")


def test_the_fingerprint_is_that_of_weights_and_knobs(llama, bert):
    def fingerprint(folder, **knobs):
        return ClassifierReward(Classifier(model=str(folder), **knobs)).fingerprint

    same = fingerprint(llama)
    assert fingerprint(llama, batch_tokens=7) == same
    assert len({same, fingerprint(bert), fingerprint(llama, dtype="float32"), fingerprint(llama, max_tokens=9)}) == 4


def test_the_fingerprint_is_that_of_the_chat_template_too(make_llama):
    folder = make_llama(0)
    before = ClassifierReward(Classifier(model=str(folder))).fingerprint
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    assert ClassifierReward(Classifier(model=str(folder))).fingerprint != before


def test_a_recipe_names_it(llama):
    section = RewardSection(kind="sequence_classification", classifier=Classifier(model=str(llama)))
    check_reward(section)
    assert isinstance(make_reward_model(section), ClassifierReward)


def test_what_is_no_reward_model_is_refused(tiny_policy, tmp_path):
    def refusal(model, error=DataError):
        with pytest.raises(error) as caught:
            classifier_folder(Classifier(model=str(model)))
        return str(caught.value)

    assert "give a ForSequenceClassification model of one output" in refusal(tiny_policy)
    assert "reward.classifier.model = './nowhere': there is no such folder" in refusal("./nowhere")
    three = tmp_path / "three"
    LlamaForSequenceClassification.from_pretrained(tiny_policy, num_labels=3).save_pretrained(three)
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(three)
    assert "with 3 outputs" in refusal(three)
