"""The reference server as a user starts it, with each kind of reward model that is no function."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from larpo.http_reward import HttpReward
from larpo.reward_config import Endpoint
from larpo.reward_config import Reward as RewardSection
from larpo.rewards import make_reward_model
from larpo.types import Message, Prompt
from tests.toy_runs import free_ports, until

ROOT = Path(__file__).parents[2]
PROMPT = Prompt("p", (Message("user", "Two and two?"),))
TURNS = Prompt("t", (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Go")))
REQUESTS = [(PROMPT, ["Four.", "", "It is four, of course."]), (TURNS, ["Gone.", "No."])]
FINE = 1e-5


def reward_of(kind: str, model: Path) -> dict:
    classifier = {"kind": "sequence_classification", "classifier": {"model": str(model), "dtype": "float32"}}
    template = "{prompt}|{first}|{second}"
    ranker = {"kind": "pairwise", "ranker": {"model": str(model), "dtype": "float32", "template": template}}
    pooling = {"model": str(model), "dtype": "float32", "max_model_len": 160, "max_num_seqs": 4, "enforce_eager": True}
    return {
        "sequence_classification": classifier,
        "pairwise": ranker,
        "weighted": {"kind": "weighted", "parts": [classifier | {"weight": 2.0}, ranker]},
        "vllm": {"kind": "vllm", "pooling": pooling},
    }[kind]


class Served:
    """`python -m scripts.serve_reward` in a process of its own."""

    def __init__(self, folder: Path, reward: dict) -> None:
        recipe = folder / "served.yaml"
        recipe.write_text(json.dumps({"extends": "quickstart", "reward": reward}))
        (port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{port}"
        self._log = folder / "log.txt"
        command = [sys.executable, "-m", "scripts.serve_reward", str(recipe), "--port", str(port)]
        with open(self._log, "w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=dict(os.environ))

    def model(self) -> HttpReward:
        def is_there() -> bool:
            assert self.process.poll() is None, self.log()
            return "serving" in self.log()

        until(is_there, 120, self.log)
        endpoint = Endpoint(addresses=(self.address,), retries=3)
        return make_reward_model(RewardSection(kind="http", endpoint=endpoint))

    def log(self) -> str:
        return self._log.read_text()[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sequence_classification", "pairwise", "weighted", "vllm"])
def test_a_served_model_says_what_it_says_by_itself(scalar_head, tmp_path, kind):
    reward = reward_of(kind, scalar_head)
    served = Served(tmp_path, reward)
    try:
        model = served.model()
        found = model.score_lists(REQUESTS)
    finally:
        served.process.terminate()
        code = served.process.wait(60)
    alone = reward_of("sequence_classification", scalar_head) if kind == "vllm" else reward
    expected = make_reward_model(RewardSection.model_validate(alone)).score_lists(REQUESTS)
    for row, other in zip(found, expected, strict=True):
        assert [r.value for r in row] == pytest.approx([r.value for r in other], abs=1e-4 if kind == "vllm" else FINE)
        assert not any(r.failure for r in row)
    assert len({r.value for row in found for r in row}) == 5
    assert model.joint is (kind in ("pairwise", "weighted"))
    assert code == 0, served.log()
