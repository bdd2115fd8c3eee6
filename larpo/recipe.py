"""Recipes: YAML files that become a validated configuration, with dotted overrides on top.

YAML is read by the rules of YAML 1.2: `1e-5` is a number, `off` is text; a key written twice is an error.
Nothing here imports torch, ray or vllm, so that a mistake shows at once.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from larpo.config import Config, Section
from larpo.config_checks import check_config, problem_list
from larpo.errors import ConfigError

__all__ = ["bundled_recipes", "changed_knobs", "check_config", "config_to_yaml", "load_config", "recipe_name"]


def load_config(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """The checked configuration of a recipe (bundled name or path to YAML) after `section.key=value` overrides.

    Raises ConfigError with everything that is wrong, by dotted key.
    """
    values = _read_yaml(_recipe_text(recipe), f"recipe {recipe}")
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ConfigError(f"recipe {recipe}: holds {kind}, not sections of knobs; start from a bundled one")
    for override in overrides:
        values = _with_override(values, override)
    config = _validated(values, f"recipe {recipe}")
    try:
        check_config(config)
    except ConfigError as error:
        raise ConfigError(f"recipe {recipe}: {error}") from None
    return config


def bundled_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with larpo, sorted."""
    files = resources.files("larpo.recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def recipe_name(recipe: str) -> str:
    """The name that runs of a recipe carry: a bundled name as it is, a path without folders and suffix."""
    return Path(recipe).stem if _is_path(recipe) else recipe


def config_to_yaml(config: Config) -> str:
    """Every knob of a configuration as YAML that `load_config` reads back to the same configuration."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def changed_knobs(old: Config, new: Config) -> list[str]:
    """What differs between two configurations, as "dotted.key: old -> new" in the order of the sections."""
    before, after = flat_knobs(old), flat_knobs(new)
    keys = [*before, *(key for key in after if key not in before)]
    missing = "not set"
    return [
        f"{key}: {before.get(key, missing)} -> {after.get(key, missing)}"
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]


def flat_knobs(config: Config) -> dict[str, Any]:
    """Every knob by its dotted key, in the order of the sections."""
    return dict(_flat(config.model_dump(mode="json")))


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


# --- YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, and no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} is written twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what `_Loader` would not read back as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"(?=.*[.eE])[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
)
for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _SCALARS:
        starts = ["" if character == "\0" else character for character in _first]
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), starts)


def _read_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{where}{line}: not readable as YAML: {problem or error}") from error


def _is_path(recipe: str) -> bool:
    return "/" in recipe or recipe.endswith((".yaml", ".yml"))


def _recipe_text(recipe: str) -> str:
    if not _is_path(recipe):
        if recipe in bundled_recipes():
            return resources.files("larpo.recipes").joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
        known = ", ".join(bundled_recipes())
        close = difflib.get_close_matches(recipe, bundled_recipes(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"no recipe is called {recipe!r}; {hint}Bundled: {known}; or give a path to YAML")
    try:
        return Path(recipe).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"recipe {recipe}: cannot be read ({error}); give a path to YAML, or one of: {', '.join(bundled_recipes())}"
        ) from error


# --- Overrides


def _with_override(values: dict[str, Any], override: str) -> dict[str, Any]:
    """A copy of `values` with one `section.key=value`, its value read as YAML; "key=" alone is null."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"override {override!r}: must be section.key=value, such as training.iterations=2")
    changed = copy.deepcopy(values)
    section = changed
    for depth, name in enumerate(names[:-1], start=1):
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            above = ".".join(names[:depth])
            raise ConfigError(f"override {override!r}: {above} = {section!r} is no section; see {_hint(tuple(names))}")
    section[names[-1]] = _read_yaml(text, f"override {override!r}")
    return changed


# --- Validation


def _validated(values: dict[str, Any], where: str) -> Config:
    """The configuration of plain values; ConfigError with one line a problem."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors(include_url=False)]
    raise ConfigError(problem_list(f"{where}: {len(problems)} to change", problems))


_LIMITS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be one of {expected}",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": 'must be text; put it in quotes, such as "{input}"',
    "tuple_type": "must be a list, such as [{input}]",
    "dict_type": "must be a mapping, such as {{key: value}}",
    "model_type": "must be a section with knobs of its own",
    "too_long": "must have at most {max_length} items",
    "missing": "has too few items",
    "invalid_key": "the key must be text",
}


def _problem(detail: Mapping[str, Any]) -> str:
    """One pydantic error as "key = value: limit; next step"."""
    loc, kind = detail["loc"], detail["type"]
    if kind == "extra_forbidden":
        return f"{_dotted(loc)}: no knob is called so; {_hint(loc)}"
    named = {"input": detail["input"], **detail.get("ctx", {})}
    limit = _LIMITS[kind].format(**named) if kind in _LIMITS else detail["msg"]
    close = difflib.get_close_matches(str(detail["input"]), re.findall(r"'(.*?)'", limit), n=1)
    guess = f" (did you mean {close[0]!r}?)" if kind == "literal_error" and close else ""
    return f"{_dotted(loc)} = {detail['input']!r}: {limit}{guess}; {_default(loc)}"


def _dotted(loc: Sequence[str | int]) -> str:
    """("a", "b", 0) as "a.b[0]"."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".")


def _default(loc: Sequence[str | int]) -> str:
    """What to do about a wrong value: its knob's default, where it has a plain one."""
    node: Any = Config()
    for depth, part in enumerate(loc):
        if not isinstance(node, Section):
            return f"leave {_dotted(loc[:depth])} out for its default {_plain(node)}"
        node = getattr(node, str(part), Section())
    if isinstance(node, Section):
        return "leave it out for its defaults"
    return f"leave it out for its default {_plain(node)}"


def _plain(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else repr(value)


def _hint(loc: Sequence[str | int]) -> str:
    """The knob nearest to an unknown one: a sibling, one of that name elsewhere, or the likeliest of all."""
    known = list(_knobs(Config()))
    wanted, above = _dotted(loc), _dotted(loc[:-1])
    siblings = [key for key in known if key.rpartition(".")[0] == above]
    same_name = [key for key in known if key.rpartition(".")[2] == str(loc[-1])]
    close = difflib.get_close_matches(wanted, siblings, n=1, cutoff=0.8) or same_name[:1]
    close = close or difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"known in {above or 'a recipe'}: {', '.join(key.rpartition('.')[2] for key in siblings)}"


def _knobs(section: Section, above: str = "") -> Iterator[str]:
    """Dotted names of all sections and knobs."""
    for name, value in section:
        yield f"{above}{name}"
        if isinstance(value, Section):
            yield from _knobs(value, f"{above}{name}.")
