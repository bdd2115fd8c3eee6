"""`ray job submit` from a bare checkout: Ray's own job server, its token, and nodes on which larpo is not installed."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
import venv
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from tests.toy_runs import (
    REPOSITORY,
    check_exactly_once,
    command_of,
    free_ports,
    marked_processes,
    records,
    until,
    write_toy,
)

pytestmark = pytest.mark.slow
ROOMS = ("larpo", "actors", "scripts")

SLOW_REWARD = """
def slowly(prompt, response):  # two seconds a list: an iteration lasts until it is stopped
    import time

    time.sleep(0.5)
    return low_bytes(prompt, response)
"""


class JobServer:
    """A Ray head of its own, with a dashboard on loopback behind a token; its Python has everything but larpo."""

    def __init__(self, folder: Path) -> None:
        self._python = bare_python(folder / "bare")
        self._ray = tempfile.mkdtemp(prefix="lr", dir="/tmp")  # short: sockets lie in it
        self._log = folder / "head.txt"
        self.token, self.mark = secrets.token_hex(32), uuid.uuid4().hex
        (folder / "token").write_text(self.token)
        self._environment = bare_environment() | {
            "PATH": f"{self._python.parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "LARPO_TEST_MARK": self.mark,
            "RAY_worker_niceness": "0",  # Ray's actors do not stand back behind whatever else this machine does
        }
        gcs, dashboard, agent, agent_grpc, client = free_ports(5)
        self.address = f"http://127.0.0.1:{dashboard}"
        self._head = self._start(
            *f"start --head --block --num-cpus 2 --disable-usage-stats --object-store-memory {2**28}".split(),
            *f"--port {gcs} --dashboard-port {dashboard} --ray-client-server-port {client}".split(),
            *f"--dashboard-agent-listen-port {agent} --dashboard-agent-grpc-port {agent_grpc}".split(),
            *f"--temp-dir {self._ray}".split(),
        )
        until(lambda: "Ray runtime started" in self._log.read_text(), 120, self._log.read_text)

    def _start(self, *arguments: str) -> subprocess.Popen:
        with open(self._log, "a") as log:
            command = [str(self._python), "-m", "ray.scripts.scripts", *arguments]
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def job(self, *arguments: str) -> str:
        """What `ray job ARGUMENTS` prints, sent from where larpo is not installed either."""
        command = [str(self._python), "-m", "ray.scripts.scripts", "job", *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, name: str, checkout: Path, *arguments: str, grace_s: int | None = 60) -> None:
        """`grace_s`: what a job is left between SIGTERM and SIGKILL; Ray's own 3 s when None."""
        own = {} if grace_s is None else {"RAY_JOB_STOP_WAIT_TIME_S": str(grace_s)}
        runtime = json.dumps({"env_vars": own | {"HF_HUB_OFFLINE": "1"}})
        options = ["--address", self.address, "--submission-id", name, "--no-wait", "--runtime-env-json", runtime]
        self.job("submit", *options, "--working-dir", str(checkout), "--", "python", "-m", "scripts.align", *arguments)

    def status(self, name: str) -> str:
        """In one word, which `ray job status` has for some states only."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = requests.get(f"{self.address}/api/jobs/{name}", headers=headers, timeout=60)
        answer.raise_for_status()
        return answer.json()["status"]

    def logs(self, name: str) -> str:
        return self.job("logs", name, "--address", self.address)

    def wait_for_steps(self, name: str, run: Path, count: int) -> None:
        deadline = time.monotonic() + 600
        while len(records(run, "step")) < count:
            assert self.status(name) in ("PENDING", "RUNNING"), self.logs(name)[-4000:]
            assert time.monotonic() < deadline, self.logs(name)[-4000:]

    def workers(self) -> list[str]:
        """Processes of a run that are alive: engines, actors and trainers."""
        names = ("VLLM", "ray::toy/", "ray::trainer-", "ray::Sampler", "ray::RayTrainWorker", "scripts.align")
        lines = [command_of(process) for process in marked_processes(self.mark)]
        return [line for line in lines if any(name in line for name in names)]

    def close(self) -> None:
        self._head.terminate()
        for process in marked_processes(self.mark):
            with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                process.kill()
        self._head.wait(30)
        shutil.rmtree(self._ray, ignore_errors=True)


def bare_environment() -> dict[str, str]:
    """This process's, without what would tell another Python or Ray of this one."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}


