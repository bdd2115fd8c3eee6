"""LoRA, against peft's own model and transformers' forward pass."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, LlamaConfig

from larpo.attention import SEGMENTS
from larpo.bound_objective import bind
from larpo.config import Lora, Objective
from larpo.errors import ConfigError
from larpo.list_step import PackedList, list_loss, pass_counts, rows_of, step_lists
from larpo.log_probs import check_packed, packed_log_probs, plain_log_probs
from larpo.lora import (
    KEPT,
    TRAINED,
    adapted_layers,
    adapter_files,
    adapter_in_use,
    adapter_parameters,
    adapter_size,
    add_kept_adapter,
    base_weights,
    drop_frozen_from_state,
    merged_tensors,
    with_lora,
)
from larpo.packed_scorer import PackedScorer, scored
from larpo.packing import pack_list

SECTION = Lora(rank=3, alpha=6)
FAMILIES = ["llama", "qwen2", "gemma2"]


def stir(model, seed: int = 1):
    """Adapters as training leaves them: B is no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def write(files: dict[str, bytes], folder):
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def adapted(tiny_model):
    """`adapted(family, attention, dtype)`: a tiny model with stirred adapters."""

    def make(family="llama", attention=SEGMENTS, section=SECTION, dtype=torch.float32):
        return stir(with_lora(tiny_model(family, attention).to(dtype), section))

    return make


@pytest.fixture
def pefts_own(tiny_model, tmp_path):
    """`pefts_own(model, family, dtype)`: a fresh base with the adapters that the model exports, as peft reads them."""

    def make(model, family="llama", dtype=torch.float32):
        folder = write(adapter_files(model, "base"), tmp_path / "adapter")
        base = tiny_model(family, "eager").to(dtype)
        return peft.PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False).eval()

    return make


# --- The adapted model is peft's


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 5e-6), (torch.float32, 1e-4)])
def test_packed_log_probs_are_those_of_pefts_own_forward_pass(adapted, pefts_own, random_list, family, dtype, bound):
    """Log-softmax is taken in float32, whatever the weights' type: hence the bound for float64, ten times its step."""
    prompt, responses = random_list(5)
    model = adapted(family, dtype=dtype)
    own = pefts_own(model, family, dtype)
    with torch.no_grad():
        packed_N = packed_log_probs(model, pack_list(prompt, responses), chunk_size=7).token_log_probs_N
        plain_N = torch.cat([plain_log_probs(own, prompt, response) for response in responses])
        base_N = packed_log_probs(own.get_base_model(), pack_list(prompt, responses)).token_log_probs_N
        with own.disable_adapter():
            unadapted_N = torch.cat([plain_log_probs(own, prompt, response) for response in responses])
    torch.testing.assert_close(packed_N, plain_N, atol=bound, rtol=0)
    torch.testing.assert_close(base_N, plain_N, atol=bound, rtol=0)
    assert (plain_N - unadapted_N).abs().max() > 0.5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_pefts_and_reach_the_adapters_alone(adapted, pefts_own, random_list, checkpointing):
    prompt, responses = random_list(4)
    model = adapted()
    own = pefts_own(model)
    for parameter in adapter_parameters(own.get_base_model()).values():
        parameter.requires_grad_()
    torch.stack([plain_log_probs(own, prompt, response).sum() for response in responses]).square().sum().backward()
    expected = {name: p.grad for name, p in adapter_parameters(own.get_base_model()).items()}
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    packed_log_probs(model, pack_list(prompt, responses), chunk_size=7).log_probs_M.square().sum().backward()
    for name, parameter in adapter_parameters(model).items():
        assert (parameter.grad - expected[name]).norm() <= 1e-4 * expected[name].norm(), name
    trained = {id(parameter) for parameter in adapter_parameters(model).values()}
    assert all(parameter.grad is None for parameter in model.parameters() if id(parameter) not in trained)


def test_gradient_checkpointing_leaves_the_same_out_when_it_computes_again(tiny_model, random_list):
    row = pack_list(*random_list(4))
    model = stir(with_lora(tiny_model("llama", SEGMENTS), Lora(rank=3, dropout=0.5))).train()

    def gradients():
        model.zero_grad()
        torch.manual_seed(5)
        packed_log_probs(model, row, chunk_size=7).log_probs_M.sum().backward()
        return {name: parameter.grad.clone() for name, parameter in adapter_parameters(model).items()}

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(), expected)


