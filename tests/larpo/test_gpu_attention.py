"""Which kernels a model can have on a GPU, told without one."""

from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, DebertaV2Config, Gemma2Config, LlamaConfig

from larpo.gpu_attention import flex_options, plain_attention


def test_flash_attention_is_asked_for_where_it_is_installed_and_the_model_has_it(monkeypatch):
    for there in (False, True):
        monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda found=there: found)
        expected = "flash_attention_2" if there else None
        assert plain_attention(LlamaConfig(), "cuda", "bfloat16") == expected
        assert plain_attention(BertConfig(), "cuda", "bfloat16") == expected
        assert plain_attention(DebertaV2Config(), "cuda", "bfloat16") is None
        assert plain_attention(LlamaConfig(), "cuda", "float32") is None
        assert plain_attention(LlamaConfig(), "cpu", "bfloat16") is None


@pytest.mark.parametrize(
    ("config", "bytes_of_sram", "smaller"),
    [
        (Gemma2Config(head_dim=256), 101_376, True),  # L4, L40S, A10G
        (Gemma2Config(head_dim=256), 166_912, False),  # A100
        (LlamaConfig(hidden_size=4096, num_attention_heads=32), 101_376, False),
    ],
)
def test_wide_heads_get_smaller_blocks_where_the_usual_do_not_fit(monkeypatch, config, bytes_of_sram, smaller):
    gpu = SimpleNamespace(shared_memory_per_block_optin=bytes_of_sram)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    options = flex_options(config, torch.device("cuda"))
    assert bool(options) == smaller
    assert flex_options(config, torch.device("cpu")) == {}
