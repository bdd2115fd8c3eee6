"""The order in which the actors of a run begin."""

import asyncio
from types import SimpleNamespace

import pytest

from actors.cast import Cast
from larpo.config import Config


def begun(resources, reward, turns=None):
    """What began, and after what had ended, in a cast of doubles."""
    cast, told = Cast.__new__(Cast), []
    samplers = {"resources": resources, "memory_fraction": 0.3}
    config = Config.model_validate({"samplers": samplers, "reward": {"resources": reward}})
    cast.run, cast.turns = SimpleNamespace(config=config), turns

    def starts(name):
        async def start(*_):
            told.append(name)
            await asyncio.sleep(0)
            told.append(f"{name} runs")

        return SimpleNamespace(start=start)

    cast.samplers, cast.rewards = starts("samplers"), starts("rewards")
    cast.start_trainer = lambda: told.append("trainer")
    asyncio.run(cast.start(0))
    return told


def test_whole_gpus_start_at_once():
    at_once = ["trainer", "samplers", "rewards", "samplers runs", "rewards runs"]
    assert begun({"GPU": 1}, {"GPU": 1}) == at_once
    assert begun({}, {}) == at_once


@pytest.mark.parametrize(("resources", "reward"), [({"GPU": 0.4}, {}), ({"GPU": 0.4}, {"GPU": 0.2})])
def test_what_shares_a_gpu_starts_one_after_the_other(resources, reward):
    """vLLM counts as its own what others take of a GPU while it starts."""
    assert begun(resources, reward) == ["samplers", "samplers runs", "rewards", "rewards runs", "trainer"]