def test_a_list_of_several_rows_meets_the_same_dropout_in_both_of_its_passes(tiny_model, make_list):
    """Its two passes, without gradient and row by row, give the gradient of one pass over all rows."""
    item = make_list(0, (9, 4, 7), vocabulary=97)
    rows = rows_of(item, 18)
    assert len(rows) > 1
    rewards_M = torch.tensor([3.0, 2.0, 1.0])
    objective = bind(Objective(name="lambdarank", beta=1.0))
    model = stir(with_lora(tiny_model("llama", SEGMENTS), Lora(rank=3, dropout=0.5))).train()
    scorer = PackedScorer(model, 7)
    scorer.step_seed = 3

    def score(row):
        return scored(scorer, row)

    packed = PackedList(item, rows, rewards_M, torch.zeros(3))
    list_loss(objective, packed, None, torch.cat([score(row).log_probs_M for row in rows])).backward()
    expected = {name: parameter.grad.clone() for name, parameter in adapter_parameters(model).items()}
    model.zero_grad()
    step_lists(
        score,
        [packed],
        objective=objective,
        divisor=1.0,
        passes=pass_counts([packed]),
        backward=lambda loss, last: loss.backward(),
    )
    torch.testing.assert_close({name: p.grad for name, p in adapter_parameters(model).items()}, expected)
    scorer.step_seed = 4
    with torch.no_grad():
        other = score(rows[0]).log_probs_M
        scorer.step_seed = 3
        assert (score(rows[0]).log_probs_M - other).abs().max() > 0.1


def test_an_adapted_model_begins_as_its_base(tiny_model, random_list):
    row = pack_list(*random_list(3))
    base = packed_log_probs(tiny_model("llama", SEGMENTS), row).token_log_probs_N
    model = with_lora(tiny_model("llama", SEGMENTS), SECTION)
    assert torch.equal(packed_log_probs(model, row).token_log_probs_N, base)
    assert check_packed(stir(model)) < 1e-4


