"""What a run with LoRA plans and leaves, without starting an actor."""

import json

import pytest
import torch

from actors.plan import describe
from actors.preparation import prepare
from actors.published import PublishedFolder, encode_bucket
from actors.results import write_model
from actors.sizes import GIB, estimate
from actors.trainer import policy_folder
from larpo.config import Config
from larpo.lora import adapter_files, merged_tensors, with_lora
from larpo.policy import load_policy

WIDTHS = {"q_proj": (128, 128), "k_proj": (128, 64), "v_proj": (128, 64), "o_proj": (128, 128)}
WIDTHS |= {"gate_proj": (128, 192), "up_proj": (128, 192), "down_proj": (192, 128)}
ADAPTERS = 2 * sum(4 * (inputs + outputs) for inputs, outputs in WIDTHS.values())  # two layers of rank 4


@pytest.fixture
def prepared(tiny_policy, tmp_path):
    """`prepared(lora)`: a run on the tiny policy that could start."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": f"Say {n}."}) + "\n" for n in range(8)))
    sections = {
        "policy": {"model": str(tiny_policy), "dtype": "float32"},
        "prompts": {"source": str(tmp_path / "prompts.jsonl"), "columns": {"prompt": "text"}, "max_prompt_tokens": 64},
        "sampling": {"max_new_tokens": 16},
        "reward": {"name": "larpo.verifiers:last_number"},
        "training": {"prompts_per_iteration": 4, "lists_per_step": 2, "iterations": 1, "zero_stage": 0},
        "samplers": {"max_model_len": 128},
        "evaluation": {"each_iteration": False},
    }

    def make(lora):
        sections["policy"] |= {"lora": lora}
        return prepare(Config.model_validate(sections), tmp_path / "run", resumed=False)

    return make


def test_the_plan_counts_what_is_trained(prepared):
    """float32 without ZeRO: a reference costs no second model, a checkpoint no weights of the base."""
    full, lora = estimate(prepared({})), estimate(prepared({"rank": 4}))
    size = 4 * full.parameters
    assert (full.trained, lora.trained) == (full.parameters, ADAPTERS)
    assert lora.parameters == full.parameters
    assert full.checkpoint == 12 * full.parameters
    assert lora.checkpoint == 12 * ADAPTERS
    logits = full.trainer - (2 * size + 2 * size + 2 * 8 * full.parameters) - GIB
    assert lora.trainer == size + 2 * 4 * ADAPTERS + 2 * 4 * ADAPTERS + 2 * 8 * ADAPTERS + logits + GIB
    assert f"LoRA          rank 4 on all-linear: {ADAPTERS / 1e6:.2f}M trained parameters" in describe(
        prepared({"rank": 4})
    )
    assert "LoRA  " not in describe(prepared({}))


def published(run, model):
    """The weights of the run's only iteration, as the trainer leaves them."""
    target = PublishedFolder(policy_folder(run.folder, 1), 1)
    target.add(encode_bucket(dict(merged_tensors(model))))
    if run.config.policy.lora.rank:
        for name, data in adapter_files(model, "base").items():
            target.put_beside(name, data)
    target.close()


def test_a_run_leaves_the_merged_model_and_the_adapters(prepared, tiny_policy):
    """Both answer alike: one through transformers alone, the other through peft on the base model."""
    import peft

    run = prepared({"rank": 4})
    model = with_lora(load_policy(tiny_policy, dtype="float32"), run.config.policy.lora)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    published(run, model)
    for _ in range(2):  # a resumed run writes them again
        write_model(run, {"heldout/reward_after": 0.5})
    ids = torch.arange(3, 40)[None]
    merged = load_policy(run.folder / "model", dtype="float32")
    adapted = peft.PeftModel.from_pretrained(load_policy(tiny_policy, dtype="float32"), run.folder / "adapter")
    base = load_policy(tiny_policy, dtype="float32")
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
        assert (base(input_ids=ids).logits - expected).abs().max() > 0.1
    assert sorted(path.name for path in (run.folder / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "adapters are merged" in (run.folder / "model" / "README.md").read_text()
    assert "library_name: peft" in (run.folder / "adapter" / "README.md").read_text()


def test_a_run_without_lora_leaves_no_adapter(prepared, tiny_policy):
    run = prepared({})
    published(run, load_policy(tiny_policy, dtype="float32"))
    write_model(run, {})
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "model"]
