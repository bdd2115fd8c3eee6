"""Every command of the README and of docs/ parses: the project's own, and Ray's by Ray's own parser."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> Iterator[str]:
    """Fenced blocks without a language."""
    fence: str | None = None
    for line in page.read_text().splitlines():
        opening = line.strip().startswith("```")
        if opening and fence is None:
            fence, block = line.strip(), ""
        elif opening:
            if fence == "```":
                yield block
            fence = None
        elif fence is not None:
            block += line + "\n"


def commands(page: Path) -> Iterator[str]:
    """Lines of shell, those that end by a backslash joined with the next."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            yield from filter(None, map(str.strip, line.split("&&")))


def words_of(command: str) -> list[str]:
    """As a shell splits it; what a page leaves to the reader, `[key=value ...]`, counts as it stands."""
    words = [word.strip("[]").replace("...", "") for word in shlex.split(command, comments=True)]
    return [word for word in words if word]


def found(program: str) -> list:
    return [
        pytest.param(words, id=f"{page.name}: {' '.join(words)[:70]}")
        for page in PAGES
        for words in map(words_of, (line for line in commands(page) if line.startswith(f"{program} ")))
    ]


def check_script(words: list[str]) -> None:
    assert words[:2] == ["python", "-m"], words
    module = importlib.import_module(words[2])
    module.parser().parse_intermixed_args(words[3:])


@pytest.mark.parametrize("words", [case for case in found("python") if case.values[0][2].startswith("scripts.")])
def test_the_projects_commands_parse(words):
    check_script(words)


@pytest.mark.parametrize("words", found("ray"))
def test_rays_commands_parse(words):
    from ray.scripts.scripts import cli

    command, rest = cli, words[1:]
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, f"{rest[0]} is none of {', '.join(command.commands)}"
        command, rest = command.commands[rest[0]], rest[1:]
    context = command.make_context(command.name, list(rest))
    for name in ("cluster_config_file", "runtime_env"):
        if context.params.get(name):
            assert (ROOT / context.params[name]).is_file(), context.params[name]
    if "entrypoint" in context.params:
        check_script(list(context.params["entrypoint"]))


def test_a_command_that_does_not_parse_is_seen():
    from click import UsageError

    with pytest.raises(UsageError):
        test_rays_commands_parse(words_of("ray job submit --adress URL -- python -m scripts.align quickstart"))
    with pytest.raises(SystemExit):
        check_script(words_of("python -m scripts.align quickstart --no-such x"))


def test_the_pages_have_commands():
    """None of the tests above is empty."""
    assert len(found("python")) >= 20
    assert len(found("ray")) >= 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_or_names_exists(page):
    text = page.read_text()
    for target in re.findall(r"\]\(((?!https?:|#)[^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"(?<![\w/])cluster/[\w/.-]*\w", text):
        assert (ROOT / name).exists(), name


def test_no_example_goes_without_rays_token():
    files = [*PAGES, *(path for path in (ROOT / "cluster").rglob("*") if path.suffix in (".yaml", ".yml", ".sh"))]
    for path in files:
        assert not re.search(r"RAY_AUTH_MODE\W+disabled|mode: disabled", path.read_text()), path
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert page.index("ray get-auth-token --generate") < page.index("ray up --yes") < page.index("ray job submit")
