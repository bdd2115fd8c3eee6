"""Estimates of a reward actor's memory, against the parameters that torch counts."""

import pytest
from transformers import AutoTokenizer, LlamaForSequenceClassification

from actors.sizes import ENGINE, GIB, PROCESS, RUNTIME, reward_bytes
from larpo.errors import DataError
from larpo.reward_config import Reward


@pytest.fixture(scope="module")
def head(tiny_policy, tmp_path_factory):
    """A classifier's folder, and how many parameters it has."""
    folder = tmp_path_factory.mktemp("reward") / "head"
    model = LlamaForSequenceClassification.from_pretrained(tiny_policy, num_labels=1)
    model.config.pad_token_id = 0
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(folder)
    return str(folder), sum(parameter.numel() for parameter in model.parameters())


def test_a_verifier_is_a_process_without_a_model():
    assert reward_bytes(Reward()) == PROCESS


def test_a_model_counts_by_its_parameters_and_their_type(head):
    folder, parameters = head
    classifier = {"kind": "sequence_classification", "classifier": {"model": folder, "dtype": "float32"}}
    assert reward_bytes(Reward.model_validate(classifier)) == pytest.approx(PROCESS + 4 * parameters + RUNTIME, abs=1)
    ranker = {"kind": "pairwise", "ranker": {"model": folder, "dtype": "bfloat16"}}
    assert reward_bytes(Reward.model_validate(ranker)) == pytest.approx(PROCESS + 2 * parameters + RUNTIME, abs=1)
    engine = {"kind": "vllm", "pooling": {"model": folder, "cpu_kv_cache_gib": 2}}
    assert reward_bytes(Reward.model_validate(engine)) == pytest.approx(
        PROCESS + 2 * parameters + 2 * GIB + ENGINE, abs=1
    )
    weighted = {"kind": "weighted", "parts": [{"kind": "verifier"}, classifier, {**ranker, "weight": 0.5}]}
    assert reward_bytes(Reward.model_validate(weighted)) == pytest.approx(PROCESS + 6 * parameters + 2 * RUNTIME, abs=1)


def test_a_model_that_is_not_there_is_named(tmp_path):
    section = {"kind": "vllm", "pooling": {"model": str(tmp_path / "none")}}
    with pytest.raises(DataError, match=r"reward\.pooling\.model = '.*none'"):
        reward_bytes(Reward.model_validate(section))
