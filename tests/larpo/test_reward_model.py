"""Any base becomes a classifier of one output that the reward actor loads."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForSequenceClassification

from larpo.classifier_reward import ClassifierReward
from larpo.config import Lora
from larpo.conversations import encode_conversation
from larpo.errors import ConfigError, DataError
from larpo.reward_config import Classifier
from larpo.reward_model import check_adapters, find_base, load_trainable, write_untrained
from larpo.reward_training_config import Base
from larpo.row_batches import padded_batch
from larpo.types import Message, Prompt

PROMPT = Prompt("p", (Message("user", "Two and two?"),))


def untrained(base, folder, *, seed=0, **knobs):
    section = Base(model=str(base), dtype="float32", **knobs)
    write_untrained(find_base(section), folder, section, seed=seed)
    return section, load_trainable(folder, section)


def test_a_language_model_keeps_its_body_and_gets_a_head_by_the_seed(tiny_policy, tmp_path):
    _, model = untrained(tiny_policy, tmp_path / "a", seed=3)
    untrained(tiny_policy, tmp_path / "b", seed=3)
    untrained(tiny_policy, tmp_path / "c", seed=4)
    heads = [load_file(tmp_path / name / "model.safetensors")["score.weight"] for name in "abc"]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    body = load_file(tiny_policy / "model.safetensors")
    found = dict(model.named_parameters())
    assert all(torch.equal(found[name], tensor) for name, tensor in body.items() if name != "lm_head.weight")
    assert (model.config.num_labels, model.config.architectures) == (1, ["LlamaForSequenceClassification"])


def test_the_reward_actor_scores_the_folder_as_the_module_does(tiny_policy, tmp_path):
    _, model = untrained(tiny_policy, tmp_path / "model")
    reward = ClassifierReward(Classifier(model=str(tmp_path / "model"), dtype="float32"))
    texts = ["Four.", "It is four, of course.", ""]
    conversations = [encode_conversation(reward._tokenizer, PROMPT, text) for text in texts]
    inputs = padded_batch(conversations, pad=model.config.pad_token_id, types=False)
    found = [item.value for item in reward.score(PROMPT, texts)]
    assert found == pytest.approx(model(**inputs).logits[:, 0].tolist(), abs=1e-6)


def test_a_tokenizer_without_padding_pads_with_its_end(tiny_policy, tmp_path):
    base = shutil.copytree(tiny_policy, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(base)
    _, model = untrained(base, tmp_path / "model")
    assert model.config.pad_token_id == tokenizer.eos_token_id
    reward = ClassifierReward(Classifier(model=str(tmp_path / "model"), dtype="float32"))
    together = [item.value for item in reward.score(PROMPT, ["Four.", "It is four, of course."])]
    alone = [reward.score(PROMPT, [text])[0].value for text in ("Four.", "It is four, of course.")]
    assert together == pytest.approx(alone, abs=1e-6)


def test_a_reward_model_keeps_its_head_and_others_are_refused(tiny_policy, tmp_path):
    one, three = tmp_path / "one", tmp_path / "three"
    model = LlamaForSequenceClassification.from_pretrained(tiny_policy, num_labels=1)
    model.save_pretrained(one)
    LlamaForSequenceClassification.from_pretrained(tiny_policy, num_labels=3).save_pretrained(three)
    for folder in (one, three):
        AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(folder)
    _, again = untrained(one, tmp_path / "again", seed=9)
    assert torch.equal(again.score.weight, model.score.weight)
    with pytest.raises(DataError, match="classifies into 3"):
        untrained(three, tmp_path / "no")


def test_minilm_trains_its_head_and_pooler_alone(tmp_path):
    _, model = untrained("minilm", tmp_path / "minilm", trained="head")
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert free == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    reward = ClassifierReward(Classifier(model=str(tmp_path / "minilm")))
    long = reward.score(PROMPT, ["word " * 600])[0]
    assert "over the limit of 512 (what the model reaches)" in long.failure


def test_adapters_leave_the_head_to_be_trained_in_full(tiny_policy, tmp_path):
    _, model = untrained(tiny_policy, tmp_path / "model", lora=Lora(rank=2))
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "score.weight" in free
    assert {name.partition("lora_")[1] for name in free - {"score.weight"}} == {"lora_"}
    too_high = Base(model=str(tiny_policy), lora=Lora(rank=500))
    with pytest.raises(ConfigError, match=r"base\.lora\.rank = 500"):
        check_adapters(tiny_policy, too_high)
    check_adapters(tiny_policy, Base(model=str(tiny_policy), lora=Lora(rank=2)))
