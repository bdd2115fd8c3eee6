"""Rewards that are kept in a file."""

import signal
import sqlite3
import subprocess
import sys

import pytest

from larpo.errors import DataError
from larpo.reward_cache import RewardCache
from larpo.rewards import Reward
from larpo.types import Message, Prompt

PROMPT = Prompt("p", (Message("user", "Go"),), "task", {"answer": "4"})
OTHER = Prompt("p", (Message("user", "Go"),), "task", {"answer": "5"})
REQUESTS = [(PROMPT, ["a", "\ud800 b"]), (OTHER, ["a"])]
REWARDS = [[Reward(1.0), Reward(0.1 + 0.2)], [Reward(-3.5)]]


def test_what_was_put_comes_back_after_a_restart_and_nothing_else_does(tmp_path):
    cache = RewardCache(tmp_path / "r", "f", joint=False)
    assert cache.get(REQUESTS) == [[None, None], [None]]
    cache.put(REQUESTS, REWARDS)
    cache.close()
    again = RewardCache(tmp_path / "r", "f", joint=False)
    assert again.get(REQUESTS) == REWARDS
    assert again.get([(PROMPT, ["new", "a"]), (PROMPT, [])]) == [[None, Reward(1.0)], []]
    changed = Prompt("p", (Message("user", "Stop"),), "task", {"answer": "4"})
    assert again.get([(changed, ["a"])]) == [[None]]
    assert RewardCache(tmp_path / "r", "g", joint=False).get(REQUESTS) == [[None, None], [None]]


def test_a_joint_models_rewards_belong_to_their_list_in_its_order(tmp_path):
    cache = RewardCache(tmp_path / "r", "f", joint=True)
    cache.put([(PROMPT, ["a", "b", "a"])], [[Reward(1.0), Reward(2.0), Reward(3.0)]])
    assert cache.get([(PROMPT, ["a", "b", "a"])]) == [[Reward(1.0), Reward(2.0), Reward(3.0)]]
    for texts in (["b", "a", "a"], ["a", "b"], ["a"]):
        assert cache.get([(PROMPT, texts)]) == [[None] * len(texts)]


def test_failures_are_not_kept(tmp_path):
    half = [[Reward(1.0), Reward(0.0, "late")]]
    cache = RewardCache(tmp_path / "r", "f", joint=False)
    cache.put([(PROMPT, ["a", "b"])], half)
    assert cache.get([(PROMPT, ["a", "b"])]) == [[Reward(1.0), None]]
    joint = RewardCache(tmp_path / "j", "f", joint=True)
    joint.put([(PROMPT, ["a", "b"])], half)
    assert joint.get([(PROMPT, ["a", "b"])]) == [[None, None]]


def test_many_at_once(tmp_path):
    texts = [str(number) for number in range(2100)]
    cache = RewardCache(tmp_path / "r", "f", joint=False)
    cache.put([(PROMPT, texts)], [[Reward(float(text)) for text in texts]])
    assert [reward.value for reward in cache.get([(PROMPT, texts)])[0]] == [float(text) for text in texts]


WRITER = """
import sys
from pathlib import Path
from larpo.reward_cache import RewardCache
from larpo.rewards import Reward
from larpo.types import Prompt
cache = RewardCache(Path(sys.argv[1]), "f", joint=False)
for number in range(10**9):
    texts = [f"{number}/{part}" for part in range(50)]
    cache.put([(Prompt("p", ()), texts)], [[Reward(float(number))] * 50])
    print(number, flush=True)
"""


def test_a_kill_in_the_middle_of_writing_costs_at_most_the_last_call(tmp_path):
    file = tmp_path / "r"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True) as writer:
        lines = [int(writer.stdout.readline()) for _ in range(5)]
        writer.send_signal(signal.SIGKILL)
        lines += [int(line) for line in writer.stdout.read().splitlines()]
    cache = RewardCache(file, "f", joint=False)
    for number in lines:
        texts = [f"{number}/{part}" for part in range(50)]
        assert cache.get([(Prompt("p", ()), texts)]) == [[Reward(float(number))] * 50]
    (count,) = sqlite3.connect(file).execute("SELECT count(*) FROM rewards").fetchone()
    assert count % 50 == 0


def test_what_is_no_cache_of_this_version_is_refused(tmp_path):
    (tmp_path / "text").write_text("not a database, " * 100)
    with pytest.raises(DataError, match=r"remove it, or set reward\.cache=false"):
        RewardCache(tmp_path / "text", "f", joint=False)
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 7")
    newer.close()
    with pytest.raises(DataError, match="is of version 7"):
        RewardCache(tmp_path / "newer", "f", joint=False)


def test_a_copy_holds_what_was_put_before_it_and_the_cache_goes_on(tmp_path):
    cache = RewardCache(tmp_path / "r", "f", joint=False)
    cache.put(REQUESTS[:1], REWARDS[:1])
    cache.copy_to(tmp_path / "copy")
    cache.put(REQUESTS[1:], REWARDS[1:])
    assert RewardCache(tmp_path / "copy", "f", joint=False).get(REQUESTS) == [REWARDS[0], [None]]
    assert cache.get(REQUESTS) == REWARDS
