"""Secrets in texts: the values of environment variables that are called so, and the logins of URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_SECRET_NAME = re.compile(r"(KEY|KEY_ID|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=http://)[^/\s@]+(?=@)|(?<=https://)[^/\s@]+(?=@)")
SHORTEST = 8  # a shorter value would be found in words


def redact(text: str, env: Mapping[str, str] | None = None) -> str:
    """The text without the values of secret environment variables and the logins of URLs.

    >>> redact("401 for abcdefgh1", {"HF_TOKEN": "abcdefgh1"})
    '401 for [HF_TOKEN]'
    """
    env = os.environ if env is None else env
    secrets = {value: name for name, value in env.items() if _SECRET_NAME.search(name) and len(value) >= SHORTEST}
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, f"[{secrets[value]}]")
    return _URL_LOGIN.sub("[login]", text)


def redact_all(value: Any) -> Any:
    """`redact` on every string of nested mappings and sequences; tuples become lists, as JSON has them."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    return value
