"""Kubernetes manifests: Kubernetes' own schema for pods and claims, KubeRay's fields, and Ray's reading of both.

KubeRay's schema cannot be had here; tests/cluster/kuberay.py says what stands in for it.
"""

import copy
import shlex
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from larpo.config import Config
from larpo.recipe import load_config
from scripts import align
from tests.cluster.kuberay import SCHEMAS

FOLDER = Path(__file__).parents[2] / "cluster" / "kubernetes"
VERSIONS = ("1.31", "1.37")  # of Kubernetes: the oldest that is still served somewhere, and the newest
POOLS = {"trainers": ("trainer_pool", 4), "samplers": ("sampler_pool", 1)}


def loaded(name: str) -> dict:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def cluster_spec() -> dict:
    return loaded("raycluster")["spec"]


def templates() -> dict[str, dict]:
    """Every pod that the two manifests make, by what it is."""
    spec = cluster_spec()
    pods = {"head": spec["headGroupSpec"]["template"]}
    pods |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return pods | {"submitter": loaded("rayjob")["spec"]["submitterPodTemplate"]}


def containers() -> Iterator[tuple[str, dict]]:
    for name, template in templates().items():
        yield from ((name, container) for container in template["spec"]["containers"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["head", "trainers", "samplers", "submitter"])
def test_kubernetes_takes_the_pods(name, version):
    template = templates()[name]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template.get("metadata", {})}}
    kubernetes_validate.validate({**pod, "spec": template["spec"]}, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_the_claim(version):
    kubernetes_validate.validate(loaded("storage"), version, strict=True)


def test_kubernetes_schema_finds_a_misspelled_field():
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "head"},
        "spec": copy.deepcopy(templates()["head"]["spec"]),
    }
    pod["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


@pytest.mark.parametrize(("name", "kind"), [("raycluster", "RayCluster"), ("rayjob", "RayJob")])
def test_every_field_is_in_kuberays_reference(name, kind):
    jsonschema.validate(loaded(name), SCHEMAS[kind])


def test_the_job_brings_the_cluster_of_the_other_manifest():
    assert loaded("rayjob")["spec"]["rayClusterSpec"] == cluster_spec()


def test_rays_autoscaler_reads_pools_from_the_cluster():
    """What the autoscaler's container makes of the manifest, by Ray's own code."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = loaded("raycluster")
    cluster["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    kinds = config["available_node_types"]
    assert config["idle_timeout_minutes"] == pytest.approx(10)
    assert kinds[config["head_node_type"]]["resources"]["CPU"] == 0
    for name, (pool, gpus) in POOLS.items():
        assert kinds[name]["resources"]["GPU"] == kinds[name]["resources"][pool] == gpus
    assert (kinds["trainers"]["min_workers"], kinds["trainers"]["max_workers"]) == (1, 1)
    assert (kinds["samplers"]["min_workers"], kinds["samplers"]["max_workers"]) == (0, 8)
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    assert cluster["spec"]["autoscalerOptions"]["version"] == "v2"


def test_rays_version_is_the_locks():
    lock = (FOLDER.parents[1] / "locks" / "gpu.lock").read_text().splitlines()
    assert f"ray=={cluster_spec()['rayVersion']}" in lock


def test_ray_knows_the_variables_that_give_patience():
    """KubeRay issue 4226: pods that were ended while a node was brought and an image pulled."""
    source = resources.files("ray.autoscaler.v2.instance_manager").joinpath("config.py").read_text()
    (variable,) = cluster_spec()["autoscalerOptions"]["env"]
    assert f'"{variable["name"]}"' in source
    assert int(variable["value"]) >= 1800
    constants = resources.files("ray._private").joinpath("ray_constants.py").read_text()
    assert '"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"' in constants


def test_a_pod_that_is_ended_has_time_for_a_checkpoint():
    """Pod > hook or drain > what a job is left > what a run takes."""
    run_s = Config().timeouts.stop_s
    job_s = int(yaml.safe_load(loaded("rayjob")["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert run_s < job_s
    for name, container in containers():
        if name == "submitter":
            continue
        grace_s = templates()[name]["spec"]["terminationGracePeriodSeconds"]
        drain_s = {one["name"]: one.get("value") for one in container["env"]}["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
        assert job_s <= int(drain_s) < grace_s
        assert "preStop" in container["lifecycle"]
    hook = templates()["head"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "time.monotonic() + 80" in hook
    assert job_s < 80 < templates()["head"]["spec"]["terminationGracePeriodSeconds"]


def test_everyone_has_the_token_by_a_secret():
    assert cluster_spec()["authOptions"] == {"mode": "token", "secretName": "larpo-ray-token"}


@pytest.mark.parametrize(("name", "container"), containers())
def test_containers_have_no_rights_and_an_image_that_is_there_before(name, container):
    security = {**templates()[name]["spec"].get("securityContext", {}), **container["securityContext"]}
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 1000  # the user of cluster/Containerfile
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["resources"]["requests"] == container["resources"]["limits"] or name == "submitter"


@pytest.mark.parametrize("name", ["head", "trainers", "samplers"])
def test_shared_memory_is_memory_and_runs_lie_on_the_claim(name):
    spec = templates()[name]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == loaded("storage")["metadata"]["name"]
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts == {"shm": "/dev/shm", "shared": "/shared"}


def test_the_jobs_command_parses_and_asks_for_the_pools():
    words = shlex.split(loaded("rayjob")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "scripts.align"]
    options = align.parser().parse_intermixed_args(words[3:])
    config = load_config("quickstart", options.overrides)
    assert config.samplers.resources == {"GPU": 1, "sampler_pool": 1}
    assert config.training.resources_per_worker == {"GPU": 1, "trainer_pool": 1}


def test_prometheus_scrapes_ports_that_pods_have():
    """A PodMonitor of Prometheus Operator, whose schema no Python package brings: its few fields are named here."""
    monitor = loaded("podmonitor")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert set(monitor["spec"]) == {"jobLabel", "selector", "podMetricsEndpoints", "podTargetLabels"}
    asked = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    ports = {name: {port["name"] for port in container.get("ports", ())} for name, container in containers()}
    assert asked <= ports["head"]
    assert "metrics" in asked & ports["trainers"] & ports["samplers"]
