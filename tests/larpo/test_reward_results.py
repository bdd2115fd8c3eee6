"""Held-out numbers of a reward model, its report and its card."""

import json

import pytest

from larpo.conversations import Conversation
from larpo.reward_card import reward_card
from larpo.reward_data import LabelledList
from larpo.reward_report import write_reward_report
from larpo.reward_results import attack_share, format_results, heldout_metrics, heldout_pairs
from larpo.reward_training_config import RewardTraining

BLANK = (Conversation((0,), (0,)),)
ATTACKS = ("prompt_copy", "repeated_sentence")
LISTS = (
    LabelledList("a", BLANK * 5, (2.0, 1.0, 0.0, -1.0, -1.0), attacks=ATTACKS),
    LabelledList("b", BLANK * 4, (0.0, 1.0, -1.0, -1.0), attacks=ATTACKS),  # the second answer is the best
    LabelledList("c", BLANK * 3, (1.0, 0.0, -1.0), attacks=ATTACKS[1:]),
)
REWARDS = {"a": (3.0, 1.0, 2.0, 9.0, 0.0), "b": (1.0, 5.0, 4.0, 6.0), "c": (0.0, 2.0, 1.0)}


def test_pairs_are_those_that_the_data_holds():
    pairs = heldout_pairs(LISTS, REWARDS)
    assert pairs.differences == (2.0, 1.0, -1.0, 4.0, -2.0)
    assert pairs.prompt_ids == ("a", "a", "a", "b", "c")


def test_an_attack_wins_where_it_beats_the_best_answer():
    assert attack_share(LISTS, REWARDS, "prompt_copy") == 1 / 2  # a: 9 > 3; b: 4 < 5; c has none
    assert attack_share(LISTS, REWARDS, "repeated_sentence") == 2 / 3  # b: 6 > 5; c: 1 > 0
    assert attack_share(LISTS[2:], REWARDS, "prompt_copy") == 0.0


@pytest.fixture
def metrics():
    before = {name: (0.0,) * len(rewards) for name, rewards in REWARDS.items()}
    return heldout_metrics(LISTS, before, REWARDS, resamples=200, seed=0)


def test_the_last_record_has_both_models(metrics):
    assert (metrics["pairs/accuracy_before"], metrics["pairs/accuracy_after"]) == (1 / 2, 3 / 5)
    assert metrics["pairs/brier_before"] == 1 / 4
    assert (metrics["pairs/heldout"], metrics["pairs/prompts"]) == (5, 3)
    assert metrics["pairs/prompt_copy_wins_after"] == 1 / 2
    assert "60.0% [" in format_results(metrics)


def test_the_report_needs_nothing_else_and_the_card_says_how_it_is_used(metrics, tmp_path):
    config = RewardTraining.model_validate(
        {"preferences": {"source": "pairs.jsonl", "heldout_count": 3}, "description": "A <test>"}
    )
    steps = [
        {"event": "step", "time": 1.0, "step": n, "train/loss": 1.0 / n, "pairs/train_accuracy": 0.5} for n in (1, 2, 3)
    ]
    lines = [*steps, {"event": "done", "time": 2.0, **metrics}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = {name: tuple(float(n) for n in range(len(rewards))) for name, rewards in REWARDS.items()}
    page = write_reward_report(tmp_path, config, LISTS, before, REWARDS).read_text()
    assert "A &lt;test&gt;" in page
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "60.0% [" in page
    assert (tmp_path / "calibration.svg").read_text().lstrip().startswith("<?xml")
    card = reward_card(config, metrics, name="mine", notes=("one note",))
    assert "base_model: sentence-transformers/all-MiniLM-L6-v2" in card
    assert "One note." in card
    assert "kind: sequence_classification" in card
