"""A grid of arms: what is planned, what arms share, and a real one from end to end."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from actors.grid import _source, make_grid, run_grid
from actors.grid_sweeps import grid_sweeps, run_sweeps, sweep_results
from actors.sharing import evaluation_knobs, lists_knobs
from larpo.errors import ConfigError, DataError
from larpo.experiment import ArmResult
from larpo.recipe import config_to_yaml, load_config
from larpo.records import read_lists
from larpo.sweep_over_seeds import SweepResult

ROOT = Path(__file__).parents[2]
REWARD = """
def share_of_small_letters(prompt, response):
    return sum("a" <= character <= "z" for character in response) / max(1, len(response))
"""


def test_every_arm_comes_once_before_any_comes_twice(tmp_path):
    grid = make_grid("small-objectives", [f"run.output_dir={tmp_path}"], [0, 1], None)
    assert [(run.seed, run.arm) for run in grid.runs[:5]] == [
        (0, "pairwise"),
        (0, "contrastive"),
        (0, "lambdarank"),
        (0, "listmle"),
        (1, "pairwise"),
    ]
    assert grid.runs[4].config.run.seed == 1
    assert grid.runs[0].folder == tmp_path / "small-objectives" / "pairwise-seed0"
    assert grid.results() == []


def test_a_recipe_without_a_grid_is_refused():
    with pytest.raises(ConfigError, match=r"quickstart: has no grid; run it by itself: python -m scripts\.align"):
        make_grid("quickstart", [], [0], None)


def test_a_result_of_other_knobs_is_not_taken_for_this_one(tmp_path):
    grid = make_grid("small-objectives", [], [0], tmp_path)
    run = grid.runs[0]
    done = {"heldout/reward_before": 0.1, "heldout/reward_after": 0.2}
    result = ArmResult(run.arm, 0, done, {}, {}, json.loads(json.dumps(run.knobs)), {})
    run.result.write_text(result.to_json())
    assert [found.arm for found in grid.results()] == ["pairwise"]
    with pytest.raises(DataError, match=r"is of other knobs: sampling\.k: 8 -> 4\. Remove it, or give other folders"):
        make_grid("small-objectives", ["sampling.k=4"], [0], tmp_path).results()
    slower = make_grid("small-objectives", ["policy.dtype=float32", "samplers.lease_s=900"], [0], tmp_path)
    assert [found.arm for found in slower.results()] == ["pairwise"]


def test_a_run_folder_of_other_knobs_is_not_resumed_for_this_one(tmp_path):
    """Whatever folder the results go to: the run's own is the same."""
    old, new = (
        make_grid("small-objectives", [f"run.output_dir={tmp_path}", f"sampling.k={k}"], [0], tmp_path / f"results-{k}")
        for k in (8, 4)
    )
    folder = old.runs[0].folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config_to_yaml(old.runs[0].config))
    with pytest.raises(DataError, match=rf"{folder} is of other knobs: sampling\.k: 8 -> 4\. Remove it"):
        run_grid(new, print)
    assert not list(tmp_path.glob("results-4/*"))


@pytest.mark.parametrize(("dtype", "shares"), [("float32", True), ("bfloat16", False)])
def test_an_arm_shares_what_was_sampled_in_its_own_type(tmp_path, dtype, shares):
    """As it was written with the run: `auto` may have been another on another machine."""
    first, second, *_ = make_grid(
        "small-objectives", [f"run.output_dir={tmp_path}", "policy.dtype=float32"], [0], None
    ).runs
    first.folder.mkdir(parents=True)
    written = load_config("small-objectives:pairwise", [f"policy.dtype={dtype}"])
    (first.folder / "config.yaml").write_text(config_to_yaml(written))
    assert _source(second, [first]) == (first if shares else None)


@pytest.mark.parametrize(
    ("override", "lists", "evaluation"),
    [
        ("objective.name=listmle", True, True),
        ("lists.memory=current", True, True),
        ("training.optimizer.learning_rate=1e-4", True, True),
        ("sampling.temperature_by_iteration=[1.0, 0.7]", True, True),
        ("sampling.temperature_by_iteration=[0.7, 1.0]", False, True),
        ("sampling.k=4", False, True),
        ("lists.negatives=random", False, True),
        ("run.seed=1", False, True),
        ("evaluation.samples=2", True, False),
        ("prompts.split_seed=1", False, False),
        ("sampling.max_new_tokens=16", False, False),
        ("reward.failed_reward=-1.0", False, False),
        ("policy.dtype=float32", False, False),
    ],
)
def test_what_two_runs_have_in_common(override, lists, evaluation):
    base, other = load_config("quickstart"), load_config("quickstart", [override])
    assert (lists_knobs(base) == lists_knobs(other)) is lists
    assert (evaluation_knobs(base) == evaluation_knobs(other)) is evaluation


