"""Input that cannot be used ends the command with exit code 2 and one clear error, before Ray or an engine starts."""

import json
import shutil
from pathlib import Path

import pytest
import ray

from scripts.align import main

DRY_OR_NOT = pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry-run"])


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """`refused(*arguments)`: the one error that the command ends with, after the prefix; runs go under `tmp_path`."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))

    def run(*arguments, says=()):
        assert main([str(argument) for argument in arguments]) == 2
        errors = capsys.readouterr().err
        assert errors.count("error: ") == 1
        assert errors.startswith("error: ")
        assert "Traceback" not in errors
        assert "--resume" not in errors or "already holds another run" in errors or "no recipe given" in errors
        for part in says:
            assert str(part) in errors
        assert not (tmp_path / "runs").exists()
        return errors.removeprefix("error: ")

    return run


@pytest.fixture
def toy(tmp_path, tiny_policy):
    """`toy(lines, key=value, ...)`: arguments of a small run on prompts of these JSONL lines."""

    def make(lines=None, *overrides):
        lines = [json.dumps({"text": f"Say {n}."}) for n in range(8)] if lines is None else lines
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(line + "\n" for line in lines))
        return [
            "quickstart",
            f"run.output_dir={tmp_path / 'runs'}",
            "run.name=toy",
            f"policy.model={tiny_policy}",
            "policy.dtype=float32",
            f"prompts.source={prompts}",
            "prompts.tasks={}",
            "prompts.columns.prompt=text",
            "prompts.train_count=",
            "prompts.heldout_count=2",
            "reward.name=larpo.verifiers:last_number",
            "training.prompts_per_iteration=4",
            "training.lists_per_step=2",
            "telemetry.wandb=false",
            *overrides,
        ]

    return make


def test_the_toy_run_would_start(toy, capsys):
    """What the refusals below differ from: without their mistake the same arguments pass."""
    assert main([*toy(), "--dry-run"]) == 0
    assert "plan of toy" in capsys.readouterr().out


def test_the_cost_of_evaluation_is_told_before_it_is_paid(toy, capsys):
    knobs = ["evaluation.every_steps=1", "evaluation.best_metric=reward", "evaluation.patience=3"]
    assert main([*toy(None, *knobs), "--dry-run"]) == 0  # 2 iterations of 2 steps, 2 held-out prompts, 4 + 1 responses
    printed = capsys.readouterr().out
    assert "at most 5 times, 2 of them within iterations, each 2 prompts x (4 samples + 1 greedy) = 50 resp" in printed
    assert "the policy with the best reward is kept; ends after 3 without a gain" in printed


def test_the_plan_of_an_elastic_pool_shows_its_range(toy, capsys):
    """What it must have has to fit; what it may ask for need not, for the autoscaler brings it."""
    assert main([*toy(None, "samplers.max_count=1000", "reward.replicas=1"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "samplers      1 x 1 CPU, from 1 to 1000, about" in printed
    assert "cluster       2 CPU at least, 1001 CPU with all samplers" in printed


def test_options_may_stand_between_overrides(toy, capsys):
    recipe, *overrides = toy()
    assert main([recipe, overrides[0], "--dry-run", *overrides[1:]]) == 0
    assert "plan of toy" in capsys.readouterr().out


# --- Recipe and knobs


@DRY_OR_NOT
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["quikstart"], ["'quikstart'", "did you mean 'quickstart'?", "smollm2-ifeval"]),
        (["no/such/recipe.yaml"], ["no/such/recipe.yaml", "cannot be read"]),
        (["quickstart", "training.iteration=3"], ["training.iteration", "did you mean training.iterations?"]),
        (["quickstart", "trainig.iterations=3"], ["trainig", "training"]),
        (["quickstart", "sampling.k=eight"], ["sampling.k = 'eight'", "must be a whole number"]),
        (["quickstart", "sampling.k=1.5"], ["sampling.k = 1.5", "must be a whole number"]),
        (["quickstart", "sampling.k=1"], ["sampling.k = 1", "must be at least 2"]),
        (["quickstart", "training.zero_stage=4"], ["training.zero_stage = 4", "must be at most 3"]),
        (["quickstart", "overlap=sometimes"], ["overlap = 'sometimes'", "'none'", "'stream'"]),
        (["quickstart", "objective.name=lambdarnk"], ["'lambdarnk'", "did you mean 'lambdarank'?"]),
        (["quickstart", "lists.selection.top=5", "sampling.k=6"], ["top + bottom = 7", "sampling.k is 6"]),
        (["quickstart", "sampling.max_new_tokens=999"], ["samplers.max_model_len = 256", "192 + 999 = 1191"]),
        (["quickstart", "training.iterations"], ["'training.iterations'", "must be section.key=value"]),
        (["quickstart", "run.name=a/b"], ["run.name = 'a/b'", "folder name"]),
        (["quickstart", "reward.name=reasoning_gim"], ["reasoning_gim", "ifeval", "module:function"]),
        (["quickstart", "reward.name=nomodule_here:f"], ["nomodule_here", "PYTHONPATH"]),
        (["quickstart", "policy.lora.alpha=8"], ["policy.lora.alpha is given, but policy.lora.rank is 0"]),
        (
            ["quickstart", "policy.lora.rank=4", "policy.lora.target_modules=[]"],
            ["modules = []", "[all-linear]"],
        ),
        (
            ["quickstart", "policy.lora.rank=4", "policy.lora.target_modules=[all-linear, q_proj]"],
            ["all-linear stands for every name"],
        ),
        (
            ["quickstart", "policy.lora.rank=4", "policy.lora.target_modules=q_proj"],
            ["must be a list", "[q_proj]"],
        ),
        (["quickstart", "policy.lora.rank=4", "policy.lora.dropout=1.0"], ["dropout = 1.0", "less than 1"]),
        ([], ["no recipe given"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_recipes_and_knobs(refused, dry, arguments, says):
    refused(*arguments, *dry, says=says)


@DRY_OR_NOT
def test_several_mistakes_are_told_at_once(refused, dry):
    refused("quickstart", "sampling.k=0", "training.itertions=2", *dry, says=["2 to change", "sampling.k", "itertions"])


@DRY_OR_NOT
def test_a_recipe_that_is_no_yaml_names_the_line(refused, dry, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("training:\n  iterations: 2\n  iterations: 3\n")
    refused(recipe, *dry, says=["mine.yaml, line 3", "'iterations' is written twice"])


# --- Prompts


@DRY_OR_NOT
def test_a_missing_file(refused, dry, toy, tmp_path):
    refused(*toy(None, "prompts.source=lost/prompts.jsonl"), *dry, says=["'lost/prompts.jsonl'", "no such file"])


@DRY_OR_NOT
def test_a_dataset_without_the_mapped_columns(refused, dry, toy):
    says = ["prompts.jsonl, line 1", "no column 'question'", "text"]
    refused(*toy(None, "prompts.columns.prompt=question"), *dry, says=says)


@DRY_OR_NOT
@pytest.mark.parametrize(
    ("knob", "says"),
    [
        ("target_modules=[q_proj, gate]", ["['gate']", "choose from down_proj, gate_proj, k_proj", "all-linear"]),
        ("rank=65", ["policy.lora.rank = 65", "k_proj has 128 inputs and 64 outputs"]),
    ],
)
def test_adapters_that_the_policy_cannot_have(refused, dry, toy, knob, says):
    refused(*toy(None, "policy.lora.rank=4", f"policy.lora.{knob}"), *dry, says=says)


@DRY_OR_NOT
def test_malformed_jsonl_names_its_line(refused, dry, toy):
    refused(
        *toy(['{"text": "fine"}', "", '{"text": "cut o']), *dry, says=["prompts.jsonl, line 3", "not readable as JSON"]
    )


@DRY_OR_NOT
@pytest.mark.parametrize(
    ("lines", "says"),
    [([], "holds no rows"), (['{"text": "  "}'] * 3, "holds 0 usable prompts")],
    ids=["no lines", "no text"],
)
def test_an_empty_prompt_set(refused, dry, toy, lines, says):
    refused(*toy(lines), *dry, says=["prompts.jsonl", says])


@DRY_OR_NOT
def test_prompts_that_are_all_too_long(refused, dry, toy):
    says = ["0 training prompts are left", "an iteration draws 4", "6 are longer than prompts.max_prompt_tokens = 3"]
    refused(*toy(None, "prompts.max_prompt_tokens=3"), *dry, says=says)


@DRY_OR_NOT
def test_fewer_prompts_than_an_iteration_draws(refused, dry, toy):
    says = ["6 training prompts are left", "an iteration draws 7", "training.prompts_per_iteration"]
    refused(*toy(None, "training.prompts_per_iteration=7"), *dry, says=says)


# --- Policy


@DRY_OR_NOT
def test_a_model_folder_that_is_none(refused, dry, toy, tmp_path):
    (tmp_path / "nothing").mkdir()
    says = [tmp_path / "nothing", "config.json", "tokenizer", "safetensors"]
    refused(*toy(None, f"policy.model={tmp_path / 'nothing'}"), *dry, says=says)
    refused(*toy(None, f"policy.model={tmp_path / 'lost'}"), *dry, says=[tmp_path / "lost", "no such folder"])


@DRY_OR_NOT
def test_a_model_folder_with_damaged_weights(refused, dry, toy, tmp_path, tiny_policy):
    damaged = shutil.copytree(tiny_policy, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"not a model")
    refused(*toy(None, f"policy.model={damaged}"), *dry, says=["model.safetensors", "not readable as safetensors"])


@DRY_OR_NOT
def test_a_tokenizer_without_a_chat_template(refused, dry, toy, tmp_path, tiny_policy, capsys):
    bare = shutil.copytree(tiny_policy, tmp_path / "bare")
    without_template(bare)
    says = ["policy.require_chat_template = True", "no chat template", "policy.require_chat_template=false"]
    refused(*toy(None, f"policy.model={bare}"), *dry, says=says)
    assert main([*toy(None, f"policy.model={bare}", "policy.require_chat_template=false"), "--dry-run"]) == 0


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


# --- Cluster


@DRY_OR_NOT
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("samplers.count=1000", "1001 CPU needed"),
        ("training.workers=500", "501 CPU needed"),
        ("samplers.resources={TPU_pod: 1}", "1 TPU_pod needed, 0 there"),
    ],
)
def test_more_actors_than_the_cluster_can_ever_hold(refused, dry, toy, override, says):
    steps = ("training.lists_per_step=500", "training.prompts_per_iteration=500", "stream.capacity=500")
    lines = [json.dumps({"text": f"Say {n}."}) for n in range(502)]
    refused(*toy(lines, override, *steps), *dry, says=[says, "can never hold", "samplers.count"])


# --- Run folders


@DRY_OR_NOT
def test_an_output_folder_that_holds_another_run(refused, dry, toy, tmp_path):
    other = tmp_path / "others" / "toy"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("run: {name: toy}\n")
    refused(*toy(None, f"run.output_dir={other.parent}"), *dry, says=[other, "already holds another run", "--resume"])
    assert [path.name for path in other.iterdir()] == ["config.yaml"]


@DRY_OR_NOT
def test_an_output_folder_that_cannot_be_made(refused, dry, toy, tmp_path):
    (tmp_path / "file").write_text("in the way")
    says = [f"run.output_dir = '{tmp_path}/file/runs'", "no folder can be made"]
    refused(*toy(None, f"run.output_dir={tmp_path}/file/runs"), *dry, says=says)


@DRY_OR_NOT
def test_resuming_what_is_no_run(refused, dry, tmp_path):
    refused("--resume", tmp_path, *dry, says=[tmp_path, "is not a run folder", "config.yaml"])


@DRY_OR_NOT
def test_resuming_with_other_knobs(refused, dry, toy, tmp_path, capsys):
    from actors.preparation import CONFIG_FILE
    from larpo.recipe import config_to_yaml, load_config

    run = tmp_path / "interrupted"
    run.mkdir()
    recipe, *overrides = toy()
    (run / CONFIG_FILE).write_text(config_to_yaml(load_config(recipe, overrides)))
    says = ["training.epochs: 1 -> 3", "objective.beta: 0.1 -> 0.5", "start a new run"]
    refused("--resume", run, "training.epochs=3", "objective.beta=0.5", *dry, says=says)
    assert main(["--resume", str(run), "training.epochs=1", "--dry-run"]) == 0
