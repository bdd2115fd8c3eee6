"""Launcher files are what Ray's own launcher and autoscaler take, ask for what the docs say, and ask for the token."""

import copy
import re
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
CLOUDS = ("aws", "gcp")
LAUNCHED = (*CLOUDS, "machines")  # by `ray up`


def loaded(name: str) -> dict:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


def prepared(name: str) -> dict:
    """As `ray up` and the autoscaler on the head see it: defaults filled in, Ray's schema and rules checked."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(loaded(name))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", [*LAUNCHED, "simulated"])
def test_rays_launcher_takes_the_file(name, tmp_path, monkeypatch):
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").write_text("a key, of which a hash is taken")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = AutoscalingConfig(prepared(name), skip_content_hash=True)
    assert set(config.get_node_type_configs()) == set(config.get_config("available_node_types"))


def test_rays_schema_finds_a_misspelled_field():
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    broken = loaded("aws") | {"idle_timeout_minuts": 10}
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config(broken))


@pytest.mark.parametrize("name", [*CLOUDS, "simulated"])
def test_trainers_stay_and_samplers_come_and_go(name):
    """A head on which no actor runs, and pools that a recipe asks for by name, one unit for each GPU."""
    config = prepared(name)
    kinds = config["available_node_types"]
    head, trainers, samplers = kinds[config["head_node_type"]], kinds["trainers"], kinds["samplers"]
    assert head["resources"]["CPU"] == head["max_workers"] == 0
    assert trainers["min_workers"] == trainers["max_workers"] == 1
    assert samplers["min_workers"] == 0 < samplers["max_workers"]
    assert config["max_workers"] == trainers["max_workers"] + samplers["max_workers"]
    for kind, pool in ((trainers, "trainer_pool"), (samplers, "sampler_pool")):
        assert kind["resources"][pool] == kind["resources"].get("GPU", 1)
        assert {name for name in kind["resources"] if name.endswith("_pool")} == {pool}


@pytest.mark.parametrize("name", CLOUDS)
def test_only_samplers_are_on_spot_machines(name):
    def is_spot(node: dict) -> bool:
        market = node.get("InstanceMarketOptions", {}).get("MarketType")
        return "spot" in (market, node.get("scheduling", {}).get("provisioningModel", "").lower())

    kinds = loaded(name)["available_node_types"]
    assert {kind for kind in kinds if is_spot(kinds[kind]["node_config"])} == {"samplers"}


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_ask_for_the_token_and_have_it(name):
    config = loaded(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", LAUNCHED)
def test_commands_that_start_ray_parse(name):
    from ray.scripts.scripts import cli

    for command in (*loaded(name)["head_start_ray_commands"], *loaded(name)["worker_start_ray_commands"]):
        program, verb, *rest = command.split()
        assert program == "ray"
        cli.commands[verb].make_context(verb, list(rest), resilient_parsing=False)


@pytest.mark.parametrize("name", LAUNCHED)
def test_what_has_to_be_the_users_own_is_marked_so(name):
    """Placeholders: words in capitals, addresses, ids of zeros."""
    placeholder = re.compile(r"REGISTRY|PROJECT|ami-0+$|10\.0\.0\.\d|region:|larpo-(node|head)\}|ssh_private_key:")
    previous = ""
    for line in (CLUSTER / f"{name}.yaml").read_text().splitlines():
        if placeholder.search(line.partition("#")[0].rstrip()):
            assert "# yours" in line + previous, line
        previous = line


def test_the_clouds_differ_in_machines_alone():
    """What is learned of one holds for the other."""

    def common(name: str) -> dict:
        config = copy.deepcopy(loaded(name))
        for kind in config["available_node_types"].values():
            del kind["node_config"]
        return {key: value for key, value in config.items() if key != "provider"}

    assert common("aws") == common("gcp")
