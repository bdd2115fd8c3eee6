"""Reward-model training by Ray Train and DeepSpeed, on tiny random models, against AdamW steps of plain torch."""

import json
import threading
import time
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification

from actors.reward_preparation import prepare_reward_run
from actors.reward_stage import train_on_ray
from actors.reward_trainer import AFTER
from larpo.classifier_reward import ClassifierReward
from larpo.config import Lora
from larpo.errors import TrainingError
from larpo.reward_config import Classifier
from larpo.reward_data import reward_preferences
from larpo.reward_model import load_trainable
from larpo.reward_step import planned_batches
from larpo.reward_training_config import RewardTraining
from tests.toy_runs import train_workers

ROWS = 14
RATE = 1e-2


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    """Pairs whose better answer says yes, of unequal length, with a margin."""
    path = tmp_path_factory.mktemp("preferences") / "pairs.jsonl"
    rows = [
        {
            "id": f"p{number}",
            "prompt": f"Question {number}?",
            "chosen": "yes " * (1 + number % 3),
            "rejected": "no, never" + " at all" * (number % 2),
            "margin": number % 3 / 2,
        }
        for number in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run_of(pairs_file, tiny_policy):
    """`run_of(folder, training=..., ...)`: a prepared run on the pairs, from the tiny language model in float32."""

    def make(folder, *, base=tiny_policy, dtype="float32", **sections):
        optimizer = {"learning_rate": RATE, "eps": 1e-4, "warmup": 0.0, "weight_decay": 0.1, "clip_norm": 0.5}
        training = {"lists_per_step": 4, "batch_tokens": 400, "threads": 1, "optimizer": optimizer}
        values = {
            "base": {"model": str(base), "dtype": dtype},
            "preferences": {
                "source": str(pairs_file),
                "heldout_count": 4,
                "columns": {"id": "id", "prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
            },
            "degenerate": False,
            "bootstrap": 100,
            "telemetry": {"console": "off", "wandb": False},
            "timeouts": {"step_s": 300.0},
        }
        values["preferences"]["columns"] |= sections.pop("columns", {"margin": "margin"})
        values["training"] = training | sections.pop("training", {})
        config = RewardTraining.model_validate(values | sections)
        return prepare_reward_run(config, folder, resumed=False)

    return make


def plain_weights(run):
    """Float32 weights after torch's AdamW on the mean Bradley-Terry loss of each batch, a conversation at a time."""
    training = run.config.training
    model = load_trainable(run.folder / "checkpoints" / "untrained", run.config.base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1)
    ids = [item.prompt_id for item in run.sets.train]
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for batch in planned_batches(ids, epochs=training.epochs, lists_per_step=training.lists_per_step, seed=0):
        loss = 0.0
        for item in (run.sets.train[index] for index in batch):
            won, lost = (model(torch.tensor([c.ids])).logits[0, 0] for c in item.conversations)
            loss = loss - logsigmoid(won - lost - item.margin) / len(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = RATE
        optimizer.step()
    return start, dict(model.named_parameters())


def distance(folder, start, expected) -> float:
    """Largest difference to the expected weights, over the largest change since the start."""
    found = load_file(folder / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    apart = max(float((found[name].float() - expected[name].detach()).abs().max()) for name in expected)
    moved = max(float((expected[name].detach() - start[name]).abs().max()) for name in expected)
    print(f"distance {apart / moved:.2e}")
    return apart / moved


def assert_scores_as_measured(run):
    """The written folder gives the held-out answers the rewards that the trained module gave them in its ranks."""
    measured = json.loads((run.folder / "evaluation" / f"{AFTER}.json").read_text())
    reward = ClassifierReward(Classifier(model=str(run.folder / "model"), dtype="float32"))
    heldout = reward_preferences(run.config).heldout
    assert measured.keys() == {item.prompt.id for item in heldout}
    for item in heldout:
        scored = [found.value for found in reward.score(item.prompt, item.responses)]
        assert measured[item.prompt.id][: len(scored)] == pytest.approx(scored, abs=1e-4)


def test_a_language_model_becomes_a_reward_model(local_ray, run_of, tmp_path):
    """Two workers take plain AdamW's steps, and the folder scores as the trained module did."""
    run = run_of(tmp_path / "run", training={"epochs": 2, "workers": 2})
    results = train_on_ray(run)
    assert distance(run.folder, *plain_weights(run)) < 1e-3
    assert results.metrics["pairs/accuracy_after"] == 1.0

    assert_scores_as_measured(run)
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    assert [step["train/lists"] for step in steps] == [4, 4, 2, 4, 4, 2]
    assert records[-1]["event"] == "done"
    assert "calibration" in (run.folder / "report.html").read_text()
    assert "Bradley" not in (run.folder / "model" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_stages_and_workers_take_the_same_steps(local_ray, run_of, tmp_path, wider_policy, stage):
    """One worker, and two of unequal numbers of passes."""
    one = run_of(tmp_path / "one", base=wider_policy, training={"zero_stage": stage})
    two = run_of(tmp_path / "two", base=wider_policy, training={"zero_stage": stage, "workers": 2, "batch_tokens": 90})
    for run in (one, two):
        train_on_ray(run)
        assert distance(run.folder, *plain_weights(run)) < 5e-3  # gradients of norm 100 and more magnify rounding


@pytest.mark.slow
def test_lists_by_plackett_luce_with_degenerate_answers_train_an_encoder_in_bfloat16(local_ray, run_of, tmp_path):
    """The bundled encoder's head and pooler alone: the rest of the folder is the base's."""
    run = run_of(
        tmp_path / "run",
        base="minilm",
        dtype="bfloat16",
        columns={},
        degenerate=True,
        training={"loss": "plackett_luce", "epochs": 4, "batch_tokens": 2000},
    )
    base = run.config.base.model_copy(update={"trained": "head"})
    results = train_on_ray(replace(run, config=run.config.model_copy(update={"base": base})))
    before = load_file(run.folder / "checkpoints" / "untrained" / "model.safetensors")
    after = load_file(run.folder / "model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    head = {f"{part}.{kind}" for part in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")}
    assert changed <= head
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= changed
    assert results.metrics["pairs/brier_after"] < results.metrics["pairs/brier_before"]


@pytest.mark.slow
def test_adapters_are_merged_into_the_folder(local_ray, run_of, tmp_path):
    run = run_of(tmp_path / "run", training={"workers": 2})
    base = run.config.base.model_copy(update={"lora": Lora(rank=4, alpha=8)})
    run = replace(run, config=run.config.model_copy(update={"base": base}))
    train_on_ray(run)
    assert_scores_as_measured(run)
    names = load_file(run.folder / "model" / "model.safetensors").keys()
    assert not [name for name in names if "lora" in name]

    untrained = run.folder / "checkpoints" / "untrained"
    fresh = AutoModelForSequenceClassification.from_pretrained(untrained, dtype=torch.float32)
    own = peft.PeftModel.from_pretrained(fresh, run.folder / "adapter").merge_and_unload()
    merged = load_file(run.folder / "model" / "model.safetensors")
    torch.testing.assert_close(merged, dict(own.named_parameters()), atol=1e-6, rtol=1e-6)
    start = load_file(untrained / "model.safetensors")
    assert not torch.equal(merged["score.weight"], start["score.weight"])
    assert torch.equal(merged["model.embed_tokens.weight"], start["model.embed_tokens.weight"])
    (checkpoint,) = (path for path in run.folder.glob("checkpoints/position-*"))
    written = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert written < (untrained / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(local_ray, run_of, tmp_path):
    """Ray Train starts the group again from the newest checkpoint; the weights are those of a run without a death."""
    knobs = {"training": {"epochs": 12, "workers": 2}, "checkpoints": {"every_steps": 2}}
    calm, killed = run_of(tmp_path / "calm", **knobs), run_of(tmp_path / "killed", **knobs)
    train_on_ray(calm)
    dead = []

    def kill_one():
        while not (killed.folder / "checkpoints" / "position-00000004" / "manifest.json").exists():
            time.sleep(0.02)
        workers = train_workers()
        workers[-1].kill()
        dead.append(workers[-1].pid)

    threading.Thread(target=kill_one, daemon=True).start()
    train_on_ray(killed)
    assert dead
    records = [json.loads(line) for line in (killed.folder / "metrics.jsonl").read_text().splitlines()]
    failures = [record for record in records if record["event"] == "failure"]
    ended = {failure["actor"] for failure in failures if "its process ended" in failure["reason"]}
    assert ended in ({"trainer-0"}, {"trainer-1"}), failures  # ranks need not begin in order
    expected, found = (load_file(run.folder / "model" / "model.safetensors") for run in (calm, killed))
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() < 1e-6, name


@pytest.mark.slow
def test_a_loss_that_is_never_finite_ends_the_run_with_its_cause(local_ray, run_of, tmp_path):
    optimizer = {"learning_rate": 1.0, "clip_norm": 1e30, "warmup": 0.0}
    run = run_of(tmp_path / "run", training={"epochs": 40, "optimizer": optimizer})
    lists = tuple(replace(item, margin=float("nan")) for item in run.sets.train)
    with pytest.raises(TrainingError, match="not finite in 3 steps in a row"):
        train_on_ray(replace(run, sets=replace(run.sets, train=lists)))
