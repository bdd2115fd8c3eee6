"""Verifiers in their own process: real ones, and ones that hang, raise, crash, exit and babble."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from larpo.callable_reward import CallableReward
from larpo.classifier_reward import ClassifierReward
from larpo.errors import ConfigError, DataError, RewardError
from larpo.pairwise_reward import PairwiseReward
from larpo.reward_config import JOINT_KINDS
from larpo.reward_config import Reward as RewardSection
from larpo.rewards import Reward, make_reward_model
from larpo.types import Message, Prompt
from larpo.verifier_reward import VerifierReward, verifier_fingerprint

ODD = """
import ctypes, os, re, sys, time
def odd(prompt, response):
    if response == "hang": time.sleep(600)
    if response == "hang in C": re.match("(a+)+$", "a" * 60 + "b")
    if response == "raise": raise ValueError("no such luck")
    if response == "exit": sys.exit(3)
    if response == "die": os._exit(7)
    if response == "crash": os.kill(os.getpid(), 11)
    if response == "print": print("noise"); os.system("echo noise")
    if response == "pid": return float(os.getpid())
    if response == "key": return float(prompt.answer_key["n"])
    return {"nan": float("nan"), "inf": float("inf"), "none": None}.get(response, len(response))
"""
PROMPT = Prompt("p", (Message("user", "?"),), "odd", {"n": 2.5})
SUM = Prompt("s", (Message("user", "2 + 2"),), "chain_sum", {"task": "chain_sum", "answer": "4", "metadata": {}})


@pytest.fixture(scope="module")
def odd_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verifiers")
    (folder / "odd_verifiers.py").write_text(ODD)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def odd(odd_path):
    model = VerifierReward("odd_verifiers:odd", timeout_s=1.0, failed_reward=-1.0)
    yield model
    model.close()


@pytest.mark.parametrize(
    ("response", "failure"),
    [
        ("hang", "timed out after 1 s"),
        ("hang in C", "timed out after 1 s"),
        ("raise", "ValueError: no such luck"),
        ("exit", "SystemExit: 3"),
        ("die", "the verifier's process died (exit code 7)"),
        ("crash", "the verifier's process died (exit code -11)"),
        ("nan", "not finite (nan)"),
        ("inf", "not finite (inf)"),
    ],
)
def test_a_failing_verifier_costs_that_one_reward(odd, response, failure):
    rewards = odd.score(PROMPT, ["abc", response, "ab"])
    assert rewards == [Reward(3.0), Reward(-1.0, failure), Reward(2.0)]


def test_what_is_not_a_number_is_a_failure(odd):
    (reward,) = odd.score(PROMPT, ["none"])
    assert reward.value == -1.0
    assert reward.failure.startswith("TypeError")


def test_prompt_and_text_reach_the_verifier_whole(odd):
    assert odd.score(PROMPT, ["key", "", "a\nb\u2028c", "\ud800", "x" * 300_000]) == [
        Reward(2.5), Reward(0.0), Reward(5.0), Reward(1.0), Reward(300_000.0),
    ]  # fmt: skip


def test_a_verifier_that_prints_disturbs_nothing(odd):
    assert odd.score(PROMPT, ["print", "ab"]) == [Reward(5.0), Reward(2.0)]


def test_one_process_serves_all_lists_in_order(odd):
    lists = odd.score_lists([(PROMPT, ["pid", "a"]), (PROMPT, []), (PROMPT, ["bb", "pid"])])
    assert [len(entry) for entry in lists] == [2, 0, 2]
    assert lists[0][0] == lists[2][1]
    assert (lists[0][1].value, lists[2][0].value) == (1.0, 2.0)


def test_a_process_killed_while_idle_costs_nothing(odd):
    (pid,) = odd.score(PROMPT, ["pid"])
    os.kill(int(pid.value), signal.SIGKILL)
    wait_until_gone(int(pid.value))
    assert odd.score(PROMPT, ["abcd"]) == [Reward(4.0)]


def test_a_stopped_process_times_out_even_on_a_request_that_fills_the_pipe(odd):
    (pid,) = odd.score(PROMPT, ["pid"])
    os.kill(int(pid.value), signal.SIGSTOP)
    assert odd.score(PROMPT, ["x" * 1_000_000]) == [Reward(-1.0, "timed out after 1 s")]


def test_threads_take_turns_and_their_end_does_not_end_the_process(odd):
    found = []

    def work():
        found.append(odd.score(PROMPT, ["pid", "abc"]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(rewards == odd.score(PROMPT, ["pid", "abc"]) for rewards in found)


def test_a_process_restarted_by_a_short_lived_thread_outlives_it(odd):
    thread = threading.Thread(target=odd.score, args=(PROMPT, ["die", "pid"]))
    thread.start()
    thread.join()
    first = odd.score(PROMPT, ["pid"])
    time.sleep(0.2)
    assert odd.score(PROMPT, ["pid"]) == first


def test_an_answer_key_that_is_not_json_is_an_input_error(odd):
    with pytest.raises(DataError, match=r"'q'.*answer_key"):
        odd.score(Prompt("q", (), "odd", {"n": {1, 2}}), ["a"])


def test_reasoning_gym_is_fast_and_needs_no_warm_up():
    model = make_reward_model(RewardSection(timeout_s=1.0))
    try:
        start = time.monotonic()
        rewards = model.score(SUM, ["It is 4.", "5", "", "no idea"] * 250)
        assert time.monotonic() - start < 1000 / 300
        assert [reward.value for reward in rewards] == [1.0, 0.0, 0.0, 0.0] * 250
        assert not any(reward.failure for reward in rewards)
    finally:
        model.close()


def test_math_that_never_ends_costs_its_own_time_only():
    """math-verify's own limits, which need signals, are off: the process's limit ends it."""
    model = make_reward_model(RewardSection(name="math", timeout_s=3.0))
    half = Prompt("h", (Message("user", "Half?"),), "", {"answer": r"\boxed{\frac{1}{2}}"})
    try:
        rewards = model.score(half, [r"\boxed{0.5}", r"\boxed{9^{9^{9^{9}}}}", "1/2", "2"])
    finally:
        model.close()
    assert rewards == [Reward(1.0), Reward(0.0, "timed out after 3 s"), Reward(1.0), Reward(0.0)]


def test_a_recipe_tells_which_rewards_compare_within_one_list_alone():
    """As the models themselves do, but for those of a server, which is asked."""
    from actors.vllm_reward import VllmReward

    kinds = {"verifier": VerifierReward, "callable": CallableReward, "pairwise": PairwiseReward}
    kinds |= {"sequence_classification": ClassifierReward, "vllm": VllmReward}
    assert {kind for kind, model in kinds.items() if model.joint} == set(JOINT_KINDS)
    inner = {"kind": "weighted", "parts": [{"kind": "callable"}, {"kind": "pairwise"}, {"kind": "callable"}]}
    summed = RewardSection.model_validate({"kind": "weighted", "parts": [{"kind": "verifier"}, inner]})
    assert summed.joint_kinds == ("callable", "pairwise")
    assert RewardSection(kind="http").joint_kinds == RewardSection().joint_kinds == ()


def test_a_closed_model_says_so(odd_path):
    model = VerifierReward("odd_verifiers:odd")
    (pid,) = model.score(PROMPT, ["pid"])
    model.close()
    model.close()
    wait_until_gone(int(pid.value))
    with pytest.raises(RewardError, match="closed"):
        model.score(PROMPT, ["a"])


def test_verifiers_that_cannot_be_loaded(odd_path):
    (odd_path / "broken_verifiers.py").write_text("import no_such_package\ndef f(prompt, response): return 0.0\n")
    (odd_path / "dying_verifiers.py").write_text("import os\nos._exit(9)\n")
    with pytest.raises(ConfigError, match="known: gsm8k, ifeval, math, reasoning_gym"):
        make_reward_model(RewardSection(name="nope"))
    with pytest.raises(ConfigError, match="no_such_package"):
        VerifierReward("broken_verifiers:f")
    with pytest.raises(ConfigError, match="missing"):
        VerifierReward("odd_verifiers:missing")
    with pytest.raises(RewardError, match="exit code 9"):
        VerifierReward("dying_verifiers:f")


def test_fingerprint_depends_on_what_alters_rewards_and_on_nothing_else():
    base = verifier_fingerprint("reasoning_gym", 5.0, 0.0)
    others = [("ifeval", 5.0, 0.0), ("reasoning_gym", 6.0, 0.0), ("reasoning_gym", 5.0, -1.0)]
    assert base == verifier_fingerprint("reasoning_gym", 5.0, 0.0)
    assert len({base, *(verifier_fingerprint(*other) for other in others)}) == 4


PARENT = """
import sys, threading
from larpo.verifier_reward import VerifierReward
from larpo.types import Prompt
model = VerifierReward("odd_verifiers:odd", timeout_s=500.0)
print(int(model.score(Prompt("p", ()), ["pid"])[0].value), flush=True)
model.score(Prompt("p", ()), [sys.argv[1]] * 2) if sys.argv[1] != "idle" else sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ending with the parent while hanging is Linux's")
@pytest.mark.parametrize("state", ["idle", "hang", "hang in C"])
def test_killing_the_parent_leaves_no_orphan(odd_path, state):
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{odd_path}"}
    command = [sys.executable, "-c", PARENT, state]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.3)  # let it reach its state
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
        wait_until_gone(pid)


def wait_until_gone(pid, limit_s=5.0):
    """Returns when no process (or only an unreaped one) has this id."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if ") Z" in Path(f"/proc/{pid}/stat").read_text():
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there after {limit_s} s")
