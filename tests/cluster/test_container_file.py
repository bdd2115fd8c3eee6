"""The container file fits the lock that it installs; nothing here can build it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster" / "Containerfile").read_text()
LOCK = dict(line.split("==") for line in (ROOT / "locks" / "gpu.lock").read_text().splitlines() if "==" in line)


def test_the_image_has_the_cuda_that_torch_is_built_for():
    """Its compiler builds flash-attn, which torch refuses with another CUDA than its own."""
    image, major, minor = re.search(
        r"^FROM (nvidia/cuda:(\d+)\.(\d+)\.\d+-cudnn-devel-ubuntu[\d.]+)$", TEXT, re.M
    ).groups()
    assert LOCK["cuda-toolkit"].split(".")[:2] == [major, minor], image
    assert f"nvidia-cudnn-cu{major}" in LOCK
    assert f"nvidia-nccl-cu{major}" in LOCK


def test_the_lock_has_what_the_file_installs_apart():
    assert set(re.findall(r"'?\^([\w-]+)==", TEXT)) == {"flash-attn"}
    assert {"flash-attn", "torch", "vllm", "ray", "deepspeed", "ninja", "packaging", "setuptools"} <= set(LOCK)
    apart = dict(re.findall(r"(boto3|google-api-python-client)==([\d.]+)", TEXT))
    assert all(LOCK.get(name, version) == version for name, version in apart.items())
    assert LOCK["python-dateutil"].startswith("2.")  # botocore takes no newer one: nothing of the lock may move for it


def test_every_copied_file_is_in_the_folder_that_the_build_sees():
    assert re.search(r"docker build -f cluster/Containerfile -t \S+ locks", TEXT)
    copied = re.findall(r"^COPY (?!--from)(\S+) ", TEXT, re.M)
    assert copied == ["gpu.lock"]
    assert all((ROOT / "locks" / name).is_file() for name in copied)


def test_python_is_the_projects_and_the_user_has_no_rights():
    (version,) = set(re.findall(r"python install ([\d.]+)|--python ([\d.]+)", TEXT)[0]) - {""}
    assert f"python_requires = >={version}," in (ROOT / "setup.cfg").read_text()
    assert re.findall(r"^USER (\S+)", TEXT, re.M) == ["1000"]
    assert "--uid 1000 --shell /bin/bash ray" in TEXT
    assert re.search(r"^ENV HOME=/home/ray$", TEXT, re.M)  # `ray up` looks for it in the image


def test_larpo_is_not_in_the_image():
    """The checkout that is submitted is what runs."""
    assert not re.search(r"COPY .*(actors|scripts|setup\.cfg)", TEXT)
