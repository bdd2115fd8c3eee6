"""What the command refuses before anything starts."""

import pytest

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
    ],
)
def test_a_mistake_is_told_and_starts_nothing(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
