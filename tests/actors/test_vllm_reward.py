"""A tiny random reward model behind vLLM's pooling runner, in a real reward actor, against plain transformers."""

import asyncio
import os

import psutil
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.placement import kill, place_reward
from larpo.config import Config
from larpo.errors import ConfigError, RewardError
from larpo.reward_config import Pooling
from larpo.reward_config import Reward as RewardSection
from larpo.rewards import check_reward, make_reward_model
from larpo.types import Message, Prompt
from tests.toy_runs import check_exactly_once

PROMPT = Prompt("p", (Message("user", "Two and two?"),))
TURNS = Prompt("t", (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Go")))
TEXTS = ["Four.", "", "It is four, of course.", "four " * 60]
LIMIT = 160  # tokens; the last text is longer


@pytest.fixture
def section(scalar_head):
    pooling = Pooling(model=str(scalar_head), dtype="float32", max_model_len=LIMIT, max_num_seqs=4, enforce_eager=True)
    return RewardSection(kind="vllm", pooling=pooling, failed_reward=-7.0)


@torch.no_grad()
def plain_score(folder, prompt, text):
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages] + [{"role": "assistant", "content": text}]
    inputs = AutoTokenizer.from_pretrained(folder).apply_chat_template(turns, return_tensors="pt", return_dict=True)
    return float(model(**inputs).logits[0, 0])


def engine_processes(ray, actor):
    """The processes that a reward actor has started."""
    pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=30)
    return psutil.Process(pid).children(recursive=True)


def gone(processes):
    return not psutil.wait_procs(processes, timeout=20)[1]


def test_scores_are_plain_transformers_and_a_dead_engine_is_one_error(local_ray, section, scalar_head):
    """Within `weighted`, so that an actor's makers reach the parts."""
    parts = (section.model_copy(update={"weight": 2.0}),)
    actor = place_reward(RewardSection(kind="weighted", parts=parts, failed_reward=-3.0))
    row, other = local_ray.get(actor.rank.remote([(PROMPT, TEXTS), (TURNS, TEXTS[:1])]), timeout=180)
    expected = [2 * plain_score(scalar_head, PROMPT, text) for text in TEXTS[:3]]
    assert [reward.value for reward in row[:3]] == pytest.approx(expected, abs=1e-4)
    assert other[0].value == pytest.approx(2 * plain_score(scalar_head, TURNS, TEXTS[0]), abs=1e-4)
    assert len({round(reward.value, 3) for reward in [*row[:3], *other]}) == 4
    assert row[3].value == -3.0
    assert f"over the limit of {LIMIT} (reward.pooling.max_model_len)" in row[3].failure
    engine = engine_processes(local_ray, actor)
    for process in engine:
        process.kill()
    for _ in range(2):
        with pytest.raises(RewardError, match=r"vLLM's engine of reward\.pooling\.model = .*: EngineDeadError"):
            local_ray.get(actor.rank.remote([(PROMPT, ["Four."])]), timeout=60)
    kill(actor)
    assert gone(engine)


@pytest.mark.slow
def test_a_dead_engine_is_replaced_with_its_actor_and_every_engine_ends_with_its_actor(local_ray, section, scalar_head):
    from actors.reward_pool import RewardPool

    async def work():
        failures = []
        config = Config.model_validate({"reward": section.model_dump()})
        pool = RewardPool(config, lambda name, reason: failures.append((name, reason)))
        await pool.start()
        first = engine_processes(local_ray, pool.actors[0])
        for process in first:  # not all are the engine's: Python's resource tracker is among them
            process.kill()
        ((reward,),) = await pool.rank([(PROMPT, ["Four."])])
        second = engine_processes(local_ray, pool.actors[0])
        await pool.stop()
        return reward, failures, first, second

    reward, failures, first, second = asyncio.run(work())
    assert reward.value == pytest.approx(plain_score(scalar_head, PROMPT, "Four."), abs=1e-4)
    assert [name for name, _ in failures] == ["reward-0"]
    assert "EngineDeadError" in failures[0][1]
    assert first
    assert gone(first)
    assert second
    assert gone(second)


@pytest.mark.slow
def test_an_engine_that_does_not_start_is_one_error(local_ray, section):
    """The tiny model has 512 positions."""
    from actors.reward_pool import RewardPool

    long = section.model_copy(update={"pooling": section.pooling.model_copy(update={"max_model_len": 4096})})
    config = Config.model_validate({"reward": long.model_dump()})

    async def work():
        await RewardPool(config, lambda name, reason: None).start()

    with pytest.raises(RewardError, match=r"(?s)vLLM.s engine for reward.pooling.model = .*did not start"):
        asyncio.run(work())


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_a_sampler_a_reward_model_and_a_trainer_share_one_gpu(runs, scalar_head):
    """Each engine takes its share of the memory, and torch holds the trainer to its own; all three work at a time."""
    shares = ["samplers.resources={GPU: 0.4}", "samplers.memory_fraction=0.35"]
    shares += ["reward.resources={GPU: 0.2}", "reward.pooling.memory_fraction=0.15"]
    shares += ["training.resources_per_worker={GPU: 0.4}"]
    served = ["kind=vllm", f"pooling.model={scalar_head}", "pooling.dtype=float32", f"pooling.max_model_len={LIMIT}"]
    knobs = [*shares, *(f"reward.{knob}" for knob in served), "reward.pooling.enforce_eager=true"]
    assert runs.new("stream", *knobs).wait() == 0, runs.log()
    check_exactly_once(runs.run_dir)


def test_what_vllm_cannot_serve_is_refused_before_a_run(tmp_path, section, tiny_policy):
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    check_reward(section)
    with pytest.raises(ConfigError, match="only a reward actor has vLLM"):
        make_reward_model(section)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(words), num_labels=1, **sizes)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"set reward\.kind=sequence_classification"):
        check_reward(RewardSection(kind="vllm", pooling=Pooling(model=str(tmp_path))))
