"""A user's function by `module:function`: found on PYTHONPATH, told apart by a hash of its module's source."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from larpo.errors import ConfigError
from larpo.types import stable_hash


def is_function_name(name: str) -> bool:
    """Whether a name has the form `module:function`. Imports nothing."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def load_function(name: str, what: str) -> Callable[..., Any]:
    """The function; ConfigError, which calls it a `what`, where it cannot be had."""
    module_name, _, function_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{what} {name!r} cannot be loaded: {error}; is its module on PYTHONPATH?") from error
    if not callable(found):
        raise ConfigError(f"{what} {name!r} is a {type(found).__name__}, not a function")
    return found


def source_version(name: str, what: str) -> str:
    """A hash of the source file of the function's module, which is not imported; ConfigError when there is none."""
    module_name = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(f"{what} {name!r}: no module {module_name!r} is found; is it on PYTHONPATH?")
    return f"{stable_hash(Path(spec.origin).read_bytes().hex()):016x}"
