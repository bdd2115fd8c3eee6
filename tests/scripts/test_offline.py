"""Fine-tuning and offline preference training as a user starts them: Ray Train and DeepSpeed, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import ray
import yaml

from larpo.errors import DataError
from scripts import align, offline, sft

ROOT = Path(__file__).parents[2]
WORDS = ("red", "blue", "green", "black", "white")


def rows() -> list[dict]:
    """Pairs that differ in their form, which a policy learns in a few steps and finds again in other questions."""
    words = [(n, WORDS[n % 5]) for n in range(40)]
    return [{"prompt": f"What is {n}?", "chosen": f"yes {word}", "rejected": f"NO {word}"} for n, word in words]


def write_recipe(folder: Path, policy: Path, objective: str, **training) -> Path:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    recipe = {
        "run": {"output_dir": str(folder / "runs"), "name": "toy"},
        "policy": {"model": str(policy), "dtype": "float32"},
        "preferences": {
            "source": str(folder / "pairs.jsonl"),
            "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
            "heldout_count": 8,
        },
        "objective": {"name": objective, "beta": 0.5} if objective != "sft" else {"name": "sft"},
        "training": {
            "iterations": 1,
            "epochs": 2,
            "lists_per_step": 8,
            "row_tokens": 128,
            "threads": 1,
            "optimizer": {"learning_rate": 3e-3},
            **training,
        },
        "stream": {"lists_per_part": 8},
        "checkpoints": {"every_steps": 2},
        "telemetry": {"wandb": False, "console": "plain"},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "toy.yaml"


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def started(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"scripts.{script}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("script", "objective"), [("offline", "dpo"), pytest.param("sft", "sft", marks=pytest.mark.slow)]
)
def test_a_whole_run(tiny_policy, tmp_path, script, objective):
    """It learns what it is shown, on prompts that it did not see, and leaves a model that transformers loads."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from larpo.recipe import load_config

    done = started(script, str(write_recipe(tmp_path, tiny_policy, objective)))
    run = tmp_path / "runs" / "toy"
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    last = records(run)[-1]
    print(done.stdout[-1500:])
    assert last["event"] == "done"
    assert last["given/lists"] == 8
    assert last["given/loss_diff_high"] < 0
    assert f"{last['given/loss_after']:.4f}" in done.stdout
    if objective == "dpo":
        assert last["given/score_accuracy_before"] == 0.5
        assert last["given/score_accuracy_after"] == 1.0
        assert last["given/loss_before"] == pytest.approx(0.6931, abs=1e-3)
    assert not {name for record in records(run) for name in record if name.startswith(("sampler/", "heldout/"))}
    assert {record["actor"] for record in records(run) if record["event"] == "span"} == {"trainer-0"}
    lists = datasets.load_dataset("parquet", data_files=str(run / "lists" / "**" / "*.parquet"), split="train")
    assert len(lists) == 32
    assert load_config(str(run / "config.yaml")).training.prompts_per_iteration == 32
    assert "difference [95% interval]" in (run / "report.html").read_text()
    AutoModelForCausalLM.from_pretrained(run / "model")
    assert AutoTokenizer.from_pretrained(run / "model").chat_template
    assert "larpo" in (run / "model" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("script", "objective"), [("offline", "dpo"), ("sft", "sft")])
