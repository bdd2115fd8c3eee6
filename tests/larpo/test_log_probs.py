import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    Qwen3NextConfig,
)

from larpo.attention import (
    FLOAT32_KEYS,
    SEGMENTS,
    _additive_mask,
    _causal_mask,
    _is_faster_in_float32,
    _spans,
    attention_implementation,
    packed_attention_mask,
    segment_attention,
)
from larpo.errors import ConfigError
from larpo.log_probs import (
    check_packed,
    chunked_log_probs,
    packed_log_probs,
    plain_log_probs,
)
from larpo.objectives import lambdarank
from larpo.packing import join_rows, pack_list, pad_row, split_list

FAMILIES = ["llama", "qwen2", "qwen2-mixed-windows", "mistral-window", "gemma2"]
SIZES = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,
    eos_token_id=2,
    pad_token_id=0,
    bos_token_id=1,
)


def gradients(model, log_probs_M):
    rewards_LM = torch.arange(len(log_probs_M), dtype=torch.float32)[None]
    model.zero_grad()
    lambdarank(0.1 * log_probs_M[None], rewards_LM).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("count", "chunk_size"), [(2, 512), (2, 1), (4, 10), (7, 16), (10, 7), (10, 72), (64, 40)])
def test_packed_equals_the_models_own_eager_forward(tiny_model, random_list, family, count, chunk_size):
    prompt, responses = random_list(count)
    own, ours = tiny_model(family, "eager"), tiny_model(family, SEGMENTS)
    plain = [plain_log_probs(own, prompt, response) for response in responses]
    packed = packed_log_probs(ours, pack_list(prompt, responses), chunk_size=chunk_size)
    torch.testing.assert_close(packed.token_log_probs_N, torch.cat(plain), atol=1e-4, rtol=0)

    expected = gradients(own, torch.stack([part.sum() for part in plain]))
    actual = gradients(ours, packed.log_probs_M)
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize(
    ("family", "implementation"),
    [(family, kind) for family in FAMILIES for kind in ("sdpa", "eager") if (family, kind) != ("gemma2", "sdpa")],
)
def test_models_loaded_with_sdpa_or_eager_serve_too(tiny_model, random_list, family, implementation):
    prompt, responses = random_list(5)
    model = tiny_model(family, implementation)
    plain_N = torch.cat([plain_log_probs(tiny_model(family, "eager"), prompt, y) for y in responses])
    packed_N = packed_log_probs(model, pack_list(prompt, responses)).token_log_probs_N
    torch.testing.assert_close(packed_N, plain_N, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [SEGMENTS, "sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lists_that_share_a_row_see_nothing_of_one_another(tiny_model, random_list, family, kind):
    if (family, kind) == ("gemma2", "sdpa"):
        pytest.skip("sdpa leaves Gemma-2's softcap out: such a model is refused")
    own, ours = tiny_model(family, "eager"), tiny_model(family, kind)
    items = [random_list(3), random_list(1), random_list(4)]
    plain = [[plain_log_probs(own, prompt, response) for response in responses] for prompt, responses in items]
    row = join_rows([pack_list(*item) for item in items])
    packed = packed_log_probs(ours, row, chunk_size=16)
    for part, expected in zip(packed.of_lists(row), plain, strict=True):
        torch.testing.assert_close(part.token_log_probs_N, torch.cat(expected), atol=1e-4, rtol=0)
        assert part.response_lengths == tuple(map(len, expected))
    expected = gradients(own, torch.stack([one.sum() for of_list in plain for one in of_list]))
    for name, gradient in gradients(ours, packed.log_probs_M).items():
        assert (gradient - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_segment_attention_serves_plain_and_padded_rows(tiny_model, random_list, family):
    """What the sampler's, the reference's or an evaluator's plain call would see."""
    prompt, responses = random_list(3)
    rows = [prompt + responses[0], prompt + responses[2]]
    length = max(map(len, rows))
    input_ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    attention_mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    logits = [
        tiny_model(family, kind)(input_ids=input_ids, attention_mask=attention_mask).logits[attention_mask.bool()]
        for kind in ("eager", SEGMENTS)
    ]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)
    plain = [plain_log_probs(tiny_model(family, kind), prompt, responses[2]) for kind in ("eager", SEGMENTS)]
    torch.testing.assert_close(plain[1], plain[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing(tiny_model, random_list, family):
    row = pack_list(*random_list(4))
    model = tiny_model(family, SEGMENTS)
    expected = gradients(model, packed_log_probs(model, row).log_probs_M)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    model.gradient_checkpointing_enable()
    model.train()
    actual = gradients(model, packed_log_probs(model, row).log_probs_M)
    torch.testing.assert_close(actual, expected)


def test_a_list_split_into_rows_has_the_same_log_probabilities(tiny_model, random_list):
    prompt, responses = random_list(10)
    model = tiny_model("gemma2", SEGMENTS)
    whole_M = packed_log_probs(model, pack_list(prompt, responses)).log_probs_M
    rows = split_list(prompt, responses, row_limit=30)
    assert len(rows) > 2
    split_M = torch.cat([packed_log_probs(model, row).log_probs_M for row in rows])
    torch.testing.assert_close(split_M, whole_M, atol=1e-4, rtol=0)


def test_log_probs_are_those_of_each_response_alone(tiny_model, random_list):
    """Other tokens in another response change nothing: no response sees another."""
    prompt, responses = random_list(3)
    model = tiny_model("llama", SEGMENTS)
    before = packed_log_probs(model, pack_list(prompt, responses)).log_probs_M
    responses[1] = [5, 5, 5, 5]
    after = packed_log_probs(model, pack_list(prompt, responses)).log_probs_M
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]])
    assert (after[1] - before[1]).abs() > 1


def test_entropies_are_those_of_the_softcapped_distribution(tiny_model, random_list):
    prompt, (response, *_) = random_list(2)
    model = tiny_model("gemma2", SEGMENTS)
    packed = packed_log_probs(model, pack_list(prompt, [response]), chunk_size=4)
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(packed.token_entropies_N, expected, atol=1e-4, rtol=0)
    assert packed.token_log_probs_N.requires_grad
    assert not packed.token_entropies_N.requires_grad


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("frozen", ["nothing", "head", "hidden"])
def test_chunked_log_probs_have_autograds_gradient(softcap, frozen):
    torch.manual_seed(0)
    head, hidden_NH = torch.nn.Linear(5, 11), torch.randn(9, 5)
    head.requires_grad_(frozen != "head")
    hidden_NH.requires_grad_(frozen != "hidden")
    targets_N, weights_N = torch.randint(11, (9,)), torch.randn(9)
    inputs = [x for x in (hidden_NH, *head.parameters()) if x.requires_grad]

    logits_NV = head(hidden_NH) if softcap is None else softcap * torch.tanh(head(hidden_NH) / softcap)
    plain_N = logits_NV.log_softmax(-1).gather(1, targets_N[:, None]).squeeze(1)
    expected = torch.autograd.grad(plain_N @ weights_N, inputs)
    ours_N, _ = chunked_log_probs(head, hidden_NH, targets_N, chunk_size=4, softcap=softcap)
    torch.testing.assert_close(ours_N, plain_N)
    torch.testing.assert_close(torch.autograd.grad(ours_N @ weights_N, inputs), expected)


def test_half_precision_logits_are_reduced_in_float32():
    torch.manual_seed(0)
    hidden_NH = torch.randn(6, 1000, dtype=torch.bfloat16) * 5
    log_probs_N, entropies_N = chunked_log_probs(torch.nn.Identity(), hidden_NH, torch.arange(6), chunk_size=4)
    expected_NV = hidden_NH.float().log_softmax(-1)
    assert log_probs_N.dtype == entropies_N.dtype == torch.float32
    torch.testing.assert_close(log_probs_N, expected_NV[torch.arange(6), torch.arange(6)])
    torch.testing.assert_close(entropies_N, -(expected_NV.exp() * expected_NV).sum(-1))


def test_extreme_logits_give_no_nan():
    hidden_NH = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    log_probs_N, entropies_N = chunked_log_probs(torch.nn.Identity(), hidden_NH, torch.tensor([1, 2]), chunk_size=2)
    log_probs_N.sum().backward()
    torch.testing.assert_close(log_probs_N, torch.tensor([-2e4, -torch.tensor(3.0).log()]))
    torch.testing.assert_close(entropies_N, torch.tensor([0.0, torch.tensor(3.0).log()]), atol=2e-3, rtol=0)
    assert hidden_NH.grad.isfinite().all()


class LargestTensor(TorchDispatchMode):
    """Remembers the largest element count, and the most rows of logits, that any operation returned."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.numel, self.logit_rows = vocabulary, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
                if tensor.dim() and tensor.shape[-1] == self.vocabulary:
                    self.logit_rows = max(self.logit_rows, tensor.numel() // self.vocabulary)
        return result


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_no_tensor_is_as_large_as_the_logits_of_all_response_tokens(tiny_model, random_list, family):
    prompt, responses = random_list(10)
    tokens, vocabulary, chunk_size = sum(map(len, responses)), 997, 40
    model = tiny_model(family, SEGMENTS)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    with LargestTensor(vocabulary) as largest:
        gradients(model, packed_log_probs(model, pack_list(prompt, responses), chunk_size=chunk_size).log_probs_M)
    assert largest.logit_rows == chunk_size
    assert largest.numel < tokens * vocabulary


def test_no_mask_of_the_whole_row_exists(tiny_model, monkeypatch):
    monkeypatch.setattr("larpo.attention._SQUARES", {})  # of no test before this one
    model = tiny_model("mistral-window", SEGMENTS)
    row = pack_list([1] * 8, [[2] * 30] * 20)
    with LargestTensor(97) as largest:
        gradients(model, packed_log_probs(model, row, chunk_size=8).log_probs_M)
    assert largest.numel < len(row.input_ids_T) ** 2


@pytest.mark.parametrize("family", FAMILIES)
def test_check_packed_passes_supported_families_and_leaves_them_as_they_were(tiny_model, family):
    model = tiny_model(family, SEGMENTS).train()
    assert check_packed(model) < 1e-5
    assert model.training
    assert model.config._attn_implementation == SEGMENTS


REFUSED = {
    "a logit scale (Cohere)": CohereConfig(**SIZES),
    "a logit scale (Granite)": GraniteConfig(**SIZES, logits_scaling=3.0),
    "attention sinks (gpt-oss)": GptOssConfig(**SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_check_packed_refuses_what_it_would_train_wrong(tiny_model, reason):
    model = tiny_model(REFUSED[reason], SEGMENTS)
    for name, parameter in model.named_parameters():
        if "sinks" in name:
            torch.nn.init.ones_(parameter)
    with pytest.raises(ConfigError, match=r"differ from its own by [\d.]+ a token, the limit is 0.0001"):
        check_packed(model)


@pytest.mark.parametrize("config", [Qwen3NextConfig(num_hidden_layers=4), MambaConfig(num_hidden_layers=2)])
def test_layers_with_a_state_are_refused_by_type(config):
    with pytest.raises(ConfigError, match=r"layers of type \['linear_attention'\]"):
        attention_implementation(config, "cpu")


def test_softcapped_attention_under_sdpa_is_refused(tiny_model, random_list):
    """transformers' SDPA ignores the cap silently."""
    model = tiny_model("gemma2", "sdpa")
    with pytest.raises(ConfigError, match=r"'sdpa' cannot serve packed rows of a gemma2 model.*larpo_segments"):
        packed_log_probs(model, pack_list(*random_list(2)))


def test_a_chunk_of_no_tokens_is_refused(tiny_model, random_list):
    with pytest.raises(ConfigError, match="chunk size is 0"):
        packed_log_probs(tiny_model("llama", SEGMENTS), pack_list(*random_list(2)), chunk_size=0)


def test_the_implementation_follows_the_device_and_what_a_model_can():
    for config in (LlamaConfig(), Gemma2Config()):
        assert attention_implementation(config, "cpu") == SEGMENTS
        assert attention_implementation(config, "cuda") == "flex_attention"
    # transformers has no FlexAttention for GPT-2, and none with dropout for any model
    dropping = LlamaConfig(attention_dropout=0.1), Gemma2Config(attention_dropout=0.1)
    found = [attention_implementation(config, "cuda") for config in (GPT2Config(attn_pdrop=0.0), *dropping)]
    assert found == ["sdpa", "sdpa", "eager"]


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_a_row_changes_nothing_else(tiny_model, random_list, family):
    """As for FlexAttention, whose kernels want so many tokens."""
    prompt, responses = random_list(3)
    model, row = tiny_model(family, "eager"), pack_list(prompt, responses)
    padded = pad_row(row, len(row.input_ids_T) + 40)
    assert len(padded.input_ids_T) == len(row.input_ids_T) + 40
    short, long = (packed_log_probs(model, each, chunk_size=16) for each in (row, padded))
    torch.testing.assert_close(long.token_log_probs_N, short.token_log_probs_N)
    expected = gradients(model, short.log_probs_M)
    for name, gradient in gradients(model, long.log_probs_M).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_the_rule_written_out():
    row = pack_list([7, 7, 7], [[8, 8], [9, 9]])
    seen = [
        "1......",
        "11.....",
        "111....",
        "1111...",
        "11111..",
        "111..1.",
        "111..11",
    ]
    expected = torch.tensor([[character == "1" for character in line] for line in seen])
    torch.testing.assert_close(_additive_mask(row, None, torch.float32)[0, 0] == 0, expected)
    # A window of 2 counts positions: the second response's first token still sees the last prompt token.
    windowed = _additive_mask(row, 2, torch.float32)[0, 0] == 0
    seen_ids = [line.nonzero().flatten().tolist() for line in windowed]
    assert seen_ids == [[0], [0, 1], [1, 2], [2, 3], [3, 4], [2, 5], [5, 6]]


def test_the_rule_of_a_shared_row_written_out():
    row = join_rows([pack_list([7, 7], [[8], [9]]), pack_list([7], [[8, 8], [9]])])
    seen = [
        "1.......",
        "11......",
        "111.....",
        "11.1....",
        "....1...",
        "....11..",
        "....111.",
        "....1..1",
    ]
    expected = torch.tensor([[character == "1" for character in line] for line in seen])
    torch.testing.assert_close(_additive_mask(row, None, torch.float32)[0, 0] == 0, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [10, 64])  # less than a block of tokens, and several
def test_flex_attention_equals_eager_on_a_gpu(tiny_model, random_list, family, count):
    prompt, responses = random_list(count)
    config = tiny_model(family, "eager").config
    config.head_dim = 16  # the smallest that its kernels take
    own, ours = tiny_model(config, "eager").cuda(), tiny_model(config, "flex_attention").cuda()
    plain = [plain_log_probs(own, prompt, response) for response in responses]
    packed = packed_log_probs(ours, pack_list(prompt, responses), chunk_size=16)
    torch.testing.assert_close(packed.token_log_probs_N, torch.cat(plain), atol=1e-3, rtol=0)
    expected = gradients(own, torch.stack([part.sum() for part in plain]))
    for name, gradient in gradients(ours, packed.log_probs_M).items():
        assert (gradient - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [3, 64])
def test_flex_attention_as_it_is_without_a_compiler_equals_eager(tiny_model, random_list, family, count):
    """Its reference form, which has no gradient on CPUs; padding and block masks are those of a GPU."""
    prompt, responses = random_list(count)
    own, ours = tiny_model(family, "eager"), tiny_model(family, "flex_attention")
    plain = [plain_log_probs(own, prompt, response) for response in responses]
    with torch.compiler.set_stance("force_eager"):
        packed = packed_log_probs(ours, pack_list(prompt, responses), chunk_size=16)
    torch.testing.assert_close(packed.token_log_probs_N, torch.cat(plain), atol=1e-4, rtol=0)


def test_block_masks_cover_the_rule_on_cpu(tiny_model):
    """FlexAttention trains on GPUs only; its mask can be compared here."""
    config = tiny_model("mistral-window", "eager").config
    config._attn_implementation_internal = "flex_attention"
    row = join_rows([pack_list([1] * 5, [[2] * 4, [3] * 7]), pack_list([1] * 3, [[2] * 9])])
    block_mask = packed_attention_mask(config, row, torch.float32)
    indices = torch.arange(len(row.input_ids_T))
    seen = block_mask.mask_mod(0, 0, indices[:, None], indices[None, :])
    torch.testing.assert_close(seen, _additive_mask(row, 6, torch.float32)[0, 0] == 0)


@pytest.mark.parametrize(
    ("lengths", "few"),
    [([-5, 4, 3], True), ([-300, 20], True), ([-300, 21], False), ([-5, 4, 316], False), ([-5, 4, -5, 4, 315], True)],
)
def test_spans_of_few_keys_are_attended_to_in_float32(lengths, few):
    assert FLOAT32_KEYS == 320
    kinds = torch.bfloat16, torch.float32, torch.float64
    found = [_is_faster_in_float32(torch.zeros(1, dtype=kind), list(_spans(lengths))) for kind in kinds]
    assert found == [few, False, False]


def test_in_bfloat16_a_gradient_over_few_keys_is_as_precise_as_float32s():
    """Torch's own kernel, which is slower there, is 4e-3 from it."""
    torch.manual_seed(0)
    lengths, heads, groups = [-60, 40, 3, 30], 4, 2
    total = sum(map(abs, lengths))
    inputs = [torch.randn(1, n, total, 16).mul_(2).bfloat16().requires_grad_() for n in (heads, groups, groups)]
    grad = torch.randn(1, total, heads, 16).bfloat16()

    def gradients(tensors):
        attended, _ = segment_attention(None, *tensors, torch.tensor(lengths).view(1, 1, 1, -1))
        return torch.autograd.grad(attended, tensors, grad.to(attended.dtype))

    exact = gradients([tensor.detach().double().requires_grad_() for tensor in inputs])
    for ours, expected in zip(gradients(inputs), exact, strict=True):
        assert (ours.double() - expected).norm() < 2.5e-3 * expected.norm()


@pytest.mark.parametrize("window", [None, 1, 5])
def test_a_mask_bans_what_comes_later_and_what_lies_before_the_window(window):
    """Whatever was asked for before: most are views of one that grows."""
    for prefix, length in [(0, 3), (7, 2), (2, 7), (0, 300), (5, 300), (400, 9), (2500, 9), (3, 4)]:
        mask_QK = _causal_mask(prefix, length, window, torch.zeros(1))
        query, key = torch.arange(length)[:, None] + prefix, torch.arange(prefix + length)[None, :]
        sees_QK = (key <= query) & ((query - key) < (window or prefix + length))
        assert mask_QK.shape == (length, prefix + length)
        assert torch.equal(mask_QK == 0, sees_QK)
        assert torch.equal(mask_QK.isneginf(), ~sees_QK)
