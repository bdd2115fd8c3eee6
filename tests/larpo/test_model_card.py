"""Model cards: what the hub reads, and what a person does."""

from larpo.model_card import model_card
from larpo.recipe import load_config


def test_the_model_card():
    config = load_config("quickstart", ["run.name=first"])
    card = model_card(config, {"reward": 0.3381, "greedy": 0.4}, "smollm2-135m-instruct")
    front = card.split("---\n")[1]
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\nlibrary_name: transformers\n" in front
    assert "- lambdarank\n" in front
    assert "# first\n" in card
    assert "| reward | 0.3381 |" in card
    assert "https://arxiv.org/abs/2502.03699" in card
    assert "top_and_bottom" in card
    assert "base_model" not in model_card(config, {}, "/models/mine")
    assert "No numbers were measured" in model_card(config, {}, "/models/mine")
    assert "LoRA" not in card


def test_the_model_card_of_a_model_that_lora_trained():
    """Of the merged model, and of the adapters alone."""
    config = load_config("quickstart", ["policy.lora={rank: 8, alpha: 32, target_modules: [q_proj, v_proj]}"])
    merged, alone = (model_card(config, {}, config.policy.model, adapter_only=only) for only in (False, True))
    assert "library_name: transformers\n" in merged
    assert "library_name: peft\n" in alone
    assert "the adapters are merged into these weights" in merged
    assert "peft.PeftModel.from_pretrained" in alone
    for card in (merged, alone):
        assert "| LoRA | rank 8, alpha 32, dropout 0, on q_proj, v_proj |" in card
