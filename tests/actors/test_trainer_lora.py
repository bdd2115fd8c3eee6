"""The trainer with LoRA, against AdamW steps of plain torch on peft's own model, a sequence at a time."""

import pytest
import torch
from safetensors.torch import load

from actors.checkpoints import newest_checkpoint
from actors.published import manifest, read_beside, read_buckets
from actors.trainer import policy_folder
from larpo.config import Lora
from larpo.log_probs import plain_log_probs
from larpo.objectives import lambdarank
from larpo.policy import load_policy
from tests.toy_runs import kill_one_rank

FLOAT32, FLOAT32_WIDER, BFLOAT16 = 1e-4, 1e-3, 0.1
LENGTHS = ((7, 3), (2, 9, 5), (12, 1, 4, 6), (3, 8), (5, 5, 5), (1, 2), (10, 4), (6, 2, 3))
ROW_TOKENS = 24  # the third list goes into two rows
RATE, RANK, ALPHA = 1e-2, 4, 8
LORA = {"rank": RANK, "alpha": ALPHA, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture(scope="module")
def lists(make_list):
    return [make_list(number, lengths) for number, lengths in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def plain(tiny_policy):
    """`plain(batches)`: weights of peft's merged model after a step of torch's AdamW on each batch of lists.

    Before the batches numbered in `refresh`, the reference becomes the policy as it is then.
    """

    def steps(batches, *, refresh=(), folder=tiny_policy, lora=LORA) -> dict[str, torch.Tensor]:
        import peft

        torch.manual_seed(0)
        base = load_policy(folder, dtype="float32", attn_implementation="eager")
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=lora["target_modules"])
        policy = peft.get_peft_model(base, config)
        adapters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(adapters, lr=RATE, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1)
        with policy.disable_adapter():
            reference = [[_log_probs(policy, item) for item in batch] for batch in batches]
        for number, batch in enumerate(batches):
            if number in refresh:
                reference[number:] = [[_log_probs(policy, item) for item in later] for later in batches[number:]]
            losses = [_loss(policy, item, known) for item, known in zip(batch, reference[number], strict=True)]
            optimizer.zero_grad()
            (sum(losses) / len(batch)).backward()
            torch.nn.utils.clip_grad_norm_(adapters, 0.5)
            optimizer.step()
        return dict(policy.merge_and_unload().named_parameters())

    return steps


def _log_probs(policy, item):
    sums = [plain_log_probs(policy, item.prompt_token_ids, c.token_ids).sum() for c in item.candidates]
    return torch.stack(sums).detach()


def _loss(policy, item, reference_M):
    log_probs_M = torch.stack(
        [plain_log_probs(policy, item.prompt_token_ids, c.token_ids).sum() for c in item.candidates]
    )
    rewards_M = torch.tensor([candidate.reward for candidate in item.candidates])
    return lambdarank((log_probs_M - reference_M)[None], rewards_M[None])[0]


@pytest.fixture(scope="module")
def start(tiny_policy):
    return start_of(tiny_policy)


def start_of(folder):
    return dict(load_policy(folder, dtype="float32").named_parameters())


def distance(found, expected, start) -> float:
    """Largest difference between two sets of weights, over the largest change since the start."""
    assert found.keys() == expected.keys()
    apart = max(float((found[name] - expected[name]).detach().abs().max()) for name in expected)
    moved = max(float((expected[name] - start[name]).detach().abs().max()) for name in expected)
    print(f"distance {apart / moved:.2e}")
    return apart / moved


def changed(found, start) -> set[str]:
    """Last names of the modules whose weights are not bit for bit those of the start."""
    return {name.split(".")[-2] for name in start if not torch.equal(found[name], start[name])}


@pytest.fixture(scope="module")
def lora_config(trainer_config):
    """`lora_config(training=..., lora=...)`: in float32 unless `dtype` says otherwise."""

    def make(lora=LORA, dtype="float32", training=None, **sections):
        training = {"row_tokens": ROW_TOKENS, **(training or {})}
        return trainer_config(policy={"dtype": dtype, "lora": lora}, training=training, **sections)

    return make


@pytest.fixture(scope="module")
def one_rank(train, lora_config, lists, tmp_path_factory):
    return train(lora_config(), tmp_path_factory.mktemp("one_rank"), [[lists[:5], lists[5:]]])


def test_adapters_take_the_steps_of_plain_adamw_and_the_base_stays(one_rank, plain, lists, start):
    """Published are merged weights by the base's names; where there is no adapter they are the base's, bit for bit."""
    found = one_rank.policy(1)
    assert one_rank.metric("bad_steps") == [0, 0]
    assert distance(found, plain([lists[:5], lists[5:]]), start) < FLOAT32
    assert changed(found, start) == {"q_proj", "v_proj", "down_proj"}


def test_fixed_buckets_hold_the_blocks_without_an_adapter(one_rank, start):
    """An engine joins the tensors of attention and of the feed-forward network: those go together."""
    found: dict[bool, set[str]] = {True: set(), False: set()}
    folder = policy_folder(one_rank.run_dir, 1)
    for entry, bucket in zip(manifest(folder)["files"], read_buckets(folder), strict=True):
        found[entry["fixed"]] |= load(bucket.tobytes()).keys()
    assert found[True] == {name for name in start if "norm" in name or "embed" in name or "lm_head" in name}
    assert found[False] == start.keys() - found[True]


def test_what_is_published_lies_beside_adapters_that_peft_loads(one_rank, tiny_policy):
    """On the base model they are the merged weights."""
    import peft

    base = load_policy(tiny_policy, dtype="float32")
    own = peft.PeftModel.from_pretrained(base, policy_folder(one_rank.run_dir, 1)).merge_and_unload()
    torch.testing.assert_close(one_rank.policy(1), dict(own.named_parameters()), atol=1e-6, rtol=1e-6)


def test_a_checkpoint_holds_no_weight_of_the_base(one_rank, tiny_policy):
    """float32 adapters, their master copy and two moments: far less than the base model's weights."""
    from larpo.lora import adapter_size
    from larpo.policy import empty_policy

    folder = newest_checkpoint(one_rank.run_dir / "checkpoints")[0]
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    trained = adapter_size(empty_policy(tiny_policy), Lora.model_validate(LORA))
    base = (tiny_policy / "model.safetensors").stat().st_size
    print(f"checkpoint {written} bytes, {trained} trained parameters, base {base} bytes")
    assert 16 * trained < written < 16 * trained + 100_000
    assert written < base / 2


LAYOUTS = [
    pytest.param(ranks, stage, id=f"{ranks} ranks, ZeRO {stage}", marks=pytest.mark.slow)
    for ranks, stage in ((1, 0), (1, 1), (1, 3), (2, 0), (2, 2), (2, 3))
]


@pytest.mark.parametrize(("ranks", "stage"), LAYOUTS)
def test_ranks_and_stages_give_the_same_weights(train, lora_config, one_rank, lists, start, tmp_path, ranks, stage):
    """With gradient checkpointing; two ranks have three lists and two in the first step, two and one in the second."""
    config = lora_config(training={"workers": ranks, "zero_stage": stage, "gradient_checkpointing": True})
    trained = train(config, tmp_path, [[lists[:5], lists[5:]]])
    assert distance(trained.policy(1), one_rank.policy(1), start) < FLOAT32
    assert changed(trained.policy(1), start) == {"q_proj", "v_proj", "down_proj"}
    for name in ("loss", "kl_to_reference", "entropy", "grad_norm", "ranking_accuracy"):
        assert trained.metric(name) == pytest.approx(one_rank.metric(name), rel=1e-3, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), (2, 3)])
