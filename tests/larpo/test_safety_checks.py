"""What no recipe may hold: secrets and paths that climb out; and what has to be told before it happens."""

import pytest

from larpo.config import Config
from larpo.errors import ConfigError
from larpo.masking import redact
from larpo.recipe import load_config, read_config
from larpo.reward_training_config import RewardTraining
from larpo.safety_checks import code_notes

SECRET = "hf_plantedplanted"


@pytest.mark.parametrize(
    "override",
    [
        f"policy.model=https://hub.test/{SECRET}/x",
        f"reward.endpoint.addresses=['http://127.0.0.1:8100/?token={SECRET}']",
        f"prompts.columns.id={SECRET}",
        f"reward.parts=[{{name: {SECRET}}}]",
        f"prompts.tasks={{gcd: {{text: {SECRET}}}}}",
    ],
)
def test_a_recipe_with_a_secret_of_the_environment_is_refused_without_repeating_it(override, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises(ConfigError, match=r"\[HF_TOKEN\].*secrets come from the environment") as refused:
        load_config("quickstart", [override])
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("address", ["http://me:secretword@server:8100", "https://secretword@server/x"])
@pytest.mark.parametrize("kind", ["http", "verifier"])  # what is not used is written into config.yaml all the same
def test_a_login_in_an_address_is_refused_without_repeating_it(address, kind):
    with pytest.raises(ConfigError, match=r"://\[login\]@server") as refused:
        load_config("quickstart", [f"reward.kind={kind}", f"reward.endpoint.addresses=[{address}]"])
    assert "secretword" not in str(refused.value)


def test_recipes_of_reward_models_are_checked_too(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises(ConfigError, match=r"base.model = '\[HF_TOKEN\]'"):
        read_config("minilm-reward", [f"base.model={SECRET}"], RewardTraining)


@pytest.mark.parametrize("knob", ["run.output_dir", "prompts.source", "preferences.source"])
@pytest.mark.parametrize("path", ["..", "../x.jsonl", "data/../../x.jsonl", "/data/../etc/x.jsonl"])
def test_a_path_that_climbs_out_is_refused(knob, path):
    with pytest.raises(ConfigError, match=rf"{knob} = .*climbs out"):
        load_config("quickstart", [f"{knob}={path}"])


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "..", ".hidden", "a\\b"])
def test_the_name_of_a_run_is_one_folder(name):
    with pytest.raises(ConfigError, match=r"run\.name = .*plain folder name"):
        load_config("quickstart", [f"run.name='{name}'"])


@pytest.mark.parametrize("path", ["data/x..y.jsonl", "/data/x.jsonl", "..x/y", "data/x"])
def test_other_paths_are_not(path):
    assert read_config("quickstart", [f"prompts.source={path}"], Config).prompts.source == path


def test_code_of_a_model_is_not_trusted_unless_that_is_said():
    assert code_notes(Config()) == ()
    assert not any(value for key, value in _trusts(Config().model_dump()))
    trusting = Config.model_validate(
        {
            "policy": {"trust_remote_code": True},
            "reward": {"kind": "weighted", "parts": [{}, {"classifier": {"trust_remote_code": True}}]},
        }
    )
    notes = code_notes(trusting)
    assert [note.partition(" = ")[0] for note in notes] == [
        "policy.trust_remote_code",
        "reward.parts.1.classifier.trust_remote_code",
    ]
    assert all("Python code in that model's folder is run" in note for note in notes)


def _trusts(values, above=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _trusts(value, f"{above}{key}.")
        elif key == "trust_remote_code":
            yield above + key, value


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("s3://key:word@bucket/x", "s3://[login]@bucket/x"),
        ("https://word@host/x", "https://[login]@host/x"),
        ("abfs://container@account/x", "abfs://container@account/x"),  # where it is no login
        ("mail me@host", "mail me@host"),
    ],
)
def test_logins_of_urls_are_masked(text, masked):
    assert redact(text, {}) == masked
