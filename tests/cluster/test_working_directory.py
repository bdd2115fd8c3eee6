"""What `ray job submit --working-dir .` sends of a checkout that has been worked in, by Ray's own packaging."""

import shutil
import zipfile
from pathlib import Path

from tests.toy_runs import REPOSITORY

LEFT_OUT = (
    ".venv",
    "runs",
    "evaluations",
    "wandb",
    ".git",
    ".pytest_cache",
)  # what work leaves behind, and may be huge


def package(checkout: Path, target: Path) -> list[str]:
    """Names in the package that Ray makes."""
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import create_package

    left_out = ray_constants.get_runtime_env_default_excludes()
    create_package(str(checkout), target, include_gitignore=True, excludes=left_out)
    return zipfile.ZipFile(target).namelist()


def test_only_the_code_is_sent_and_it_is_small(tmp_path):
    checkout = tmp_path / "checkout"
    ours = shutil.ignore_patterns(*LEFT_OUT, "__pycache__", ".mypy_cache", ".ruff_cache", ".hypothesis")
    shutil.copytree(REPOSITORY, checkout, ignore=ours)
    for name in LEFT_OUT:
        (checkout / name).mkdir()
        (checkout / name / "large.bin").write_bytes(b"0")
    names = package(checkout, tmp_path / "package.zip")
    assert {"actors/weight_engine.py", "larpo/recipes/quickstart.yaml", "scripts/align.py"} <= set(names)
    assert not [name for name in names if "large.bin" in name]
    assert (tmp_path / "package.zip").stat().st_size < 10 * 2**20