def test_each_iteration_has_the_policy_it_began_with_as_reference(
    train, lora_config, plain, make_list, wider_policy, tmp_path, ranks, stage
):
    """ZeRO 3 keeps the wider policy's weights in pieces; rows of one chunk stand beside rows of six."""
    training = {"iterations": 2, "epochs": 2, "prompts_per_iteration": 3, "lists_per_step": 3, "chunk_tokens": 4}
    config = lora_config(
        training={**training, "workers": ranks, "zero_stage": stage}, objective={"reference": "iteration"}
    )
    rounds = [[make_list(n, LENGTHS[n], iteration=iteration) for n in range(3)] for iteration in range(2)]
    trained = train(config, tmp_path, [[rounds[0]], [rounds[1]]], policy=wider_policy)
    batches = [rounds[0], rounds[0], rounds[1], rounds[1]]
    expected = plain(batches, refresh={2}, folder=wider_policy)
    assert distance(trained.policy(2), expected, start_of(wider_policy)) < FLOAT32_WIDER
    assert trained.metric("kl_to_reference")[0::2] == pytest.approx([0, 0], abs=1e-4)  # the reference is the policy
    assert min(abs(value) for value in trained.metric("kl_to_reference")[1::2]) > 1e-3


@pytest.mark.slow
def test_dropout_does_not_depend_on_the_number_of_ranks(train, lora_config, one_rank, lists, start, tmp_path):
    lora = LORA | {"dropout": 0.3}
    found = [
        train(lora_config(lora=lora, training={"workers": ranks}), tmp_path / f"{ranks}", [[lists[:5], lists[5:]]])
        for ranks in (1, 2)
    ]
    assert distance(found[1].policy(1), found[0].policy(1), start) < FLOAT32
    assert distance(found[0].policy(1), one_rank.policy(1), start) > 100 * FLOAT32


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_bfloat16_adapters_stay_near_the_float32_steps(train, lora_config, plain, lists, start, tmp_path, stage):
    """By the adapters' change of the adapted weights, before bfloat16 rounds their sum with the base."""
    from safetensors.torch import load

    trained = train(lora_config(dtype="bfloat16", training={"zero_stage": stage}), tmp_path, [[lists[:5], lists[5:]]])
    assert {tensor.dtype for tensor in trained.policy(1).values()} == {torch.bfloat16}
    adapters = load(read_beside(policy_folder(tmp_path, 1))["adapter_model.safetensors"])
    expected = plain([lists[:5], lists[5:]])
    apart, moved = 0.0, 0.0
    for name in expected:
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_%s.weight"
        if key % "A" in adapters:
            found = ALPHA / RANK * adapters[key % "B"].float() @ adapters[key % "A"].float()
            wanted = expected[name].detach() - start[name].detach()
            apart, moved = apart + float((found - wanted).square().sum()), moved + float(wanted.square().sum())
    print(f"ZeRO {stage}: {(apart / moved) ** 0.5:.3f} apart")
    assert apart < BFLOAT16**2 * moved


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "reference"), [(0, "initial"), (3, "iteration")])
def test_a_killed_worker_costs_nothing_but_time(train, lora_config, make_list, start, tmp_path, stage, reference):
    """The second iteration's group goes on from adapters, optimizer and reference that lie on disk."""
    rounds = [[make_list(n, (5 + n % 3, 3), iteration=iteration) for n in range(6)] for iteration in range(2)]
    config = lora_config(
        lora=LORA | {"dropout": 0.2},
        training={"lists_per_step": 3, "workers": 2, "zero_stage": stage, "prompts_per_iteration": 6, "iterations": 2},
        checkpoints={"every_steps": 1},
        objective={"reference": reference},
    )
    calm = train(config, tmp_path / "calm", [[rounds[0]], [rounds[1]]])

    async def kill_one():
        await kill_one_rank(tmp_path / "killed", 4)

    killed = train(config, tmp_path / "killed", [[rounds[0]], [rounds[1][:3], kill_one, rounds[1][3:]]], fresh=True)
    assert killed.consumed == calm.consumed
    assert changed(calm.policy(2), calm.policy(1)) == {"q_proj", "v_proj", "down_proj"}
    for name, tensor in calm.policy(2).items():
        assert torch.equal(killed.policy(2)[name], tensor), name
