"""Two models side by side as a user evaluates them: real Ray and vLLM on tiny policies, interrupted once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import torch
import yaml

from tests.conftest import make_tiny_policy

pytestmark = pytest.mark.slow  # two starts of Ray and three of vLLM

ROOT = Path(__file__).parents[2]
REWARD = """
def begins_small(prompt, response):
    return float("a" <= response[:1] <= "m") + 0.01 * len(response.split())
"""
PROMPTS, SAMPLES = 24, 6


def recipe(folder: Path, policy: Path) -> dict:
    return {
        "policy": {"model": str(policy), "dtype": "float32"},
        "prompts": {
            "source": str(folder / "prompts.jsonl"),
            "columns": {"prompt": "question"},
            "train_count": 1,
            "heldout_count": PROMPTS,
            "max_prompt_tokens": 64,
        },
        "sampling": {"k": 4, "max_new_tokens": 12},
        "reward": {"name": "toy_reward:begins_small"},
        "training": {"iterations": 1, "prompts_per_iteration": 1, "lists_per_step": 1, "threads": 1},
        "samplers": {"resources": {"CPU": 0}, "max_model_len": 128, "max_num_seqs": 16, "enforce_eager": True},
        "stream": {"lists_per_part": 4},
        "evaluation": {"bootstrap": 200, "sweep": {"samples": SAMPLES, "temperatures": [0.7, 1.3], "list_size": 4}},
        "telemetry": {"wandb": False},
    }


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """The folder of an evaluation that was interrupted after its first part, and went on."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name, width in (("first", 192), ("other", 256)):
        make_tiny_policy(folder / name, intermediate_size=width)
    (folder / "toy_reward.py").write_text(REWARD)
    rows = [{"question": f"Say something about {n}."} for n in range(PROMPTS + 1)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "toy.yaml").write_text(yaml.safe_dump(recipe(folder, folder / "first")))
    models = [word for name in ("first", "other") for word in ("--model", f"{name}={folder / name}")]
    command = [
        sys.executable,
        "-m",
        "scripts.evaluate",
        str(folder / "toy.yaml"),
        *models,
        "--out",
        str(folder / "out"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(folder)
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    begun = subprocess.Popen(command, **options)
    first_part = folder / "out" / "samples" / "first" / "iteration-0000" / "part-00000.parquet"
    deadline = time.monotonic() + 240
    while not first_part.exists() and begun.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    begun.send_signal(signal.SIGINT)
    _, told = begun.communicate(timeout=120)
    assert begun.returncode == 130, told[-4000:]
    assert "goes on from here" in told
    (folder / "out" / "first_part").write_bytes(first_part.read_bytes())
    done = subprocess.run(command, **options, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    (folder / "out" / "stdout.txt").write_text(done.stdout)
    again = subprocess.run(command, **options, timeout=400)
    assert again.stdout == done.stdout, "a finished evaluation says the same"
    return folder / "out"


@pytest.fixture(scope="module")
def results(evaluated) -> dict:
    return json.loads((evaluated / "results.json").read_text())


@pytest.fixture(scope="module")
def samples(evaluated):
    return pandas.read_parquet(evaluated / "samples.parquet")


def test_every_prompt_is_answered_once_by_every_model(evaluated, samples):
    counts = samples.groupby(["model", "prompt_id", "temperature"]).size()
    assert len(counts) == 2 * PROMPTS * 3
    assert set(counts.xs(0.0, level="temperature")) == {1}
    assert set(counts.drop(0.0, level="temperature")) == {SAMPLES}
    parts = sorted((evaluated / "samples" / "first").rglob("*.parquet"))
    assert parts[0].read_bytes() == (evaluated / "first_part").read_bytes()


def test_the_numbers_are_those_of_the_samples(results, samples):
    for name, model in results["models"].items():
        own = samples[samples.model == name]
        found = {key: mean for key, (mean, _, _) in model["measures"].items()}
        greedy = own[own.temperature == 0.0]
        assert found["greedy/reward"] == pytest.approx(greedy.reward.mean())
        for temperature in (0.7, 1.3):
            rows = own[own.temperature == temperature]
            key = f"T={temperature:g}/"
            assert found[key + "reward"] == pytest.approx(rows.reward.mean())
            assert found[key + "recall@1"] == pytest.approx((rows.reward >= 1).mean())
            by_prompt = rows.groupby("prompt_id").reward
            assert found[key + "best_reward@5"] <= by_prompt.max().mean()
            assert found[key + "recall@1"] <= found[key + "recall@5"] <= (by_prompt.max() >= 1).mean()
    assert results["models"]["first"]["measures"]["T=1.3/recall@5"][0] > 0


def test_models_are_compared(evaluated, results):
    means = {name: model["measures"]["T=1.3/reward"][0] for name, model in results["models"].items()}
    difference, low, high = results["differences"]["other"]["T=1.3/reward"]
    assert difference == pytest.approx(means["other"] - means["first"])
    assert low <= difference <= high
    low, high = results["win_rates"]["other"]["raw"][1:]
    assert 0 <= low <= results["win_rates"]["other"]["raw"][0] <= high <= 1
    printed = (evaluated / "stdout.txt").read_text()
    for word in ("Recall@N", "best reward of N", "length-controlled", "Kendall tau", "no majority vote"):
        assert word in printed


def test_scores_are_the_models_own(evaluated, results):
    """By a plain forward pass of transformers on the recorded tokens."""
    from transformers import AutoModelForCausalLM

    from larpo.log_probs import plain_log_probs
    from larpo.records import read_lists

    lists = {c.id: (item, c) for item in read_lists(evaluated / "samples" / "first") for c in item.candidates}
    for name in ("first", "other"):
        model = AutoModelForCausalLM.from_pretrained(evaluated.parent / name, dtype=torch.float32).eval()
        scores = json.loads((evaluated / "scores" / f"{name}.json").read_text())
        assert len(scores) == results["ranking"]["candidates"] > 0
        for key in list(scores)[:8]:
            item, candidate = lists[key]
            with torch.no_grad():
                plain = plain_log_probs(model, item.prompt_token_ids, candidate.token_ids).sum().item()
            assert scores[key] == pytest.approx(plain, abs=1e-2)
            if name == "first":  # the sampler's own, summed
                assert scores[key] == pytest.approx(sum(candidate.log_probs), abs=1e-2)
    assert set(results["ranking"]["models"]["first"]) == {"log_pi"}
    assert set(results["ranking"]["models"]["other"]) == {"log_pi", "gamma"}
