"""A policy small enough to train in a test, and an embedded Ray."""

import logging
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("larpo", deadline=None)  # how long an example takes depends on what else runs
settings.load_profile("larpo")

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "RAY_AUTH_MODE": "disabled", "VLLM_NO_USAGE_STATS": "1"}
os.environ |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "TOKENIZERS_PARALLELISM": "false"}

# A shell starts background jobs with SIGINT ignored, which the runs that a test interrupts would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def wider_policy(tmp_path_factory) -> Path:
    """The same with matrices of 0.1 to 0.3M parameters, which ZeRO-3 does not keep gathered as it does smaller ones."""
    folder = tmp_path_factory.mktemp("policy") / "wider"
    make_tiny_policy(folder, hidden_size=512, intermediate_size=512, num_attention_heads=16)
    return folder


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory) -> Path:
    """A random Llama of 0.4M parameters, one token a byte, that transformers and vLLM load; float32, 4 heads of 32."""
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    make_tiny_policy(folder)
    return folder


@pytest.fixture(scope="session")
def scalar_head(tiny_policy, tmp_path_factory) -> Path:
    """The same as a reward model: a random head of one output over it."""
    import torch
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("reward") / "scalar-head"
    torch.manual_seed(0)
    model = LlamaForSequenceClassification.from_pretrained(tiny_policy, num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_policy(folder: Path, **sizes: int) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = _byte_tokenizer()
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            **{"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4} | sizes,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.1,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _byte_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE,
        model_max_length=512,
    )


@pytest.fixture(scope="session")
def local_ray():
    """Ray on this machine alone, with four logical CPUs however many there are."""
    import ray

    from actors.placement import ENVIRONMENT

    passed = {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "WANDB_MODE")}
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": ENVIRONMENT | passed},
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def make_list():
    """`make_list(number, lengths, rewards)`: a ranked list with responses of these lengths in tokens."""
    return make_candidate_list


def make_candidate_list(number: int, lengths=(7, 3), rewards=None, iteration: int = 0, vocabulary: int = 200):
    import random

    from larpo.types import Candidate, CandidateList, Message, Prompt, VersionSpan, list_id

    draw = random.Random(1000 * iteration + number)
    prompt = Prompt(f"p{number}", (Message("user", f"question {number}"),))
    key = list_id(iteration, prompt.id)
    candidates = tuple(
        Candidate(
            id=f"{key}/{index}",
            text=f"answer {number} {index}",
            token_ids=tuple(draw.randrange(vocabulary) for _ in range(length)),
            log_probs=(-0.5,) * length,
            finish_reason="stop",
            temperature=1.0,
            origin="sampled",
            iteration=iteration,
            versions=(VersionSpan(0, length, 0),),
            reward=float(len(lengths) - index) if rewards is None else rewards[index],
            reward_fingerprint="toy",
        )
        for index, length in enumerate(lengths)
    )
    prompt_ids = tuple(draw.randrange(vocabulary) for _ in range(4 + number % 3))
    return CandidateList(key, iteration, prompt, prompt_ids, candidates)
