"""What the doctor makes of what it has seen: each check's line, and what it advises. No Ray."""

from dataclasses import replace
from pathlib import Path

import pytest

from actors import checks
from actors.access import hub_items, judged
from actors.checks import GIB
from actors.intended import Plan, actor_sizes, examine_recipe
from actors.probe import NodeReport, Question, code_fingerprint, look, nvidia, try_storage, write_file
from actors.sizes import Estimates
from larpo.config import Config
from larpo.reward_training_config import load_reward_training

VERSIONS = {"python": "3.11.9", "larpo": "abc", "ray": "2.60.0", "torch": "2.13.0", "vllm": "0.32.0", "deepspeed": "1"}
GOOD = NodeReport(
    node="a",
    versions=VERSIONS | {"flash-attn": ""},
    memory=64 * GIB,
    memory_free=60 * GIB,
    shm=32 * GIB,
    shm_free=30 * GIB,
    disk=500 * GIB,
    disk_free=400 * GIB,
    has_hub_token=True,
)


def other(**changes) -> NodeReport:
    return replace(GOOD, node="b", **changes)


def levels(lines) -> list[str]:
    return [line.level for line in lines]


def skewed(**versions) -> NodeReport:
    return other(versions=GOOD.versions | versions)


@pytest.mark.parametrize(
    ("node", "level", "says"),
    [
        (other(), "ok", "the same on 2 nodes"),
        (skewed(torch="2.13.0+cpu"), "ok", "torch 2.13.0"),  # another build of the same version
        (skewed(torch="2.12.0"), "FAIL", "torch differs: 2.13.0 on a, 2.12.0 on b"),
        (skewed(python="3.12.1"), "FAIL", "python differs"),
        (skewed(larpo="xyz"), "FAIL", "submit it with --working-dir"),
        (skewed(vllm="0.31.0"), "warn", "vllm differs"),
        (skewed(vllm=""), "FAIL", "vllm is not on b"),
        (skewed(larpo=""), "FAIL", "larpo is not on b"),
        (skewed(**{"flash-attn": "2.8.3"}), "ok", "the same"),
        (other(gpus=(80 * GIB,)), "warn", "flash-attn is not on b"),
        (other(driver="570.86.15"), "FAIL", "NVIDIA's driver is 570.86.15 on b"),
        (other(driver="580.65.06"), "ok", "the same"),
    ],
)
def test_versions(node, level, says):
    (line,) = checks.check_versions([GOOD, node], ("ray", "torch", "vllm", "larpo"))
    assert line.level == level
    assert says in str(line)


def test_a_plan_without_samplers_does_not_need_vllm():
    assert levels(checks.check_versions([GOOD, skewed(vllm="")], ("ray",))) == ["ok"]


@pytest.mark.parametrize(
    ("needed", "level", "says"),
    [
        ({"sampler": (2, 3 * GIB), "trainer worker": (1, 8 * GIB)}, "ok", "2 x sampler 3.0 GiB"),
        ({"sampler": (1, 65 * GIB)}, "FAIL", "64.0 GiB at most in one place"),  # one actor lies on one node
        ({"sampler": (3, 60 * GIB)}, "FAIL", "128.0 GiB there in all"),
        ({"sampler": (2, 61 * GIB)}, "warn", "120.0 GiB of 128.0 GiB free"),
    ],
)
def test_memory(needed, level, says):
    (line,) = checks.check_memory([GOOD, other()], needed, on_gpus=False)
    assert line.level == level
    assert says in str(line)


def test_memory_of_gpus_counts_theirs_alone():
    gpus = other(gpus=(80 * GIB, 80 * GIB))
    assert levels(checks.check_memory([GOOD, gpus], {"sampler": (2, 70 * GIB)}, on_gpus=True)) == ["ok"]
    assert levels(checks.check_memory([GOOD, gpus], {"sampler": (1, 90 * GIB)}, on_gpus=True)) == ["FAIL"]
    assert levels(checks.check_memory([GOOD], {"sampler": (1, GIB)}, on_gpus=True)) == ["warn"]  # they may come
    assert checks.check_memory([GOOD], {}, on_gpus=True) == []
    (line,) = checks.check_memory([gpus], {"sampler": (8, 70 * GIB)}, on_gpus=True, more_may_come=True)
    assert (line.level, line.advice) == ("warn", "The autoscaler has to bring more")