# --- Merged


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_merged_weights_are_those_that_peft_merges(tiny_model, tmp_path, family):
    """gpt2 keeps its weights transposed. Names and order are the base model's, and its tensors are left alone."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97, "n_positions": 64}
    shape = GPT2Config(**sizes) if family == "gpt2" else family
    base = dict(tiny_model(shape, "eager").named_parameters())
    model = stir(with_lora(tiny_model(shape, "eager"), SECTION))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    merged = dict(merged_tensors(model))
    assert list(merged) == list(base)
    adapter = write(adapter_files(model, "base"), tmp_path / "adapter")
    own = peft.PeftModel.from_pretrained(tiny_model(shape, "eager"), adapter).merge_and_unload()
    torch.testing.assert_close(merged, dict(own.named_parameters()), atol=1e-6, rtol=1e-6)
    layers = set(adapted_layers(tiny_model(shape, "eager"), SECTION))
    assert {n.rpartition(".")[0] for n in base if not torch.equal(merged[n], base[n])} == layers
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_merging_rounds_once_up_or_down_and_keeps_small_changes_on_average(adapted):
    """bfloat16: what is written is one of the two numbers around the exact sum, the same each time."""
    model = adapted(dtype=torch.bfloat16)
    written, exact = [], []
    for name, weight in base_weights(model).items():
        if weight.layer is None:
            continue
        weight.parts[2].data.mul_(1e-3)  # B, and so the change: a small part of a bit
        w, a, b = (part.detach().double() for part in weight.parts)
        change, merged = 6 / 3 * (b @ a), weight.merged()
        bit = torch.maximum(w.abs(), (w + change).abs()).frexp().exponent.double().exp2() * 2**-8
        assert bool(((merged.double() - w - change).abs() <= bit).all()), name
        assert torch.equal(merged, weight.merged()), name
        written, exact = [*written, (merged.double() - w).flatten()], [*exact, change.flatten()]
    moved, change = torch.cat(written), torch.cat(exact)
    share = float(moved @ change / (change @ change))
    print(f"{share:.3f} of the change, a bit of a weight being {float(bit.mean() / change.abs().mean()):.0f} changes")
    assert 0.8 < share < 1.2


def test_a_model_without_adapters_has_its_own_weights(tiny_model):
    model = tiny_model("llama", "eager")
    assert with_lora(model, Lora()) is model
    for (name, tensor), (own_name, own) in zip(merged_tensors(model), model.named_parameters(), strict=True):
        assert name == own_name
        assert tensor.data_ptr() == own.data_ptr()


def test_a_reward_head_is_trained_beside_the_adapters_and_exported_with_them(tmp_path):
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape = LlamaConfig(**sizes, num_attention_heads=4, num_labels=1, pad_token_id=0)

    def fresh():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(shape, dtype=torch.float32).eval()

    model = stir(with_lora(fresh(), SECTION, also_trained=("score",)))
    adapter = write(adapter_files(model, "base"), tmp_path / "adapter")
    own = peft.PeftModel.from_pretrained(fresh(), adapter).eval()
    merged = fresh()
    merged.load_state_dict(dict(merged_tensors(model)))
    ids = torch.arange(1, 13)[None]
    reward = model(input_ids=ids).logits
    torch.testing.assert_close(own(input_ids=ids).logits, reward)
    torch.testing.assert_close(merged(input_ids=ids).logits, reward, atol=1e-5, rtol=1e-5)
    assert (fresh()(input_ids=ids).logits - reward).abs().max() > 0.1


# --- The reference in the same model


def test_adapters_off_are_the_base_and_come_back_as_they_were(adapted, tiny_model, random_list):
    row = pack_list(*random_list(3))
    model = adapted().train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with torch.no_grad():
        before = packed_log_probs(model, row).token_log_probs_N
        with adapter_in_use(model, None):
            assert not model.training
            off = packed_log_probs(model, row).token_log_probs_N
        after = packed_log_probs(model, row).token_log_probs_N
        base = packed_log_probs(tiny_model("llama", SEGMENTS), row).token_log_probs_N
    assert torch.equal(off, base)
    assert torch.equal(before, after)
    assert model.training
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


def test_a_kept_adapter_is_the_base_until_it_is_filled_and_then_what_it_was_filled_with(adapted, random_list):
    row = pack_list(*random_list(3))
    model = adapted()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    add_kept_adapter(model)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained

    @torch.no_grad()
    def scores(*used):
        if not used:
            return packed_log_probs(model, row).token_log_probs_N
        with adapter_in_use(model, *used):
            return packed_log_probs(model, row).token_log_probs_N

    policy = scores()
    assert torch.equal(scores(KEPT), scores(None))
    kept, now = adapter_parameters(model, KEPT), adapter_parameters(model)
    assert kept.keys() == now.keys()
    with torch.no_grad():
        for name, parameter in kept.items():
            parameter.copy_(now[name])
    stir(model, seed=2)
    assert torch.equal(scores(KEPT), policy)
    assert (scores() - policy).abs().max() > 0.1
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
    assert not any(f".{KEPT}." in name for name in base_weights(model))


def test_the_state_of_a_model_that_drops_its_frozen_weights_is_that_of_its_adapters(adapted):
    """Also of one whose output head is its embedding, under another name."""
    model = adapted()
    drop_frozen_from_state(model)
    assert set(model.state_dict()) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(f".{TRAINED}." in name for name in model.state_dict())


# --- What is refused


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"target_modules": ["q_prj", "k_proj"]}, r"\['q_prj'\].*choose from down_proj, gate_proj.*, or all-linear"),
        ({"target_modules": ["lm_head"]}, r"\['lm_head'\].*no linear layer of that name in its backbone"),
        ({"target_modules": ["self_attn"]}, r"\['self_attn'\]"),
        ({"rank": 17}, r"rank = 17: .*k_proj has 32 inputs and 16 outputs"),
    ],
)
def test_what_the_model_cannot_have_is_refused(tiny_model, section, says):
    section = Lora.model_validate({"rank": 16, **section})
    with pytest.raises(ConfigError, match=says):
        adapter_size(tiny_model("llama", "eager"), section)


def test_a_rank_that_only_the_named_layers_can_have(tiny_model):
    section = Lora(rank=17, target_modules=("q_proj", "layers.0.mlp.up_proj"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_model("llama", "eager").config)
    assert sorted(adapted_layers(model, section)) == [
        "model.layers.0.mlp.up_proj",
        *(f"model.layers.{number}.self_attn.q_proj" for number in range(3)),
    ]
    assert adapter_size(model, section) == 17 * (32 + 48) + 3 * 17 * (32 + 32)


def test_the_size_is_what_is_trained(tiny_model):
    model = with_lora(tiny_model("llama", "eager"), SECTION)
    assert adapter_size(tiny_model("llama", "eager"), SECTION) == sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
