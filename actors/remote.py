"""The answer of a remote call, as the caller of a plain function would have it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from larpo.errors import LarpoError


async def answer(reference: Awaitable[Any]) -> Any:
    """A coroutine around an object reference; an error of ours comes back as it was raised."""
    from ray.exceptions import RayTaskError

    try:
        return await reference
    except RayTaskError as error:
        if isinstance(error.cause, LarpoError):
            raise error.cause from error
        raise
