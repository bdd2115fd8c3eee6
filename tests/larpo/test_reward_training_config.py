"""Recipes that train a reward model: the bundled one, and what is refused with the next step."""

import pytest
import yaml

from larpo.classifier_reward import classifier_folder
from larpo.errors import ConfigError, DataError
from larpo.recipe import config_to_yaml, load_config
from larpo.reward_training_config import RewardTraining, load_reward_training


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_the_bundled_recipe_loads_and_round_trips(recipe_file):
    config = load_reward_training("minilm-reward", ["training.epochs=3"])
    assert (config.base.model, config.training.epochs) == ("minilm", 3)
    assert load_reward_training(recipe_file(config_to_yaml(config))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preferences": {"source": None}}, "preferences.source is not given"),
        ({"preferences": {"heldout_count": 0}}, "preferences.heldout_count = 0"),
        ({"preferences": {"columns": {"prompt": "p", "response": "r"}}}, "names one answer a row"),
        ({"preferences": {"system": "s"}}, "preferences.system = 's': is for a policy; a reward model reads"),
        ({"preferences": {"columns": {"chosen": "c"}}}, "names chosen alone"),
        ({"training": {"loss": "plackett_luce"}}, "takes no preferences.columns.margin"),
        ({"training": {"workers": 40}}, "must be at least training.workers = 40"),
        ({"training": {"loss": "hinge"}}, "training.loss = 'hinge'"),
        ({"base": {"trained": "head", "lora": {"rank": 4}}}, "set one of them only"),
        ({"base": {"lora": {"alpha": 8}}}, "base.lora.alpha is given, but base.lora.rank is 0"),
        ({"base": {"lora": {"rank": 4, "dropout": 0.1}}}, "base.lora.dropout = 0.1: a reward model trains without"),
        ({"training": {"epoch": 2}}, "did you mean training.epochs?"),
        ({"run": {"name": "a/b"}}, "must be a plain folder name"),
    ],
)
def test_what_cannot_run_is_refused_by_knob(recipe_file, change, message):
    columns = {"prompt": "p", "chosen": "c", "rejected": "r", "margin": "m"}
    values = {"preferences": {"source": "pairs.jsonl", "heldout_count": 5, "columns": columns}}
    load_reward_training(recipe_file(yaml.safe_dump(values)))
    for section, knobs in change.items():
        values[section] = values.get(section, {}) | knobs
    with pytest.raises(ConfigError) as caught:
        load_reward_training(recipe_file(yaml.safe_dump(values)))
    assert message in str(caught.value)


def test_a_run_that_wants_the_bundled_reward_says_how_it_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = load_config("smollm2-minilm").reward.classifier
    assert section.model == f"./runs/{load_reward_training('minilm-reward').run.name}/model"
    with pytest.raises(DataError, match=r"python -m scripts\.train_reward minilm-reward"):
        classifier_folder(section)


def test_defaults_stand_alone():
    assert RewardTraining().training.optimizer.schedule == "cosine"