def sweeps_of(recipe: str, tmp_path: Path, *overrides: str):
    return grid_sweeps(make_grid(recipe, [f"run.output_dir={tmp_path}", *overrides], [0, 1], None))


def test_arms_that_are_evaluated_alike_share_a_sweep_under_each_seed(tmp_path):
    first, second = sweeps_of("small-objectives", tmp_path, "evaluation.sweep.arms=trained")
    home = tmp_path / "small-objectives"
    assert [name for name, _ in first.models] == ["base", "pairwise", "contrastive", "lambdarank", "listmle"]
    assert first.models[1][1] == str(home / "pairwise-seed0" / "model")
    assert (first.seed, second.seed) == (0, 1)
    assert second.result == home / "results" / "sweeps" / "pairwise-seed1.json"


def test_policies_as_they_are_stand_side_by_side_where_the_questions_are_the_same(tmp_path):
    """Figure 2: nothing is trained, two policies answer each set of problems, once for all seeds."""
    grid = make_grid("paper-figure-2", [f"run.output_dir={tmp_path}"], [0, 1], None)
    assert not any(run.trains for run in grid.runs)
    assert [sweep.models for sweep in grid_sweeps(grid)] == [
        [
            (f"mathstral.{problems}", "mistralai/Mathstral-7B-v0.1"),
            (f"mistral.{problems}", "mistralai/Mistral-7B-Instruct-v0.2"),
        ]
        for problems in ("gsm8k", "math")
    ]


def test_arms_with_other_rewards_or_without_held_out_prompts_are_apart(tmp_path):
    """Table 2: two base policies; runs with PairRM have no held-out rewards."""
    sweeps = sweeps_of("paper-table-2", tmp_path)
    assert len(sweeps) == 4
    assert all(name == "base" or name.endswith("fsfairx") for sweep in sweeps for name, _ in sweep.models)
    assert grid_sweeps(make_grid("small-objectives", [], [0], None)) == []


def test_the_command_of_a_sweep_is_one_that_evaluate_takes(tmp_path):
    from actors.evaluation_inputs import chosen
    from scripts.evaluate import parser

    sweep = sweeps_of("small-recall", tmp_path)[0]
    options = parser().parse_intermixed_args(sweep.command[3:])
    config, _, models = chosen(options.recipe, options.overrides, None, options.model)
    assert models == sweep.models
    assert config.evaluation.sweep == sweep.sweep
    assert Path(options.out) == sweep.folder


def test_a_sweep_waits_for_no_arm_that_is_gone(tmp_path):
    sweeps = sweeps_of("small-recall", tmp_path)
    with pytest.raises(DataError, match=r"aligned-seed0 has no model any more; remove .*aligned-seed0\.json to train"):
        run_sweeps(sweeps, print)


def kept(sweep, **changed) -> None:
    """Writes a result of that sweep without numbers."""
    result = SweepResult(
        sweep.name, sweep.seed, sweep.fingerprints, {"sweep": sweep.sweep.model_dump(mode="json")}, sweep.knobs, {}
    )
    sweep.result.parent.mkdir(parents=True, exist_ok=True)
    sweep.result.write_text(replace(result, **changed).to_json())


def test_a_sweep_of_other_knobs_is_not_taken_for_this_one(tmp_path):
    (sweep, _), (other, _) = (sweeps_of("small-recall", tmp_path, f"sampling.max_new_tokens={n}") for n in (32, 16))
    kept(sweep)
    assert [found.name for found in sweep_results([sweep])] == ["aligned"]
    with pytest.raises(DataError, match=r"of other knobs: sampling\.max_new_tokens: 32 -> 16"):
        sweep_results([other])


def test_a_sweep_of_an_arm_that_was_trained_anew_is_none_of_this_one(tmp_path):
    sweep, _ = sweeps_of("small-recall", tmp_path)
    run = sweep.runs[0]
    run.result.parent.mkdir(parents=True)
    run.result.write_text("as it was")
    kept(sweep)
    assert sweep_results([sweep])
    before = sweep.folder
    run.result.write_text("as it is")
    assert not sweep_results([sweep])
    assert sweep.folder != before, "which the evaluation would refuse"


