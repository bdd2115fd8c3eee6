"""What is wrong with the knobs of a configuration, in words: the value, the limit and the next step."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from larpo.knobs import Section


def problems_of(error: ValidationError, root: type[Section]) -> list[str]:
    """One line a problem of a configuration whose top is `root`."""
    return [_problem(detail, root) for detail in error.errors(include_url=False)]


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


def _problem(detail: Mapping[str, Any], root: type[Section]) -> str:
    """One pydantic error as "key = value: limit; next step"."""
    loc, kind = detail["loc"], detail["type"]
    if kind == "extra_forbidden":
        return f"{_dotted(loc)}: no knob is called so; {hint(loc, root)}"
    named = {"input": detail["input"], **detail.get("ctx", {})}
    limit = _LIMITS[kind].format(**named) if kind in _LIMITS else detail["msg"]
    close = difflib.get_close_matches(str(detail["input"]), re.findall(r"'(.*?)'", limit), n=1)
    guess = f" (did you mean {close[0]!r}?)" if kind == "literal_error" and close else ""
    return f"{_dotted(loc)} = {detail['input']!r}: {limit}{guess}; {_default(loc, root)}"


def _dotted(loc: Sequence[str | int]) -> str:
    """("a", "b", 0) as "a.b[0]"."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".")


def _default(loc: Sequence[str | int], root: type[Section]) -> str:
    """What to do about a wrong value: its knob's default, where it has a plain one."""
    node: Any = root()
    for depth, part in enumerate(loc):
        if not isinstance(node, Section):
            return f"leave {_dotted(loc[:depth])} out for its default {_plain(node)}"
        node = getattr(node, str(part), Section())
    if isinstance(node, Section):
        return "leave it out for its defaults"
    return f"leave it out for its default {_plain(node)}"


def _plain(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else repr(value)


def hint(loc: Sequence[str | int], root: type[Section]) -> str:
    """The knob nearest to an unknown one: a sibling, one of that name elsewhere, or the likeliest of all."""
    known = list(_knobs(root()))
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
