"""Rewards that are added up, over real verifiers."""

import sys

import pytest

from larpo.reward_config import Reward as RewardSection
from larpo.rewards import Reward, check_reward, make_reward_model
from larpo.types import Message, Prompt

PARTS = """
def letters(prompt, response):
    return float(len(response))
def picky(prompt, response):
    return float("nan") if "?" in response else 1.0
"""
REQUESTS = [(Prompt("p", (Message("user", "Go"),)), ["a bc", "what?", ""]), (Prompt("q", ()), ["x"])]


@pytest.fixture(autouse=True)
def parts_on_path(tmp_path, monkeypatch):
    (tmp_path / "weighted_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("weighted_parts", None)


def section(word_weight=0.0, letters=2.0, picky=10.0) -> RewardSection:
    parts = (
        RewardSection(name="weighted_parts:letters", weight=letters),
        RewardSection(name="weighted_parts:picky", weight=picky, failed_reward=5.0),
    )
    return RewardSection(kind="weighted", parts=parts, word_weight=word_weight, failed_reward=-3.0)


def test_parts_and_words_are_added_up_and_a_failed_part_fails_the_sum():
    check_reward(section())
    model = make_reward_model(section(word_weight=-0.5))
    rewards = model.score_lists(REQUESTS)
    model.close()
    failure = "verifier weighted_parts:picky: not finite (nan)"
    assert rewards == [
        [Reward(2 * 4 + 10 - 1.0), Reward(-3.0, failure), Reward(10.0)],
        [Reward(2 * 1 + 10 - 0.5)],
    ]


def test_the_fingerprint_holds_every_weight():
    def fingerprint(**knobs):
        model = make_reward_model(section(**knobs))
        model.close()
        return model.fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(letters=1.0), fingerprint(word_weight=0.1)}) == 3
