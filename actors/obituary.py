"""What is known of an actor that died or failed: how it ended, the memory that it held, its last log lines.

Ray's own tables say where it ran, and its two log files are read on that node: no dashboard is needed for that.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors import placement
from actors.remote import answer
from actors.work import Failure
from larpo.masking import redact

LOG_LINES = 8  # of each of the two log files
LOOK_S = 10.0  # what a look at another node may take: a report of a death is late enough
_ADVICE = re.compile(r" Some common causes include:.*", re.DOTALL)
_EXIT = re.compile(r"Worker exit type: (\w+) Worker exit detail: (.*)", re.DOTALL)
_HEADER = (":job_id:", ":actor_name:", ":task_name:")  # lines that Ray writes for its own use
_UNSAID = "it died, and Ray does not say why"
_SILENT, _GONE = "does not answer", "is gone, and its log with it"  # said of a node
_UNAVAILABLE = "is unavailable"  # Ray's word for an actor that it does not reach, and of which it knows no more


@dataclass(frozen=True)
class Remains:
    """What Ray's tables hold of the process that an actor had last, or has."""

    node: str
    worker: str
    ended: str  # empty while it runs
    memory_bytes: int  # at its end, where Ray's memory monitor killed it


async def obituary(error: BaseException | None, actor: Any = None, memory_bytes: int = 0) -> str:
    """How an actor failed, what it held, and its log's last lines, in a few lines of text.

    `error` is what a caller of it met, None where Ray has put a new process in its place before anyone did.
    `memory_bytes` is what its processes held when it was last heard; 0: not known.
    """
    actor_id = actor._actor_id.hex() if hasattr(actor, "_actor_id") else getattr(error, "actor_id", None)
    return await told(in_short(error), actor_id, memory_bytes)


async def told(said: str, actor_id: str | None, memory_bytes: int = 0) -> str:
    """The same of an actor by Ray's id of it, with what is `said` already of how it ended."""
    remains = None if actor_id is None else await _found(actor_id)
    if remains is None:
        return said or _UNSAID
    memory = remains.memory_bytes or memory_bytes
    held = f"; it last held {memory / 2**30:.1f} GiB of memory" if memory else ""
    ended, log = said or remains.ended or _UNSAID, await _last_lines(remains)
    if not isinstance(log, str):
        return "\n".join([ended + held, *(f"    {line}" for line in log)])
    node = f"its node {remains.node[:12]} {log}"
    first, then = (node, ended) if log == _SILENT or _UNAVAILABLE in ended else (ended, node)
    return f"{first}{held}\n    {then}"


def how_it_ended(message: str) -> str:
    """The part of Ray's message that tells how a worker process ended.

    >>> how_it_ended("Dead. Worker exit type: SYSTEM_ERROR Worker exit detail: Gone. Some common causes include: (1)")
    'its process ended (SYSTEM_ERROR): Gone.'
    """
    short = _ADVICE.sub("", message).strip()
    found = _EXIT.search(short)
    if found:
        return f"its process ended ({found[1]}): {' '.join(found[2].split())}"
    lines = [line.strip() for line in short.splitlines() if line.strip()]
    return lines[-1] if lines else _UNSAID


def is_death(error: BaseException) -> bool:
    """Whether the actor itself is gone, rather than its method having raised."""
    from ray.exceptions import RayActorError

    return isinstance(error, RayActorError)


def in_short(error: BaseException | None) -> str:
    """What a caller met, without Ray's advice and the traceback of an actor's own code; empty for no error."""
    from ray.exceptions import RayTaskError

    if error is None:
        return ""
    if is_death(error):
        return how_it_ended(str(error))
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        return f"{type(error.cause).__name__}: {error.cause}"
    return str(error) or type(error).__name__


def rank_failures(errors: Mapping[int, Exception]) -> list[Failure]:
    """How ranks of a Ray Train group ended, without what Ray Train wraps around it."""
    found = []
    for rank, error in sorted(errors.items()):
        cause = _unwrapped(error)
        if is_death(cause):
            found.append(Failure(rank, in_short(cause), cause.actor_id))
        else:
            found.append(Failure(rank, f"{type(cause).__name__}: {cause}", None))
    return found


def _unwrapped(error: Any) -> Any:
    inner = getattr(error, "health_check_failure", None) or getattr(error, "_base_exc", None)
    return error if inner is None else _unwrapped(inner)


def _remains(actor_id: str) -> Remains | None:
    """From Ray's tables of actors and of workers; None where the actor never had a process."""
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    form: Any = gcs_pb2  # generated at run time, so that no type is known of it
    if not ray.is_initialized():
        return None
    tables = state._connect_and_get_accessor()
    found = tables.get_actor_info(ray.ActorID(bytes.fromhex(actor_id)))
    if found is None:
        return None
    actor = form.ActorTableData.FromString(found)
    place = actor.previous_incarnations[-1] if actor.previous_incarnations else actor.address
    if actor.state == form.ActorTableData.DEAD and actor.address.worker_id:
        place = actor.address
    if not place.worker_id:
        return None
    row = tables.get_worker_info(ray.WorkerID(place.worker_id))
    worker = form.WorkerTableData.FromString(row) if row else form.WorkerTableData(is_alive=True)
    kinds = form.WorkerTableData.DESCRIPTOR.fields_by_name["exit_type"].enum_type.values_by_number
    detail = " ".join(_ADVICE.sub("", worker.exit_detail).split())
    ended = "" if worker.is_alive else f"its process ended ({kinds[worker.exit_type].name}): {detail}"
    return Remains(place.node_id.hex(), place.worker_id.hex(), ended, worker.memory_used_bytes_at_death)


async def _found(actor_id: str) -> Remains | None:
    """None too where Ray does not answer: whoever mourns goes on all the same."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(_remains, actor_id), LOOK_S)
    except Exception:
        return None


async def _last_lines(remains: Remains) -> list[str] | str:
    """Of what it wrote to its two log files, or why they cannot be had: a string where it is for its node.

    A machine that goes without a word is silent for half a minute before Ray knows that it is gone.
    """
    import ray
    from ray.exceptions import TaskUnschedulableError

    try:
        if remains.node == ray.get_runtime_context().get_node_id():
            return await asyncio.to_thread(read_log, remains.worker)
        if remains.node not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
            return _GONE
        return await asyncio.wait_for(answer(placement.on_node(remains.node, read_log, remains.worker)), LOOK_S)
    except TimeoutError:
        return _SILENT
    except TaskUnschedulableError:  # it went while it was asked
        return _GONE
    except Exception as error:
        return [f"its log on node {remains.node[:12]} cannot be had ({type(error).__name__})"]


def read_log(worker: str) -> list[str]:
    """The last lines of a worker's log files, which must be on this node, without the secrets of this node."""
    from ray._private.worker import global_worker

    own: Any = global_worker.node
    folder, lines = Path(own.get_logs_dir_path()), []
    for suffix, name in (("err", "stderr"), ("out", "stdout")):
        for path in sorted(folder.glob(f"worker-{worker}-*.{suffix}")):
            written = [line for line in _tail(path).splitlines() if line.strip() and not line.startswith(_HEADER)]
            lines += [f"{name}: {redact(line)[:300]}" for line in written[-LOG_LINES:]]
    return lines or ["its log is empty"]


def _tail(path: Path, size: int = 2**14) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")
