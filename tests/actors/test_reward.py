"""The reward actor, without Ray and once with it."""

import asyncio
import time

import pytest

from actors.reward import RewardActor
from larpo.config import Config
from larpo.errors import RewardError
from larpo.reward_config import Classifier, Endpoint
from larpo.reward_config import Reward as RewardSection
from larpo.rewards import Reward
from larpo.types import Message, Prompt

SLOW = "import time\ndef slow(prompt, response):\n    time.sleep(0.1)\n    return 1 / len(response)\n"


def addition(answer):
    key = {"task": "chain_sum", "answer": answer, "metadata": {}}
    return Prompt(answer, (Message("user", "?"),), "chain_sum", key)


REQUESTS = [(addition("4"), ["It is 4.", "5"]), (addition("7"), ["", "7", "seven"])]
EXPECTED = [[Reward(1.0), Reward(0.0)], [Reward(0.0), Reward(1.0), Reward(0.0)]]


@pytest.fixture
def slow_verifier(tmp_path, monkeypatch):
    (tmp_path / "slow_verifier.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    return "slow_verifier:slow"


def test_ranks_counts_and_describes():
    async def work():
        actor = RewardActor(RewardSection())
        rewards = await actor.rank(REQUESTS)
        stats = await actor.stats()
        await actor.close()
        return rewards, stats, await actor.describe()

    rewards, stats, described = asyncio.run(work())
    assert rewards == EXPECTED
    assert (stats["lists"], stats["responses"], stats["failures"]) == (2, 5, 0)
    assert stats["busy_seconds"] > 0
    assert (described.kind, described.name, described.joint) == ("verifier", "reasoning_gym", False)
    assert described.fingerprint


def test_stays_responsive_takes_turns_and_counts_time_once(slow_verifier):
    async def work():
        actor = RewardActor(RewardSection(name=slow_verifier))
        start = time.monotonic()
        batches = [asyncio.create_task(actor.rank([(addition("1"), ["a", "ab"])])) for _ in range(3)]
        await asyncio.sleep(0.05)
        early = await actor.stats()
        rewards = await asyncio.gather(*batches)
        elapsed = time.monotonic() - start
        late = await actor.stats()
        await actor.close()
        return early, rewards, late, elapsed

    early, rewards, late, elapsed = asyncio.run(work())
    assert early["lists"] < 3
    assert rewards == [[[Reward(1.0), Reward(0.5)]]] * 3
    assert (late["lists"], late["responses"]) == (3, 6)
    assert 6 * 0.1 <= late["busy_seconds"] <= elapsed  # the waiting of batches for their turn is not counted


def test_failures_are_counted_and_named(slow_verifier):
    async def work():
        actor = RewardActor(RewardSection(name=slow_verifier, failed_reward=-2.0))
        rewards = await actor.rank([(addition("1"), ["", "ab"])])
        stats = await actor.stats()
        await actor.close()
        return rewards, stats

    rewards, stats = asyncio.run(work())
    assert rewards == [[Reward(-2.0, "ZeroDivisionError: division by zero"), Reward(0.5)]]
    assert stats["failures"] == 1


def test_in_a_ray_actor(local_ray):
    from actors.placement import kill, place_reward

    actor = place_reward(RewardSection())
    assert local_ray.get(actor.rank.remote(REQUESTS), timeout=60) == EXPECTED
    assert local_ray.get(actor.describe.remote(), timeout=10).name == "reasoning_gym"
    assert local_ray.get(actor.stats.remote(), timeout=10)["responses"] == 5
    kill(actor)


def test_a_model_with_a_head_in_a_ray_actor(local_ray, tiny_policy, tmp_path):
    """The same rewards as in this process, and resources that a recipe asks for."""
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    from actors.placement import kill, needed_resources, place_reward
    from larpo.rewards import make_reward_model

    model = LlamaForSequenceClassification.from_pretrained(tiny_policy, num_labels=1)
    model.config.pad_token_id = 0
    model.save_pretrained(tmp_path / "head")
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(tmp_path / "head")
    section = RewardSection(
        kind="sequence_classification",
        classifier=Classifier(model=str(tmp_path / "head"), dtype="float32"),
        resources={"CPU": 1},
        replicas=2,
    )
    assert needed_resources(Config(reward=section))["CPU"] == needed_resources(Config())["CPU"] + 2
    actor = place_reward(section)
    assert local_ray.get(actor.rank.remote(REQUESTS), timeout=120) == make_reward_model(section).score_lists(REQUESTS)
    kill(actor)


def test_a_reward_model_that_cannot_be_loaded_tells_why(local_ray):
    from actors.placement import kill, place_reward

    actor = place_reward(RewardSection(kind="http", endpoint=Endpoint(addresses=("http://127.0.0.1:1",), retries=0)))
    local_ray.get(actor.placed.remote(), timeout=60)
    with pytest.raises(RewardError, match="the reward server gave no answer in 1 attempts"):
        local_ray.get(actor.describe.remote(), timeout=60)
    kill(actor)