@pytest.mark.parametrize(
    ("samplers", "on_gpus", "expected"),
    [
        ({"count": 2}, True, {"trainer worker": (1, 30.0), "sampler": (2, 20.0)}),
        (
            {"tensor_parallel_size": 4, "resources": {"GPU": 4}},
            True,
            {"trainer worker": (1, 30.0), "GPU of a sampler": (4, 5.0)},
        ),
        ({"sleep": True}, True, {"trainer worker, by turns": (1, 30.0)}),
        ({"count": 2}, False, {"reward actor": (2, 3.0)}),
    ],
)
def test_what_each_gpu_has_to_hold(samplers, on_gpus, expected):
    config = Config.model_validate(
        {
            "samplers": {"resources": {"GPU": 1}, **samplers},
            "training": {"resources_per_worker": {"GPU": 1}},
            "reward": {"replicas": 2},
        }
    )
    sizes = Estimates(parameters=1, trained=1, sampler=20.0, trainer=30.0, reward=3.0, checkpoint=1.0, disk=1.0)
    assert actor_sizes(Plan(config, Path(), sizes), on_gpus=on_gpus) == expected


@pytest.mark.parametrize(
    ("free", "level"), [(400 * GIB, "ok"), (5 * GIB, "warn"), (20 * GIB, "warn"), (GIB // 2, "FAIL")]
)
def test_disk(free, level):
    assert levels(checks.check_disk([GOOD, other(disk_free=free)])) == [level]


def test_the_disk_of_the_run_folder():
    assert levels(checks.check_run_disk(10 * GIB, 9 * GIB, "/runs")) == ["ok"]
    (line,) = checks.check_run_disk(10 * GIB, 11 * GIB, "/runs")
    assert str(line).startswith("FAIL  run folder    about 11.0 GiB needed for the run in /runs, 10.0 GiB free")


@pytest.mark.parametrize(
    ("free", "store", "weights", "expected"),
    [
        (30 * GIB, 20 * GIB, 4 * GIB, ["ok"]),
        (GIB // 8, 20 * GIB, 0, ["FAIL"]),  # a container's default of 64 MB is of that kind
        (3 * GIB, 20 * GIB, 4 * GIB, ["FAIL"]),
        (30 * GIB, 6 * GIB, 4 * GIB, ["warn"]),
        (30 * GIB, 3 * GIB, 4 * GIB, ["warn"]),
        (30 * GIB, GIB // 2, 4 * GIB, ["FAIL"]),
        (30 * GIB, GIB // 2, GIB // 4, ["ok"]),
    ],
)
def test_shared_memory_and_object_store(free, store, weights, expected):
    assert levels(checks.check_shared_memory([other(shm_free=free)], store, weights, GIB, {"b"})) == expected


def test_a_node_without_samplers_needs_no_room_for_weights():
    assert levels(checks.check_shared_memory([other(shm_free=3 * GIB)], 20 * GIB, 4 * GIB, GIB, {"a"})) == ["ok"]


def test_drivers_and_memory_are_what_nvidia_smi_tells(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '580.65.06, 81559\\n580.65.06, 81559\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert nvidia() == ("580.65.06", (81559 * 2**20,) * 2)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert nvidia() == ("", ())


def test_storage_that_one_node_does_not_see():
    lines = checks.check_storage([GOOD, other(storage="FileNotFoundError: no")], "/home/me/runs")
    assert [str(line) for line in lines] == [
        "FAIL  storage       /home/me/runs on b: FileNotFoundError: no. A folder must be shared by all nodes (NFS), or"
        " give a URI as run.output_dir, such as s3://BUCKET/PREFIX"
    ]
    assert levels(checks.check_storage([GOOD, other()], "/home/me/runs")) == ["ok"]


def test_a_model_folder_that_one_node_does_not_have():
    (line,) = checks.check_folders([GOOD, other(missing=("/models/x",))])
    assert (line.level, line.text) == ("FAIL", "/models/x is not on b")


@pytest.mark.parametrize(
    ("ahead", "unsure", "level"),
    [(0.1, 0.01, "ok"), (-3.0, 0.01, "warn"), (3.0, 1.5, "ok"), (400.0, 0.1, "FAIL"), (-400.0, 0.1, "FAIL")],
)
def test_clocks(ahead, unsure, level):
    (line,) = checks.check_clocks({"a": (0.0, 0.0), "b": (ahead, unsure)})
    assert line.level == level
    assert level == "ok" or f"b is {ahead:+.2f} s from the driver" in line.text


def test_a_node_that_gives_no_answer_is_a_failure():
    lines = checks.check_silent({"b": "not within 60 s"}, 2)
    assert levels(lines) == ["FAIL"]
    assert "b gave no answer: not within 60 s" in str(lines[0])
    assert levels(checks.check_silent({}, 2)) == ["ok"]


@pytest.mark.parametrize(
    ("address", "token", "level"),
    [
        ("127.0.0.1:8265", True, "ok"),
        ("[::1]:8265", True, "ok"),
        ("127.0.0.1:8265", False, "warn"),  # the other ports are where the cluster's nodes reach them
        ("10.0.0.7:8265", True, "warn"),
        ("10.0.0.7:8265", False, "warn"),
        ("", True, "warn"),
    ],
)
def test_the_dashboard_is_on_loopback_or_said(address, token, level):
    (line,) = checks.check_dashboard(address, has_token=token)
    assert line.level == level
    assert level == "ok" or not address or ("runs code here" in line.text) == (not token)


def test_a_ray_on_loopback_alone_needs_no_token():
    assert levels(checks.check_dashboard("127.0.0.1:8265", has_token=False, alone=True)) == ["ok"]


def test_ports_between_nodes():
    assert levels(checks.check_reach({"b": "", "c": "timed out"}, "a", 3)) == ["FAIL"]
    assert levels(checks.check_reach({"b": ""}, "a", 2)) == ["ok"]


@pytest.mark.parametrize(
    ("status", "has_token", "level", "says"),
    [
        (200, False, "ok", "readable"),
        (307, False, "ok", "readable"),
        (401, False, "FAIL", "Set HF_TOKEN"),
        (403, True, "FAIL", "Ask for access"),
        (404, True, "FAIL", "Correct the id"),
        (503, True, "warn", "answered 503"),
    ],
)
def test_what_the_hub_answers(status, has_token, level, says):
    line = judged("policy.model = meta-llama/x", status, has_token=has_token)
    assert line.level == level
    assert says in str(line)


def test_what_a_recipe_wants_of_the_hub(tmp_path):
    config = Config.model_validate(
        {
            "policy": {"model": "meta-llama/x"},
            "prompts": {"source": "some/prompts"},
            "reward": {"kind": "sequence_classification", "classifier": {"model": str(tmp_path)}},
        }
    )
    assert hub_items(config) == [
        ("policy.model", "model", "meta-llama/x"),
        ("prompts.source", "dataset", "some/prompts"),
    ]
    assert hub_items(Config()) == []
    assert hub_items(load_reward_training("minilm-reward")) == []
    columns = "preferences.columns={chosen: a, rejected: b}"
    trained = load_reward_training("minilm-reward", ["base.model=some/base", "preferences.source=some/pairs", columns])
    assert [name for _, _, name in hub_items(trained)] == ["some/base", "some/pairs"]


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("minilm-reward", "lists to train on"),
        ("offline-arithmetic", "lists to train on"),
        ("quickstart", "prompts to train on"),
    ],
)
def test_recipes_of_every_command_can_be_looked_at(recipe, says, tmp_path):
    plan, lines = examine_recipe(recipe, [f"run.output_dir={tmp_path}"])
    assert plan is not None
    assert levels(lines) == ["ok"] * 3, lines
    assert says in str(lines[-1])
    assert plan.bundles


# --- What a node knows of itself


def test_a_node_reads_what_the_driver_wrote_and_leaves_nothing(tmp_path):
    write_file(str(tmp_path), "probe", "hello")
    assert try_storage(Question(str(tmp_path), "probe", "hello")) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]
    assert "something else" in try_storage(Question(str(tmp_path), "probe", "goodbye"))
    assert "FileNotFoundError" in try_storage(Question(str(tmp_path / "not-shared"), "probe", "hello"))
    assert try_storage(Question(f"file://{tmp_path}", "probe", "hello")) == ""


def test_a_node_tells_versions_memory_and_what_it_lacks(tmp_path):
    report = look(Question(folders=(str(tmp_path), str(tmp_path / "none"))))
    assert report.missing == (str(tmp_path / "none"),)
    assert report.versions["ray"].startswith("2.")
    assert report.versions["vllm"]  # under its other name here
    assert 0 < report.memory_free <= report.memory
    assert 0 < report.shm_free <= report.shm


def test_the_fingerprint_is_that_of_the_code(tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = code_fingerprint(["some_package"])
    assert before == code_fingerprint(["some_package"])
    (package / "__init__.py").write_text("x = 2\n")
    assert code_fingerprint(["some_package"]) != before
    assert code_fingerprint(["no_such_package"]) == ""