def bare_python(folder: Path) -> Path:
    """A Python with this one's packages, of which an editable larpo is none: its path hooks are not followed."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(own, "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command, own_code = [python, "-c", "import ray, larpo"], bare_environment()
    found = subprocess.run(command, cwd=folder, env=own_code, capture_output=True, text=True)
    assert "No module named 'larpo'" in found.stderr, found.stderr
    return python


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = JobServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture
def checkout(tmp_path, tiny_policy) -> Path:
    """The project's code as a bare checkout has it, with a toy recipe beside it."""
    folder = tmp_path / "checkout"
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    write_toy(folder, tiny_policy)
    with open(folder / "toy_reward.py", "a") as file:
        file.write(SLOW_REWARD)
    return folder


def arguments(folder: Path, *overrides: str) -> list[str]:
    return ["recipe.yaml", f"run.output_dir={folder}", "run.name=toy", "prompts.source=prompts.jsonl", *overrides]


@pytest.mark.timeout(1800)
def test_a_stopped_job_leaves_a_checkpoint_and_goes_on_in_another(server, checkout, tmp_path):
    """It is stopped between two periodic checkpoints, and the one that it leaves is of its last step."""
    run = tmp_path / "runs" / "toy"
    slow = ("checkpoints.every_steps=1000", "training.lists_per_step=1", "reward.name=toy_reward:slowly")
    server.submit("first", checkout, *arguments(run.parent, *slow))
    server.wait_for_steps("first", run, 3)
    assert "iteration 1/2" in server.logs("first")
    assert not list(run.glob("checkpoints/position-*"))
    server.job("stop", "first", "--address", server.address, "--no-wait")
    seconds = until(lambda: not server.workers(), 30, lambda: "\n".join(server.workers()))
    print(f"actors, engines and trainers ended {seconds:.1f} s after the stop")
    until(lambda: server.status("first") == "STOPPED", 30)
    assert f"--resume {run}" in server.logs("first")
    (checkpoint,) = run.glob("checkpoints/position-*/manifest.json")
    consumed = json.loads((checkpoint.parent / "state.json").read_text())["step"]
    assert consumed >= len(records(run, "step")) >= 3

    server.submit("second", checkout, "--resume", str(run))
    until(lambda: server.status("second") in ("SUCCEEDED", "FAILED"), 600)
    assert f"after step {consumed}" in server.logs("second")
    assert server.status("second") == "SUCCEEDED", server.logs("second")[-4000:]
    check_exactly_once(run)


@pytest.mark.timeout(1800)
def test_a_job_that_is_killed_goes_on_from_its_periodic_checkpoint(server, checkout, tmp_path):
    """Ray's own grace period of 3 s is over before a run can end well."""
    run = tmp_path / "runs" / "toy"
    server.submit("killed", checkout, *arguments(run.parent, "reward.name=toy_reward:slowly"), grace_s=0)
    server.wait_for_steps("killed", run, 2)
    server.job("stop", "killed", "--address", server.address, "--no-wait")
    until(lambda: not server.workers(), 30, lambda: "\n".join(server.workers()))
    assert list(run.glob("checkpoints/position-*/manifest.json"))

    server.submit("resumed", checkout, "--resume", str(run))
    until(lambda: server.status("resumed") in ("SUCCEEDED", "FAILED"), 600)
    assert server.status("resumed") == "SUCCEEDED", server.logs("resumed")[-4000:]
    check_exactly_once(run)


@pytest.mark.timeout(300)
def test_a_run_folder_in_rays_copy_of_the_checkout_is_refused(server, checkout):
    server.submit("relative", checkout, *arguments(Path("runs")))
    until(lambda: server.status("relative") in ("SUCCEEDED", "FAILED"), 240)
    assert server.status("relative") == "FAILED"
    assert "error: run.output_dir = 'runs': a submitted job works in Ray's copy" in server.logs("relative")


def test_without_the_token_nothing_is_submitted(server, tmp_path):
    (tmp_path / "wrong").write_text(secrets.token_hex(32))
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "list", "--address", server.address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()
