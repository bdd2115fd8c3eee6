"""The hook by which Kubernetes ends a head: its jobs are stopped first, and leave checkpoints of their last steps."""

import json
import shutil
import subprocess

import pytest
import requests

from tests.actors.test_failures import SLOW_REWARD
from tests.cluster.test_manifests import templates
from tests.scripts.test_submit import ROOMS, JobServer
from tests.toy_runs import REPOSITORY, until, write_toy


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_head_that_is_ended_stops_its_jobs_first(tmp_path, tiny_policy):
    (container,) = templates()["head"]["spec"]["containers"]
    hook = container["lifecycle"]["preStop"]["exec"]["command"]
    server = JobServer(tmp_path)
    try:
        checkout, run = tmp_path / "checkout", tmp_path / "runs" / "toy"
        for room in ROOMS:
            shutil.copytree(REPOSITORY / room, checkout / room, ignore=shutil.ignore_patterns("__pycache__"))
        write_toy(checkout, tiny_policy)
        (checkout / "toy_reward.py").write_text(SLOW_REWARD)  # else the run is over before the hook
        steps = ("checkpoints.every_steps=1000", "training.lists_per_step=1")
        folder = (f"run.output_dir={run.parent}", "run.name=toy", "prompts.source=prompts.jsonl")
        server.submit("ended", checkout, "recipe.yaml", *folder, *steps)
        server.wait_for_steps("ended", run, 2)
        assert not list(run.glob("checkpoints/position-*"))

        here = [word.replace("http://127.0.0.1:8265", server.address) for word in hook]
        assert here != hook
        program = str(server._python) if here[0] == "python" else here[0]
        done = subprocess.run(
            [program, *here[1:]], env=server._environment, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        token = {"Authorization": f"Bearer {server.token}"}
        job = requests.get(f"{server.address}/api/jobs/ended", headers=token, timeout=60).json()
        assert job["status"] == "STOPPED"
        until(lambda: not server.workers(), 30, lambda: "\n".join(server.workers()))
        (checkpoint,) = run.glob("checkpoints/position-*/manifest.json")
        assert json.loads((checkpoint.parent / "state.json").read_text())["step"] >= 2
    finally:
        server.close()
