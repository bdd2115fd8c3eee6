"""The simulated cluster, started as docs/cluster.md says: a job brings the nodes that it asks for, and they go."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest
import requests
import yaml

from tests.scripts.test_submit import ROOMS, JobServer, bare_environment
from tests.toy_runs import REPOSITORY, check_exactly_once, free_ports, marked_processes, until, write_toy

CLUSTER = REPOSITORY / "cluster"
KINDS = {"samplers": "sampler_pool", "trainers": "trainer_pool"}
POOLS = (
    "samplers.resources={CPU: 0.5, sampler_pool: 1}",
    "training.resources_per_worker={CPU: 0.5, trainer_pool: 1}",
    "reward.resources={CPU: 0.25}",
)


class SimulatedCluster(JobServer):
    """The head of cluster/simulated.sh, with cluster/simulated.yaml and the port of its GCS on a free one."""

    def __init__(self, folder: Path) -> None:
        self._python, self._ray, self.mark = (
            Path(sys.executable),
            tempfile.mkdtemp(prefix="lr", dir="/tmp"),
            uuid.uuid4().hex,
        )
        self._log, token = folder / "head.txt", folder / "token"
        self._environment = bare_environment() | {
            "PATH": f"{self._python.parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": self._ray,
            "RAY_worker_niceness": "0",  # Ray's actors do not stand back behind whatever else this machine does
            "LARPO_TEST_MARK": self.mark,
        }
        token.write_text(uuid.uuid4().hex + uuid.uuid4().hex)
        gcs, dashboard, agent, agent_grpc, client = free_ports(5)
        self.address, self.gcs = f"http://127.0.0.1:{dashboard}", gcs
        config = yaml.safe_load((CLUSTER / "simulated.yaml").read_text())
        config["provider"]["gcs_address"] = f"127.0.0.1:{gcs}"
        file = folder / "simulated.yaml"
        file.write_text(yaml.safe_dump(config))
        options = (
            f"--port {gcs} --dashboard-port {dashboard} --ray-client-server-port {client} --temp-dir {self._ray}"
            f" --dashboard-agent-listen-port {agent} --dashboard-agent-grpc-port {agent_grpc}"
        )
        with open(self._log, "a") as log:
            command = ["sh", str(CLUSTER / "simulated.sh"), str(file), *options.split()]
            self._head = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        self.seen: list[dict] = []
        until(lambda: "Ray runtime started" in self._log.read_text(), 120, self._log.read_text)

    def asked(self, path: str) -> dict:
        """What the dashboard answers; the command line starts a Python for each question."""
        token = {"Authorization": f"Bearer {Path(self._environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
        answer = requests.get(self.address + path, headers=token, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def status(self, name: str) -> str:
        return self.asked(f"/api/jobs/{name}")["status"]

    def nodes(self) -> list[str]:
        """Kinds of the nodes that are alive, the head's left out; by their resources, for the label is the head's."""
        nodes = self.asked("/api/v0/nodes?detail=1&limit=100")["data"]["result"]["result"]
        self.seen = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
        return sorted(kind for kind, pool in KINDS.items() for total in self.seen if pool in total)

    def told(self) -> str:
        monitor = Path(self._ray) / "session_latest" / "logs" / "monitor.log"
        return f"{self.seen}\n" + (monitor.read_text()[-3000:] if monitor.exists() else "")


@pytest.fixture
def cluster(tmp_path):
    cluster = SimulatedCluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_brings_samplers_nodes_and_they_go_when_it_ends(cluster, tmp_path, tiny_policy):
    checkout, run = tmp_path / "checkout", tmp_path / "runs" / "toy"
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, checkout / room, ignore=shutil.ignore_patterns("__pycache__"))
    write_toy(checkout, tiny_policy)
    until(lambda: cluster.nodes() == ["trainers"], 120, cluster.told)

    arguments = ["recipe.yaml", f"run.output_dir={run.parent}", "run.name=toy", "prompts.source=prompts.jsonl", *POOLS]
    cluster.submit("toy", checkout, *arguments, "samplers.count=2")
    seen, deadline = set(), time.monotonic() + 600
    while cluster.status("toy") not in ("SUCCEEDED", "FAILED"):
        assert time.monotonic() < deadline, cluster.logs("toy")[-4000:]
        seen.add(tuple(cluster.nodes()))
    assert cluster.status("toy") == "SUCCEEDED", cluster.logs("toy")[-4000:]
    assert ("samplers", "samplers", "trainers") in seen
    check_exactly_once(run)
    seconds = until(lambda: cluster.nodes() == ["trainers"], 120, cluster.told)
    print(f"the samplers' nodes went {seconds:.1f} s after the job")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_dashboard_is_on_loopback_and_nobody_gets_in_without_the_token(cluster):
    """Ray's own ports are open to all, and ask for the token; its metrics ports do not."""
    ports = {
        connection.laddr.port
        for process in marked_processes(cluster.mark)
        for connection in process.net_connections("tcp")
        if connection.status == "LISTEN" and connection.laddr.ip not in ("127.0.0.1", "::1")
    }
    assert int(cluster.address.rpartition(":")[2]) not in ports
    assert requests.get(f"{cluster.address}/api/jobs/", timeout=60).status_code == 401
    wrong = cluster._environment | {"RAY_AUTH_TOKEN_PATH": str(CLUSTER / "aws.yaml")}
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", f"127.0.0.1:{cluster.gcs}"]
    done = subprocess.run(command, env=wrong, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()
