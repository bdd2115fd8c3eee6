"""Whole runs whose home is a bucket of a real S3 server: killed, their machine gone, and resumed on another."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.s3_server import BUCKET, KEY, SECRET, S3Server
from tests.toy_runs import REPOSITORY, Runs, check_exactly_once, records

pytestmark = pytest.mark.slow
PREFIX = "experiments/killed"
HOME = f"s3://{BUCKET}/{PREFIX}"


@pytest.fixture
def server(tmp_path):
    server = S3Server(tmp_path / "s3.txt")
    yield server
    server.close()


class S3Runs(Runs):
    """On machines of their own: each has its cache, where the working folder lies."""

    def __init__(self, folder, policy, server) -> None:
        super().__init__(folder, policy)
        self.server = server
        self.move("machine-a")

    def move(self, machine: str) -> None:
        self.environment = {**self.server.environment(), "LARPO_CACHE": str(self.folder / machine)}
        self.run_dir = self.folder / machine / "runs" / "s3" / BUCKET / PREFIX

    def kill(self, driver) -> None:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        self.until_gone()


@pytest.fixture
def runs(tmp_path, tiny_policy, server):
    started = S3Runs(tmp_path, tiny_policy, server)
    yield started
    for process in started.processes():
        process.kill()


def command(module: str, *arguments: str, runs: Runs) -> str:
    """What it prints; in a process of its own, which knows no other server."""
    line = [sys.executable, "-m", module, *arguments]
    environment = os.environ | runs.environment
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def steps_of(runs: Runs, iteration: int) -> int:
    return sum(record["iteration"] == iteration for record in runs.records("step"))


@pytest.mark.timeout(900)
def test_a_run_goes_on_where_nothing_of_it_is_left(runs, server):
    """In each iteration its driver is killed and its folder deleted; the home alone is enough, to the last list."""
    driver = runs.new("none", f"run.output_dir=s3://{BUCKET}/experiments")
    for iteration, machine in enumerate(("machine-a", "machine-b")):
        runs.until(lambda number=iteration: steps_of(runs, number) >= 2, driver)
        runs.kill(driver)
        before = {key: server.read(key) for key in server.keys(f"{PREFIX}/lists/")}
        assert before
        shutil.rmtree(runs.folder / machine)
        runs.move(f"machine-{'bc'[iteration]}")
        driver = runs.start("--resume", HOME)
    assert driver.wait() == 0, runs.log()
    assert {key: server.read(key) for key in before} == before
    home = server.download(PREFIX, runs.folder / "home")
    assert records(home, "done")
    check_exactly_once(home)
    there = {path.relative_to(home).parts[0] for path in home.rglob("*") if path.is_file()}
    assert {"config.yaml", "inputs.json", "metrics.jsonl", "report.html", "rewards.sqlite", "evaluation"} <= there
    assert (home / "model" / "model.safetensors").read_bytes() == (
        runs.run_dir / "model" / "model.safetensors"
    ).read_bytes()
    assert f"model    {HOME}/model" in runs.log()
    committed = {path.parent for path in home.glob("checkpoints/position-*/manifest.json")}
    assert {path for path in home.glob("checkpoints/position-*")} == committed
    assert len(committed) <= 2
    runs.move("machine-d")
    assert runs.start("--resume", HOME).wait() == 0, runs.log()
    assert "this run is finished: nothing is left to do" in runs.log()
    command("scripts.lists", HOME, "--export", "ranked", str(runs.folder / "rows.jsonl"), runs=runs)
    assert (runs.folder / "rows.jsonl").read_text()
    assert "the runs have the same settings" in command("scripts.compare", HOME, str(home), runs=runs)
    for text in (SECRET, KEY):
        told = [path for path in runs.folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
        assert told == [], told
