"""`ray up` itself, with machines that only write down what they are asked: the commands that would reach a head."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"
SSH = """#!/bin/sh
for word in "$@"; do last=$word; done
echo "$last" >> {asked}
case "$last" in
  *"json .Config.Env"*) echo '["HOME=/home/ray"]' ;;
  *".State.Running"*) if grep -q "docker run" {asked}; then echo true; else echo false; fi ;;
  *"json .Mounts"*) echo '[]' ;;
  *"printenv HOME"*) echo /home/ray ;;
  *"command -v docker"*) echo /usr/bin/docker ;;
  *"docker info"*) echo "map[nvidia-container-runtime:]" ;;
esac
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> list[str]:
    """What `ray up` asks of the head of machines.yaml over ssh and rsync, in order."""
    folder = tmp_path_factory.mktemp("launching")
    file, home = folder / "asked.txt", folder / "home"
    programs = {"ssh": SSH.format(asked=file), "rsync": f'#!/bin/sh\necho "rsync $*" >> {file}\n'}
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for name in (".ssh/id_ed25519", ".ray/auth_token"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("a secret\n")
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "up", "--yes", str(CLUSTER / "machines.yaml")],
        env=os.environ | {"HOME": str(home), "RAY_TMPDIR": str(folder), "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return file.read_text().splitlines()


def only(asked: list[str], part: str) -> str:
    (line,) = [line for line in asked if part in line]
    return line


@pytest.mark.timeout(240)
def test_the_container_runs_with_token_shared_memory_and_gpus(asked):
    run = only(asked, "docker run ")
    image = run.index("REGISTRY/larpo:gpu")
    wanted = (
        "--ipc=host",
        "--env RAY_AUTH_MODE=token",
        "--volume /mnt/shared:/shared",
        "--runtime=nvidia",
        "--net=host",
    )
    for option in (*wanted, "/.ray/auth_token:/home/ray/.ray/auth_token"):
        assert option in run[:image], option
    assert "--shm-size" not in run


@pytest.mark.timeout(240)
def test_the_token_is_there_before_ray_starts(asked):
    copied = next(number for number, line in enumerate(asked) if line.startswith("rsync") and "auth_token" in line)
    started = next(number for number, line in enumerate(asked) if "ray start --head" in line)
    assert copied < started
    assert "a secret" not in "".join(asked)


@pytest.mark.timeout(240)
def test_the_head_starts_in_the_container_with_the_new_autoscaler(asked):
    start = only(asked, "ray start --head")
    assert "docker exec" in start
    assert "RAY_enable_autoscaler_v2=1" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=/home/ray/ray_bootstrap_config.yaml" in start
