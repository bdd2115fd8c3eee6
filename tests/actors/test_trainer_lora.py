"""The trainer with LoRA, against AdamW steps of plain torch on peft's own model, a sequence at a time."""

import json

import pytest
import torch

from larpo.errors import ConfigError
from larpo.log_probs import plain_log_probs
from larpo.objectives import lambdarank
from larpo.policy import load_policy

FLOAT32 = 1e-4
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
    apart = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    moved = max(float((expected[name] - start[name]).abs().max()) for name in expected)
    print(f"distance {apart / moved:.2e}")
    return apart / moved


def changed(found, start) -> set[str]:
    """Last names of the modules whose weights are not bit for bit those of the start."""
    return {name.split(".")[-2] for name in start if not torch.equal(found[name], start[name])}


@pytest.fixture(scope="module")
def one_rank(train, trainer_config, lists, tmp_path_factory):
    config = trainer_config(policy={"dtype": "float32", "lora": LORA}, training={"row_tokens": ROW_TOKENS})
    return train(config, tmp_path_factory.mktemp("one_rank"), [[lists[:5], lists[5:]]])


def test_adapters_take_the_steps_of_plain_adamw_and_the_base_stays(one_rank, plain, lists, start):
    """What is published are merged weights by the base's names; those of no adapted layer are the base's, bit for bit."""
    found = one_rank.policy(1)
    assert one_rank.metric("bad_steps") == [0, 0]
    assert distance(found, plain([lists[:5], lists[5:]]), start) < FLOAT32
    assert changed(found, start) == {"q_proj", "v_proj", "down_proj"}
