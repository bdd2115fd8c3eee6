"""What the command refuses before anything starts."""

import pytest
import ray

from larpo.recipe import config_to_yaml, load_config
from scripts.evaluate import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a recipe"),
        (["quickstart", "--run", "."], "give either a recipe"),
        (["--run", "nowhere", "run.seed=1"], "nowhere is no finished run"),
        (["quikstart"], "did you mean 'quickstart'?"),
        (["quickstart", "evaluation.sweep.sample=3"], "did you mean evaluation.sweep.samples?"),
        (["quickstart", "evaluation.sweep.temperatures=[]"], "evaluation.sweep.temperatures"),
        (["quickstart", "evaluation.sweep.reranker={kind: http}"], "evaluation.sweep.reranker.endpoint.addresses"),
        (["quickstart", "--model", "tuned"], "must be NAME=FOLDER_OR_HUB_ID"),
        (["quickstart", "--model", "tuned=./nowhere"], "there is no such folder"),
        (["quickstart", "prompts.heldout_count=0", "evaluation.each_iteration=false"], "needs held-out prompts"),
        (
            ["quickstart", "reward={kind: callable, name: 'no:such'}", "--model", "a=x", "--model", "b=y"],
            "reward.kind = 'callable': ranks the responses to a prompt together, so that its rewards do not compare",
        ),
    ],
)
def test_a_mistake_is_told_and_starts_nothing(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "reward",
    [
        "{kind: callable, name: 'no:such'}",
        "{kind: weighted, parts: [{kind: pairwise, ranker: {model: nowhere}}, {name: reasoning_gym}]}",
    ],
)
def test_a_run_whose_rewards_compare_no_models_is_refused_before_ray_is_started(reward, capsys, tmp_path, monkeypatch):
    """A run brings two models, the base policy and the aligned one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    run = tmp_path / "runs" / "done"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text(config_to_yaml(load_config("quickstart", [f"reward={reward}"])))
    assert main(["--run", str(run)]) == 2
    assert "do not compare models; evaluate one model at a time, or choose another reward" in capsys.readouterr().err
    assert not (tmp_path / "evaluations").exists()
