"""What an actor is called, and what it is doing, as the title of its process: in the dashboard, in `ps` and in `top`.

Ray takes an actor's name and its `repr` once, when it is made, and knows nothing newer of it. It also sets the title of
a worker's process around every call, so that a text which is to stay has to be set again and again.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable

AGAIN_S = 0.25  # the dashboard looks every 2.5 s


_named: Counter[str] = Counter()  # how many actors of this process have had a name


def actor_name(base: str) -> str:
    """`RUN/sampler-0` in the dashboard; who takes its place is `RUN/sampler-0.2`, also after the run's driver died."""
    import ray

    name = f"{ray.get_runtime_context().namespace}/{base}"
    taken = set(ray.util.list_named_actors())
    while True:
        _named[name] += 1
        numbered = name if _named[name] == 1 else f"{name}.{_named[name]}"
        if numbered not in taken:
            return numbered


def show_title(doing: Callable[[], str]) -> None:
    """Show what `doing` says from now on; outside an actor there is no process of its own, and nothing is shown."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return
    name = ray.get_runtime_context().get_actor_name()
    threading.Thread(target=_show, args=(name, doing), name="title", daemon=True).start()


def _show(name: str | None, doing: Callable[[], str]) -> None:
    from ray._raylet import setproctitle  # type: ignore[attr-defined]

    never = threading.Event()
    while not never.wait(AGAIN_S):
        setproctitle(f"ray::{name}: {doing()}" if name else f"ray::{doing()}")
