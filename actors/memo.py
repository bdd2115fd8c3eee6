"""A few facts that outlive an actor's process: by them, one that Ray has started again goes on where it was.

They lie in Ray's own key-value store, beside its table of actors, so that they are there on whichever node the actor
starts again. What is on the run's storage is not repeated here.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

_ROOM = b"larpo"  # namespace of the keys


class Memo(Protocol):
    """Where facts are put down; a test's is a variable."""

    def read(self) -> Mapping[str, Any]: ...
    def write(self, facts: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class RayMemo:
    """Of one actor: made with it and handed to its constructor, which Ray calls again with the same."""

    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def read(self) -> Mapping[str, Any]:
        """Nothing in an actor's first process."""
        from ray.experimental.internal_kv import _internal_kv_get

        found = _internal_kv_get(self.key, namespace=_ROOM)
        return json.loads(found) if found else {}

    def write(self, facts: Mapping[str, Any]) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self.key, json.dumps(facts), namespace=_ROOM)
