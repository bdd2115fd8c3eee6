"""The README stays true: its map names every module, its commands parse, its files exist."""

import re
from pathlib import Path

import pytest

from larpo.recipe import bundled_recipes
from scripts import align, compare, doctor, evaluate, experiment, lists, offline, sft, train_reward
from scripts.bench import BENCHMARKS
from scripts.benchmarks.published import markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("room", ["larpo", "actors", "scripts"])
def test_the_map_names_every_module_once_and_in_order(room):
    """... and none that is gone."""
    block = re.search(rf"^{room}/ .*\n((?:  .*\n)+)", README, flags=re.MULTILINE).group(1)
    named = re.findall(r"^  (\w+)\.py", block, flags=re.MULTILINE)
    assert named == sorted({path.stem for path in (ROOT / room).glob("*.py")} - {"__init__"})


@pytest.mark.parametrize(
    ("script", "parse", "least"),
    [
        ("align", align.parser, 3),
        ("sft", sft.parser, 1),
        ("offline", offline.parser, 1),
        ("lists", lists.parser, 2),
        ("compare", compare.parser, 1),
        ("doctor", doctor.parser, 1),
        ("evaluate", evaluate.parser, 2),
        ("experiment", experiment.parser, 1),
        ("train_reward", train_reward.parser, 1),
    ],
)
def test_every_command_parses(script, parse, least):
    commands = re.findall(rf"^python -m scripts\.{script} ([^#\n]*)", README, flags=re.MULTILINE)
    assert len(commands) >= least
    for command in commands:
        words = [word.strip("[]").replace("...", "") for word in command.split()]
        parse().parse_intermixed_args([word for word in words if word])


def test_every_bundled_recipe_is_in_a_table():
    """The README's own, or that of a page which it links."""
    pages = [README, *(path.read_text() for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" in README)]
    rows = [line for page in pages for line in page.splitlines() if "`" in line]
    for recipe in bundled_recipes():
        assert any(f"`{recipe}`" in row for row in rows), recipe


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z][a-z-]+)", README)) - {"and"} <= targets


def test_the_table_of_benchmarks_is_that_of_the_results():
    """`python -m scripts.bench table` prints it."""
    block = re.search(r"<!-- benchmarks -->\n(.*?)\n<!-- /benchmarks -->", README, flags=re.DOTALL)
    assert block.group(1).strip() == markdown(ROOT / "benchmarks", BENCHMARKS)


def test_every_linked_file_exists():
    for target in re.findall(r"\]\(((?!https?:|#)[^)]+)\)", README):
        assert (ROOT / target).exists(), target
