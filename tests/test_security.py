"""What the code may not do, held over its syntax trees: unpickle, evaluate, listen beyond this machine."""

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
CODE = {
    str(path.relative_to(ROOT)): path.read_text()
    for room in ("larpo", "actors", "scripts")
    for path in sorted((ROOT / room).rglob("*.py"))
}
UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LOADERS = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle", "datasets.load_from_disk"}
DEEPSPEED = {"actors/zero_engine.py"}  # which unpickles a run's own checkpoints
BOUND_TO_ALL = {"0.0.0.0", "::"}


def nodes(code: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(code))


def imports(code: str) -> set[str]:
    found = {name.name for node in nodes(code) if isinstance(node, ast.Import) for name in node.names}
    froms = [node for node in nodes(code) if isinstance(node, ast.ImportFrom) and node.module]
    names = {part for node in froms for part in (node.module, *(f"{node.module}.{name.name}" for name in node.names))}
    return {name.partition(".")[0] for name in found | names} | {name for name in names}


def calls(code: str) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in nodes(code) if isinstance(node, ast.Call)]


def unpickles(code: str) -> set[str]:
    """What in this code would unpickle or evaluate something."""
    found = imports(code) & (UNPICKLERS | {"torch.load", "numpy.load"})
    for name, call in calls(code):
        if name in LOADERS or name in ("eval", "exec", "yaml.unsafe_load", "yaml.full_load"):
            found.add(name)
        allow = next((word.value for word in call.keywords if word.arg == "allow_pickle"), None)
        if allow is not None and ast.unparse(allow) != "False":
            found.add(f"{name}(allow_pickle)")
        loader = next((ast.unparse(word.value) for word in call.keywords if word.arg == "Loader"), "")
        if name == "yaml.load" and loader != "_Loader":
            found.add("yaml.load")
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from cloudpickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import numpy as np\nnp.load('x')",
        "g(allow_pickle=True)",
        "eval('1')",
        "import yaml\nyaml.load(x, Loader=yaml.Loader)",
    ],
)
def test_the_walk_finds_what_it_looks_for(code):
    assert unpickles(code)


def test_nothing_is_unpickled_or_evaluated():
    """Files and replies from outside are safetensors, Parquet, JSON, YAML of the safe kind, or SQLite."""
    found = {module: unpickles(code) for module, code in CODE.items()}
    assert {module: names for module, names in found.items() if names} == {}


def test_deepspeed_reads_a_runs_own_checkpoints_only_after_their_checksums():
    """Who asks an engine to load has the folder from `newest_checkpoint`, which checks every file."""
    assert {m for m, code in CODE.items() if any(n.endswith(".load_checkpoint") for n, _ in calls(code))} == DEEPSPEED
    assert {m for m, code in CODE.items() if "ds_to_universal" in code} == {"actors/resharding.py"}
    asking = {m for m, code in CODE.items() if any(name.endswith("engine.load") for name, _ in calls(code))}
    assert asking == {"actors/trainer.py", "actors/reward_trainer.py"}
    for module in asking:
        (holder,) = [
            node
            for node in nodes(CODE[module])
            if isinstance(node, ast.FunctionDef) and "engine.load(" in ast.unparse(node)
        ]
        assert "newest_checkpoint" in ast.unparse(holder), module


def test_weights_are_read_as_safetensors():
    """A model class that reads weights says so, or else transformers opens a pickle where there is one."""
    for module, code in CODE.items():
        for name, call in calls(code):
            if name.startswith("AutoModel") and name.endswith(".from_pretrained"):
                words = {word.arg: ast.unparse(word.value) for word in call.keywords}
                assert words.get("use_safetensors") == "True" or "gguf_file" in words, (module, ast.unparse(call))


def test_nothing_of_ours_listens_beyond_this_machine_by_default():
    for module, code in CODE.items():
        constants = {node.value for node in nodes(code) if isinstance(node, ast.Constant)}
        assert not constants & BOUND_TO_ALL, module
        for name, call in calls(code):
            if name == "ray.init" and "address='local'" in ast.unparse(call):
                assert "dashboard_host='127.0.0.1'" in ast.unparse(call), module


@pytest.mark.slow
def test_a_ray_of_ours_listens_on_loopback_alone(tmp_path):
    """Its dashboard, its agents and the exporter of its metrics; in a process of its own, whose Ray it is."""
    code = "from actors.placement import connect; connect('test'); print('there', flush=True); input()"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], **streams, env=environment, cwd=ROOT, text=True) as driver:
        try:
            assert driver.stdout.readline() == "there\n"
            time.sleep(10)  # its agents come last
            heard = listening(driver.pid)
        finally:
            driver.stdin.close()
            driver.wait(60)
    assert len(heard) > 3
    assert {address for _, address in heard} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, heard


def listening(pid: int) -> set[tuple[str, str]]:
    """(process name, address) of everything that a process and its children listen on."""
    found = set()
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((process.name(), connection.laddr.ip))
    return found


def test_a_reward_server_listens_on_loopback():
    from scripts.serve_reward import parser

    assert parser().parse_args(["quickstart"]).host == "127.0.0.1"
