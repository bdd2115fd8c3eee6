"""Recipes: YAML files that become a validated configuration, with dotted overrides on top.

A recipe may begin with what other recipes say (`extends`), and may be a grid of arms (`grid`), one of which
`RECIPE:ARM` names. Nothing here imports torch, ray or vllm, so that a mistake shows at once.
"""

from __future__ import annotations

import copy
import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from larpo.config import Config
from larpo.config_checks import check_config, problem_list
from larpo.errors import ConfigError
from larpo.knob_errors import hint, problems_of
from larpo.knobs import Section
from larpo.safety_checks import safety_problems
from larpo.yaml_text import read_yaml, write_yaml

__all__ = ["arms", "bundled_recipes", "changed_knobs", "check_config", "config_to_yaml", "load_config", "recipe_name"]

Root = TypeVar("Root", bound=Section)
_EXTENDS, _GRID = "extends", "grid"


def load_config(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """The checked configuration of a recipe (bundled name or path to YAML) after `section.key=value` overrides.

    Raises ConfigError with everything that is wrong, by dotted key.
    """
    config = read_config(recipe, overrides, Config)
    try:
        check_config(config)
    except ConfigError as error:
        raise ConfigError(f"recipe {recipe}: {error}") from None
    return config


def read_config(recipe: str, overrides: Sequence[str], root: type[Root]) -> Root:
    """A recipe as the model `root`, each knob checked by itself; ConfigError with everything that is wrong."""
    values = _values(recipe)
    for override in overrides:
        values = _with_override(values, override, root)
    try:
        config = root.model_validate(values)
        problems = safety_problems(config)
        if not problems:
            return config
    except ValidationError as error:
        problems = problems_of(error, root)
    raise ConfigError(problem_list(f"recipe {recipe}: {len(problems)} to change", problems))


def arms(recipe: str) -> tuple[str, ...]:
    """Names of the arms of a recipe's grid, in the order of its axes; none for a recipe without one."""
    return tuple(name for name, _ in _arms(_composed(recipe).get(_GRID), recipe))


def first_arms(recipe: str) -> dict[str, str]:
    """The arm that each is compared with: that of the first axis's first label, and the same labels on the others."""
    first, *others = _composed(recipe)[_GRID].values()
    begin = next(iter(first))
    rests = list(itertools.product(*others))
    return {".".join((label, *rest)): ".".join((begin, *rest)) for label in first for rest in rests}


def bundled_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with larpo, sorted."""
    files = resources.files("larpo.recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def recipe_name(recipe: str) -> str:
    """The name that runs of a recipe carry: a bundled name as it is, a path without folders and suffix, and the arm."""
    file, arm = _split(recipe)
    stem = Path(file).stem if _is_path(file) else file
    return f"{stem}-{arm}" if arm else stem


def config_to_yaml(config: Section) -> str:
    """Every knob of a configuration as YAML that `load_config` reads back to the same configuration."""
    return write_yaml(config.model_dump(mode="json"))


def changed_knobs(old: Section, new: Section) -> list[str]:
    """What differs between two configurations, as "dotted.key: old -> new" in the order of the sections."""
    before, after = flat_knobs(old), flat_knobs(new)
    keys = [*before, *(key for key in after if key not in before)]
    missing = "not set"
    return [
        f"{key}: {before.get(key, missing)} -> {after.get(key, missing)}"
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]


def flat_knobs(config: Section) -> dict[str, Any]:
    """Every knob by its dotted key, in the order of the sections."""
    return dict(_flat(config.model_dump(mode="json")))


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


# --- Composition


def _values(recipe: str) -> dict[str, Any]:
    """What a recipe says, its arm laid over it."""
    file, wanted = _split(recipe)
    values = _composed(file)
    known = dict(_arms(values.pop(_GRID, None), file))
    if wanted and wanted in known:
        return _laid_over(values, known[wanted])
    if not wanted and not known:
        return values
    listed = ", ".join(known) if known else "none: leave the colon and what follows it out"
    head = f"has no arm {wanted!r}" if wanted else f"is a grid of {len(known)} arms; name one as {file}:ARM"
    raise ConfigError(f"recipe {file}: {head}. Arms: {listed}")


def _composed(recipe: str, chain: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's values, laid over those of the recipes that it extends, the later over the earlier."""
    if recipe in chain:
        raise ConfigError(f"recipe {recipe}: extends itself: {' -> '.join([*chain, recipe])}; take one of these out")
    values = read_yaml(_recipe_text(recipe), f"recipe {recipe}")
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ConfigError(f"recipe {recipe}: holds {kind}, not sections of knobs; start from a bundled one")
    extended = values.pop(_EXTENDS, [])
    names = [extended] if isinstance(extended, str) else extended
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"recipe {recipe}: extends = {extended!r}: must be a recipe, or a list of them")
    whole: dict[str, Any] = {}
    for name in names:
        whole = _laid_over(whole, _composed(_beside(recipe, name), (*chain, recipe)))
    return _laid_over(whole, values)


def _beside(recipe: str, name: str) -> str:
    """A path that a recipe extends is seen from that recipe's folder."""
    if not _is_path(name) or not _is_path(recipe) or Path(name).expanduser().is_absolute():
        return name
    return str(Path(recipe).parent / name)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are joined key by key; anything else is replaced."""
    joined = dict(below)
    for key, value in above.items():
        under = joined.get(key)
        joined[key] = _laid_over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return joined


def _arms(grid: Any, recipe: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, values) of each combination of a grid's axes: `grid: {axis: {label: {section: ...}}}`."""
    if grid is None:
        return
    axes = list(grid.values()) if isinstance(grid, dict) else []
    fits = bool(axes) and all(isinstance(axis, dict) and axis for axis in axes)
    if not fits or not all(isinstance(label, str) and isinstance(v, dict) for a in axes for label, v in a.items()):
        raise ConfigError(
            f"recipe {recipe}: grid must be {{axis: {{label: {{section: {{knob: value}}}}}}}}, such as "
            "{objective: {listmle: {objective: {name: listmle}}}}"
        )
    for combination in itertools.product(*(axis.items() for axis in grid.values())):
        values: dict[str, Any] = {}
        for _, part in combination:
            values = _laid_over(values, part)
        yield ".".join(label for label, _ in combination), values


# --- Files


def _split(recipe: str) -> tuple[str, str]:
    """(recipe, arm) of "recipe:arm"; the arm is empty where none is named."""
    name, _, arm = recipe.rpartition(":")
    return (name, arm) if name and "/" not in arm and not Path(recipe).exists() else (recipe, "")


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


def _with_override(values: dict[str, Any], override: str, root: type[Section]) -> dict[str, Any]:
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
            raise ConfigError(
                f"override {override!r}: {above} = {section!r} is no section; see {hint(tuple(names), root)}"
            )
    section[names[-1]] = read_yaml(text, f"override {override!r}")
    return changed
