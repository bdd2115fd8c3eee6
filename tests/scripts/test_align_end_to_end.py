"""A whole run as a user starts it: real vLLM, Ray Train and DeepSpeed on a tiny policy, and a toy reward that rises."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
REWARD = """
def share_of_small_letters(prompt, response):
    return sum("a" <= character <= "z" for character in response) / max(1, len(response))
"""
RISE = 0.15  # of the mean training reward, from the first to the last iteration; chance gives 0.1 throughout

LORA = {"policy.lora.rank": 16, "policy.lora.alpha": 32}


@pytest.fixture(scope="module", params=["all weights", pytest.param("LoRA", marks=pytest.mark.slow)])
def run(request, tiny_policy, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("end_to_end")
    (folder / "toy_reward.py").write_text(REWARD)
    rows = [{"question": f"Say something about {n}.", "number": n} for n in range(56)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "toy.yaml").write_text(yaml.safe_dump(recipe(folder, tiny_policy)))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(folder)
    knobs = [f"{key}={value}" for key, value in LORA.items()] if request.param == "LoRA" else []
    command = [sys.executable, "-m", "scripts.align", str(folder / "toy.yaml"), "run.name=toy", *knobs]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    (folder / "runs" / "stdout.txt").write_text(done.stdout)
    return folder / "runs" / "toy"


def recipe(folder: Path, policy: Path) -> dict:
    return {
        "run": {"output_dir": str(folder / "runs")},
        "policy": {"model": str(policy), "dtype": "float32"},
        "prompts": {
            "source": str(folder / "prompts.jsonl"),
            "columns": {"prompt": "question", "answer_key": "number"},
            "heldout_count": 8,
            "max_prompt_tokens": 64,
        },
        "sampling": {"k": 8, "max_new_tokens": 24},
        "reward": {"name": "toy_reward:share_of_small_letters"},
        "lists": {"memory": "current_and_previous", "replay": False},
        "objective": {"name": "lambdarank", "beta": 0.1},
        "training": {
            "iterations": 3,
            "prompts_per_iteration": 48,
            "lists_per_step": 4,
            "threads": 1,
            "optimizer": {"learning_rate": 3e-3},
        },
        "samplers": {
            "resources": {"CPU": 0},
            "max_model_len": 128,
            "max_num_seqs": 64,
            "enforce_eager": True,
        },
        "checkpoints": {"every_steps": 5},
        "telemetry": {"wandb": False},
    }


@pytest.fixture(scope="module")
def records(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def lists(run):
    import datasets

    return datasets.load_dataset("parquet", data_files=str(run / "lists" / "**" / "*.parquet"), split="train")


def test_the_toy_reward_rises(lists):
    rewards = {iteration: [] for iteration in range(3)}
    for item in lists:
        fresh = [c["reward"] for c in item["candidates"] if c["origin"] == "sampled"]
        rewards[item["iteration"]] += fresh
    assert [len(rewards[iteration]) for iteration in range(3)] == [48 * 8] * 3
    first, *_, last = (sum(values) / len(values) for values in rewards.values())
    print("mean training reward by iteration:", [round(sum(v) / len(v), 3) for v in rewards.values()])
    assert last > first + RISE


def test_the_last_record_has_the_numbers_of_the_table(run, records):
    done = records[-1]
    assert done["event"] == "done"
    before, after = done["heldout/reward_before"], done["heldout/reward_after"]
    assert done["heldout/reward_diff"] == pytest.approx(after - before)
    assert done["heldout/reward_diff_low"] < after - before < done["heldout/reward_diff_high"]
    assert done["heldout/reward_diff_low"] > 0
    printed = (run.parent / "stdout.txt").read_text()
    for part in (f"{before:.3f}", f"{after:.3f}", str(run / "model"), str(run / "report.html")):
        assert part in printed


def test_samplers_and_trainer_agree_after_every_update(records):
    """The first step after a publication trains on fresh samples of the same weights, where both sides must agree."""
    gaps = [record["train/log_prob_gap"] for record in records if "train/log_prob_gap" in record]
    print("gaps:", gaps)
    assert len(gaps) == 3
    assert max(gaps) < 1e-4
    versions = [record["weights/version"] for record in records if "weights/version" in record]
    assert versions[-1] == 3.0


def test_every_declared_metric_is_told(records):
    from larpo.metrics import METRICS

    elsewhere = ("given/", "pairs/")  # answers of a dataset, reward models
    of_an_alignment = {name for name in METRICS if not name.startswith(elsewhere)}
    of_trouble = {"reward/failures", "run/failures", "run/alarms"}
    assert of_an_alignment - {name for record in records for name in record} <= of_trouble


def test_the_run_folder_is_complete(run):
    from larpo.recipe import load_config

    assert load_config(str(run / "config.yaml")).training.iterations == 3
    assert (run / "report.html").read_text().count("<img") + (run / "report.html").read_text().count("<svg") >= 4
    assert any((run / "checkpoints").glob("position-*/manifest.json"))
    assert len(list((run / "evaluation").glob("iteration-*.json"))) == 4


def test_lists_are_durable_records(run, lists):
    assert len(lists) == 3 * 48
    assert len(set(lists["id"])) == 3 * 48
    for item in lists:
        rewards = [candidate["reward"] for candidate in item["candidates"]]
        assert rewards == sorted(rewards, reverse=True)
        for candidate in item["candidates"]:
            assert len(candidate["token_ids"]) == len(candidate["log_probs"]) > 0
            assert candidate["iteration"] == item["iteration"] or candidate["origin"] == "remembered"
            if candidate["origin"] == "sampled":
                assert {span["version"] for span in candidate["versions"]} == {item["iteration"]}


def test_the_model_loads_in_transformers_and_has_learned(run, tiny_policy):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from larpo.recipe import load_config

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run / "model"), AutoTokenizer.from_pretrained(run / "model")
    turn = [{"role": "user", "content": "Say something about 3."}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    letters = [tokenizer.convert_tokens_to_ids(chr(code)) for code in range(ord("a"), ord("z") + 1)]
    base = AutoModelForCausalLM.from_pretrained(tiny_policy)
    with torch.no_grad():
        before, after = (m(**ids).logits[0, -1].softmax(-1)[letters].sum() for m in (base, model))
    assert after > before
    assert "larpo" in (run / "model" / "README.md").read_text()
    adapter = run / "adapter"
    assert adapter.exists() == (load_config(str(run / "config.yaml")).policy.lora.rank > 0)
    if adapter.exists():
        import peft

        with torch.no_grad():
            adapted = peft.PeftModel.from_pretrained(base, adapter)(**ids).logits
            torch.testing.assert_close(adapted, model(**ids).logits, atol=1e-3, rtol=1e-3)


def test_the_model_loads_in_vllm(run):
    code = (
        "import sys; from vllm import LLM, SamplingParams\n"
        "if __name__ == '__main__':\n"
        "    llm = LLM(model=sys.argv[1], max_model_len=128, enforce_eager=True, kv_cache_memory_bytes=2**28)\n"
        "    turn = [{'role': 'user', 'content': 'Say something about 3.'}]\n"
        "    print('TOKENS', len(llm.chat(turn, SamplingParams(max_tokens=8))[0].outputs[0].token_ids))\n"
    )
    script = run.parent / "vllm_loads.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(run / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert "TOKENS" in done.stdout, done.stderr[-4000:]
