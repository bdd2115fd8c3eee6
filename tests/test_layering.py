"""Imports run one way, larpo <- actors <- scripts, and what is heavy is imported where it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"vllm", "deepspeed"}
INSIDE_VLLM = {"actors/weight_engine.py", "actors/weight_twin.py", "actors/cpu_executor.py"}  # vLLM itself imports them


def modules(room: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / room).rglob("*.py"))


def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: bodies of functions do not."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import(child)


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """First names of all modules that these nodes import; a relative import stays in its room."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).partition(".")[0])
    return found


def test_the_walk_sees_imports_wherever_they_stand():
    code = ast.parse("import a.b\nif True:\n    from c.d import e\ndef f():\n    import g\nclass H:\n    import i\n")
    assert imported(ast.walk(code)) == {"a", "c", "g", "i"}
    assert imported(at_import(code)) == {"a", "c", "i"}


@pytest.mark.parametrize("module", modules("larpo"))
def test_the_method_knows_nothing_of_the_system(module):
    assert not imported(ast.walk(tree(module))) & {"ray", "vllm", "deepspeed", "actors", "scripts", "tests"}


@pytest.mark.parametrize("module", modules("actors"))
def test_the_system_knows_nothing_of_its_entry_points(module):
    assert not imported(ast.walk(tree(module))) & {"scripts", "tests"}


@pytest.mark.parametrize("module", sorted({*modules("actors"), *modules("scripts")} - INSIDE_VLLM))
def test_heavy_packages_are_imported_inside_functions(module):
    assert not imported(at_import(tree(module))) & HEAVY


def test_vllm_stands_behind_one_adapter():
    users = {module for module in modules("actors") if "vllm" in imported(ast.walk(tree(module)))}
    assert users == {"actors/engine.py", *INSIDE_VLLM}


def test_ray_remote_calls_stand_together():
    calls = {
        module
        for module in modules("actors") + modules("scripts")
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "ray.remote"
    }
    assert calls == {"actors/placement.py"}


@pytest.mark.parametrize("module", ["larpo.config", "larpo.recipe", "scripts.align", "scripts.sft"])
def test_a_mistake_in_a_recipe_shows_before_anything_heavy_is_imported(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'ray', 'vllm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