def test_a_whole_run_with_adapters(tiny_policy, tmp_path, script, objective):
    """`model/` is no longer the base, and needs no peft; `adapter/` alone makes the same of the base."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    lora = ("policy.lora.rank=4", "policy.lora.alpha=8", "training.optimizer.learning_rate=1e-2")
    done = started(script, str(write_recipe(tmp_path, tiny_policy, objective)), *lora)
    run = tmp_path / "runs" / "toy"
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    last = records(run)[-1]
    assert last["given/loss_after"] < last["given/loss_before"]
    base, bare, merged = (AutoModelForCausalLM.from_pretrained(at) for at in (tiny_policy, tiny_policy, run / "model"))
    adapted = peft.PeftModel.from_pretrained(bare, run / "adapter")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before, after, beside = (model(input_ids=ids).logits for model in (base, merged, adapted))
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(beside, after, atol=1e-3, rtol=1e-3)
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["r"] == 4
    assert not (run / "model" / "adapter_config.json").exists()
    assert "adapters are merged" in (run / "model" / "README.md").read_text()


RANKED = {"NO": 0.0, "no": 0.4, "so": 0.7, "yes": 1.0}  # how an answer begins -> its reward


@pytest.mark.slow
def test_a_whole_run_on_ranked_lists(tiny_policy, tmp_path):
    """Four answers a prompt and an objective that reads their whole order, which held-out prompts then show."""
    from larpo.records import read_lists

    recipe = write_recipe(tmp_path, tiny_policy, "listmle", epochs=6)
    listed = [
        {"prompt": row["prompt"], "responses": [f"{form} {row['chosen'].split()[1]}" for form in RANKED]}
        | {"rewards": list(RANKED.values())}
        for row in rows()
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    columns = "preferences.columns={prompt: prompt, responses: responses, rewards: rewards}"
    done = started("offline", str(recipe), columns, "lists.selection.policy=all")
    run = tmp_path / "runs" / "toy"
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    last = records(run)[-1]
    assert last["given/lists"] == 8
    assert last["given/loss_diff_high"] < 0
    assert last["given/score_accuracy_before"] == 0.5
    assert last["given/score_accuracy_after"] > 0.8
    lists = list(read_lists(run / "lists"))
    assert len(lists) == 32
    assert all({c.text.split()[0]: c.reward for c in item.candidates} == RANKED for item in lists)
    told = [record for record in records(run) if record["event"] == "lists"]
    assert {record["lists/size"] for record in told} == {4.0}
    assert all(record["lists/reward_gap"] == pytest.approx(1.0 - (0.0 + 0.4 + 0.7) / 3) for record in told)
    steps = [record["train/lists"] for record in records(run) if record["event"] == "step"]
    assert sum(steps) == 6 * 32


@pytest.mark.slow
@pytest.mark.parametrize("script", ["offline", "sft"])
def test_a_run_that_is_killed_goes_on_and_trains_on_each_list_once_an_epoch(tiny_policy, tmp_path, script):
    from actors.checkpoints import newest_checkpoint

    recipe = write_recipe(tmp_path, tiny_policy, {"offline": "dpo", "sft": "sft"}[script], epochs=4)
    run = tmp_path / "runs" / "toy"
    command = [sys.executable, "-m", f"scripts.{script}", str(recipe)]
    with open(tmp_path / "log.txt", "w") as log:
        driver = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 200
    while not any(run.glob("checkpoints/position-*/manifest.json")) and time.monotonic() < deadline:
        assert driver.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not [record for record in records(run)[-1:] if record["event"] == "done"]
    base = (run / "evaluation" / "given-0000.json").read_text()
    done = started(script, "--resume", str(run))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert (run / "evaluation" / "given-0000.json").read_text() == base
    _, state, _ = newest_checkpoint(run / "checkpoints")
    expected = Counter(dict.fromkeys(state.journal.consumed["0/0"], 1))
    assert len(expected) == 32
    assert {key: Counter(ids) for key, ids in state.journal.consumed.items()} == {
        f"0/{epoch}": expected for epoch in range(4)
    }
    assert records(run)[-1]["event"] == "done"


# --- Refused before anything starts


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path, tiny_policy):
    """`refused(main, objective, overrides)`: the one error that a command ends with."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))

    def run(main, objective, *overrides):
        assert main([str(write_recipe(tmp_path, tiny_policy, objective)), *overrides]) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("error: ")
        assert "Traceback" not in errors
        assert not (tmp_path / "runs").exists()
        return errors

    return run


def test_a_recipe_of_another_command_is_refused_with_its_name(refused):
    assert "start scripts.sft" in refused(offline.main, "sft")
    assert "start scripts.offline" in refused(sft.main, "dpo")
    assert "start it with scripts.offline" in refused(align.main, "dpo")


def test_a_recipe_without_a_dataset_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    assert offline.main(["quickstart", "--dry-run"]) == 2
    assert "preferences.source is not given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("preferences.columns.chosen=lost",), "no column 'lost' (40 rows). Its columns are prompt, chosen, rejected"),
        (("training.lists_per_step=33",), "training.lists_per_step = 33: there are 32 training lists"),
        (("training.row_tokens=30",), "no training list is left: 32 lists left out"),
        (("training.prompts_per_iteration=7",), "takes all its 32 training lists"),
        (
            ("preferences.columns={prompt: prompt, response: chosen}",),
            "objective.name = 'dpo': compares answers, and every prompt",
        ),
        (("preferences.source=nowhere.jsonl",), "preferences.source = 'nowhere.jsonl': there is no such file"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_refused(refused, overrides, says):
    assert says in refused(offline.main, "dpo", *overrides)


def test_a_run_goes_on_with_the_answers_that_it_began_with(tiny_policy, tmp_path):
    from actors.offline_preparation import prepare_offline
    from actors.preparation import create_folder
    from larpo.recipe import load_config

    recipe = write_recipe(tmp_path, tiny_policy, "dpo")
    folder = tmp_path / "runs" / "toy"
    create_folder(prepare_offline(load_config(str(recipe)), folder, resumed=False))
    kept = load_config(str(folder / "config.yaml"))  # with the number of lists, which the dataset gave
    create_folder(prepare_offline(kept, folder, resumed=True))
    data = tmp_path / "pairs.jsonl"
    data.write_text(data.read_text().replace("yes red", "yes rose"))
    with pytest.raises(DataError, match="was begun with other answers than are there now"):
        create_folder(prepare_offline(kept, folder, resumed=True))


def test_a_dry_run_asks_for_a_trainer_and_nothing_else(tiny_policy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    samplers = "samplers.resources={GPU: 64}"  # none of these is started
    assert offline.main([str(write_recipe(tmp_path, tiny_policy, "dpo")), samplers, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "32 training with 64 answers" in plan
    assert "8 held out" in plan
    assert "no sampler, no reward model" in plan
    assert not (tmp_path / "runs").exists()