def test_other_cutoffs_are_reckoned_anew_from_the_samples_that_are_there(tmp_path):
    sweep, _ = sweeps_of("small-recall", tmp_path)
    other, _ = sweeps_of("small-recall", tmp_path, "evaluation.sweep.cutoffs=[1,3]")
    kept(sweep)
    assert not sweep_results([other])
    assert other.folder == sweep.folder


def test_what_is_asked_afterwards_is_no_matter_of_what_was_trained(tmp_path):
    grid = make_grid("small-objectives", [], [0], tmp_path)
    run = grid.runs[0]
    knobs = json.loads(json.dumps(run.knobs))
    run.result.write_text(ArmResult(run.arm, 0, {"heldout/reward_before": 0.1}, {}, {}, knobs, {}).to_json())
    asked = make_grid(
        "small-objectives", ["evaluation.sweep.arms=trained", "evaluation.sweep.samples=3"], [0], tmp_path
    )
    assert [found.arm for found in asked.results()] == ["pairwise"]


@pytest.mark.parametrize(
    ("label", "more", "told"),
    [
        ("1+3", "", "the arm '1+3' names a model, by letters, digits, dots and dashes"),
        ("base", "", "and not 'base'; give its labels other names"),
        ("a", "prompts: {heldout_count: 0}", "prompts.heldout_count is 0; hold some out, or set none"),
        (
            "a",
            "reward: {kind: weighted, parts: [{kind: pairwise, ranker: {model: m}}]}",
            "rewards of kind pairwise compare within one list alone; set none",
        ),
        (
            "a",
            "reward: {kind: callable, name: 'm:f'}",
            "rewards of kind callable compare within one list alone; set none, or another reward (a function of yours",
        ),
        (
            "a",
            "reward: {kind: weighted, parts: [{name: reasoning_gym}, {kind: callable, name: 'm:f'}]}",
            "rewards of kind callable compare",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_trained(tmp_path, label, more, told):
    file = tmp_path / "grid.yaml"
    sweep = "evaluation: {each_iteration: false, sweep: {arms: trained}}"
    file.write_text(f"extends: small\n{sweep}\n{more}\ngrid: {{objective: {{{label}: {{}}}}}}\n")
    with pytest.raises(ConfigError) as caught:
        grid_sweeps(make_grid(str(file), [], [0], None))
    assert told in str(caught.value)


def test_a_sweep_of_another_policy_is_none_of_this_one(tmp_path):
    sweep, *_ = sweeps_of("paper-figure-2", tmp_path)
    kept(sweep, fingerprints=sweep.fingerprints | {"mistral.gsm8k": "another/model"})
    assert not sweep_results([sweep])


# --- Real runs


def grid_recipe(folder: Path, policy: Path) -> dict:
    return {
        "policy": {"model": str(policy), "dtype": "float32"},
        "prompts": {
            "source": str(folder / "prompts.jsonl"),
            "columns": {"prompt": "question"},
            "heldout_count": 4,
            "max_prompt_tokens": 64,
        },
        "sampling": {"k": 4, "max_new_tokens": 12},
        "reward": {"name": "toy_reward:share_of_small_letters"},
        "training": {"iterations": 1, "prompts_per_iteration": 12, "lists_per_step": 4, "threads": 1},
        "samplers": {"resources": {"CPU": 0}, "max_model_len": 128, "max_num_seqs": 32, "enforce_eager": True},
        "telemetry": {"wandb": False},
        "grid": {
            "arm": {
                "order": {"objective": {"name": "listmle"}},
                "pair": {
                    "objective": {"name": "pairwise"},
                    "lists": {"selection": {"policy": "best_vs_worst"}},
                    "evaluation": {"sweep": {"arms": "trained", "samples": 2, "list_size": 0}},
                },
                "borrowed": {"lists": {"negatives": "random"}},
            }
        },
    }


@pytest.fixture(scope="module")
def experiment(tiny_policy, tmp_path_factory):
    """Runs `scripts.experiment` on a tiny grid; returns a function that runs it again."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "toy_reward.py").write_text(REWARD)
    rows = [{"question": f"Say something about {n}."} for n in range(16)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "toy.yaml").write_text(yaml.safe_dump(grid_recipe(folder, tiny_policy)))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])

    def run(*more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "scripts.experiment", str(folder / "toy.yaml"), "--seeds", "0", *more]
        command.append(f"run.output_dir={folder / 'runs'}")
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540)

    done = run()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder / "runs" / "toy", done.stdout, run


@pytest.mark.slow
def test_arms_share_what_they_have_in_common(experiment):
    home, _, _ = experiment
    first, second, third = (list(read_lists(home / f"{arm}-seed0" / "lists")) for arm in ("order", "pair", "borrowed"))
    assert first == second
    assert [item.prompt.id for item in third] != []
    assert first[0].candidates != third[0].candidates
    evaluations = {
        (home / f"{arm}-seed0/evaluation/iteration-0000.json").read_text() for arm in ("order", "pair", "borrowed")
    }
    assert len(evaluations) == 1
    assert "the lists of the first iteration come from order-seed0" in (home / "pair-seed0.log").read_text()
    log = [json.loads(line) for line in (home / "pair-seed0/metrics.jsonl").read_text().splitlines()]
    assert any(record["event"] == "evaluation" and record["label"] == "base policy" for record in log)


@pytest.mark.slow
def test_results_tell_what_a_fair_comparison_holds_equal(experiment):
    """`pair` has the lists of `order`; what `borrowed` took from other prompts is no sample of its own."""
    home, _, _ = experiment
    spent = {arm: ArmResult.read(home / f"results/{arm}-seed0.json").spent for arm in ("order", "pair", "borrowed")}
    for arm, found in spent.items():
        steps = [json.loads(line) for line in (home / f"{arm}-seed0/metrics.jsonl").read_text().splitlines()]
        taken = [record["train/lists"] for record in steps if record["event"] == "step"]
        assert (found["run/step"], found["train/lists"]) == (len(taken), sum(taken))
        assert (found["sampler/prompts"], found["sampler/samples"]) == (12, 12 * 4)
    assert spent["order"]["sampler/tokens"] == spent["pair"]["sampler/tokens"] > 0
    of_arms, *_ = (home / "results" / "table.md").read_text().split("\n\n")  # then come those of the sweeps
    header, _, *rows = of_arms.splitlines()
    assert header.endswith("| steps | lists | sampled tokens |")
    for arm, found in spent.items():
        [row] = [row for row in rows if row.startswith(f"| {arm} |")]
        assert row.endswith(f"| {found['train/lists']:.1f} | {found['sampler/tokens']} |")


@pytest.mark.slow
def test_losers_come_from_other_prompts(experiment):
    home, _, _ = experiment
    lists = list(read_lists(home / "borrowed-seed0" / "lists"))
    borrowed = [c for item in lists for c in item.candidates if c.origin == "given"]
    assert borrowed
    assert all(c.reward is not None for c in borrowed)
    steps = [json.loads(line) for line in (home / "borrowed-seed0/metrics.jsonl").read_text().splitlines()]
    assert any(record["event"] == "step" for record in steps)


@pytest.mark.slow
def test_what_has_a_result_is_not_run_again(experiment):
    home, said, run = experiment
    results = home / "results"
    assert sorted(path.name for path in results.glob("*.json")) == [
        "borrowed-seed0.json",
        "order-seed0.json",
        "pair-seed0.json",
    ]
    before = {path.name: path.stat().st_mtime for path in results.glob("*.json")}
    again = run()
    assert again.returncode == 0
    assert "[1/3]" in said
    assert "[1/3]" not in again.stdout
    assert {path.name: path.stat().st_mtime for path in results.glob("*.json")} == before
    assert "against the first arm" in again.stdout
    assert "[sweep 1/1] base, pair, seed 0" in said
    assert "[sweep" not in again.stdout
    assert (results / "plot.svg").read_text().startswith("<?xml")
    assert not list((home / "pair-seed0" / "checkpoints").glob("position-*"))
    assert (home / "pair-seed0" / "model" / "config.json").is_file()


@pytest.mark.slow
def test_models_of_arms_are_asked_side_by_side(experiment):
    home, said, _ = experiment
    assert "pair - base" in said
    result = SweepResult.read(home / "results" / "sweeps" / "pair-seed0.json")
    assert list(result.results["models"]) == ["base", "pair"]
    assert result.results["prompts"] == 4
    assert str(home) not in result.to_json()
    page = (home / "results" / "table.md").read_text()
    assert "pair: 4 held-out prompts, 2 samples each; correct from reward 1; 95% intervals over prompts" in page
    assert "| greedy response wins |" in page
    assert (home / "results" / "pair-recall_by_model.svg").read_text().startswith("<?xml")
