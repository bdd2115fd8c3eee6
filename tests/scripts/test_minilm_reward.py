"""The bundled neural reward: it learns, and it is not fooled by a copy of the prompt.

The attack that its degenerate answers are there for is kept as a test, with the half that shows that it is one: the
same training without them is fooled.
"""

import pytest

from actors.reward_preparation import prepare_reward_run
from actors.reward_stage import train_on_ray
from larpo.reward_training_config import load_reward_training


@pytest.fixture(scope="module")
def trained(local_ray, tmp_path_factory):
    """`trained(degenerate)`: metrics of the bundled recipe's last record, with and without degenerate answers."""

    def run(degenerate):
        folder = tmp_path_factory.mktemp("runs") / "minilm-reward"
        quiet = ["telemetry.console=off", "telemetry.wandb=false", f"degenerate={str(degenerate).lower()}"]
        config = load_reward_training("minilm-reward", quiet)
        return train_on_ray(prepare_reward_run(config, folder, resumed=False)).metrics

    return run


@pytest.mark.slow
def test_with_degenerate_answers_among_the_negatives_the_attack_fails(trained):
    metrics = trained(True)
    assert metrics["heldout/prompt_copy_wins_before"] > 0.2
    assert metrics["heldout/prompt_copy_wins_after"] <= 0.05
    assert metrics["heldout/repeated_sentence_wins_after"] <= 0.1
    assert metrics["heldout/pair_accuracy_low_after"] > 0.5


@pytest.mark.slow
def test_without_them_it_mostly_succeeds(trained):
    metrics = trained(False)
    assert max(metrics["heldout/prompt_copy_wins_after"], metrics["heldout/repeated_sentence_wins_after"]) > 0.5
    assert metrics["heldout/pair_accuracy_low_after"] > 0.5
