"""A user's function of whole lists, in its own process: what it gives, and every way it can fail."""

import sys

import pytest

from larpo.callable_reward import CallableReward
from larpo.errors import ConfigError
from larpo.reward_config import Reward as RewardSection
from larpo.rewards import Reward, check_reward, make_reward_model
from larpo.types import Message, Prompt

RANKS = """
import os, time
limit = 3
def ranks(prompt, responses):
    first = responses[0]
    if first == "hang": time.sleep(600)
    if first == "raise": raise ValueError("no such luck")
    if first == "die": os._exit(7)
    if first == "few": return [1.0]
    if first == "nan": return [1.0, float("nan")]
    if first == "none": return None
    if first == "print": print("noise")
    return [sorted(responses, key=len).index(text) + len(prompt.messages) for text in responses]
"""
PROMPT = Prompt("p", (Message("user", "?"),))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("callables")
    (folder / "my_ranks.py").write_text(RANKS)
    sys.path.insert(0, str(folder))
    model = CallableReward("my_ranks:ranks", timeout_s=1.0, failed_reward=-1.0)
    yield model
    model.close()
    sys.path.remove(str(folder))


def test_a_function_sees_a_prompts_responses_together(ranks):
    lists = ranks.score_lists([(PROMPT, ["ccc", "a", "bb"]), (Prompt("q", ()), ["dd", "d"]), (PROMPT, ["print"])])
    assert lists == [[Reward(3.0), Reward(1.0), Reward(2.0)], [Reward(1.0), Reward(0.0)], [Reward(1.0)]]
    assert ranks.joint


@pytest.mark.parametrize(
    ("first", "failure"),
    [
        ("hang", "timed out after 1 s"),
        ("raise", "ValueError: no such luck"),
        ("die", "the callable's process died (exit code 7)"),
        ("few", "1 rewards for 2 responses"),
        ("nan", "not finite (nan)"),
        ("none", "TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_a_failure_costs_the_rewards_of_its_list_alone(ranks, first, failure):
    lists = ranks.score_lists([(PROMPT, ["a"]), (PROMPT, [first, "b"]), (PROMPT, ["bb", "a"])])
    assert lists == [[Reward(1.0)], [Reward(-1.0, failure)] * 2, [Reward(2.0), Reward(1.0)]]


def test_a_recipe_names_it_and_the_fingerprint_is_of_source_and_knobs(ranks, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    section = RewardSection(kind="callable", name="my_other_ranks:f")

    def fingerprint(source, section=section):
        (tmp_path / "my_other_ranks.py").write_text(source)
        check_reward(section)
        model = make_reward_model(section)
        model.close()
        return model.fingerprint

    zeros, ones = (f"def f(prompt, texts): return [{value}] * len(texts)\n" for value in (0.0, 1.0))
    slower = section.model_copy(update={"timeout_s": 9.0})
    assert fingerprint(zeros) == fingerprint(zeros)
    assert len({fingerprint(zeros), fingerprint(ones), fingerprint(ones, slower)}) == 3


def test_what_cannot_be_loaded_is_refused_before_a_run(ranks):
    for name, message in [("no_such_ranks:f", "no module"), ("my_ranks:limit", "is a int, not a function")]:
        with pytest.raises(ConfigError, match=message):
            check_reward(RewardSection(kind="callable", name=name))
