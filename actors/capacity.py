"""Whether a plan fits a cluster: what each actor asks for, packed onto nodes. Nothing here knows Ray.

What an actor asks for must lie on one node, so a cluster with enough in all can still be one on which a plan has no
place. Packing is hard in general: what counts as refused is proven, by counts or by a search that came to its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from larpo.errors import ConfigError

SLACK = 1e-6  # Ray counts resources in units of 1e-4
SEARCH_STEPS = 20_000  # of the search, before it is given up: some milliseconds
NEXT_STEP = (
    "Lower samplers.count or training.workers, or what each asks for (samplers.resources,"
    " training.resources_per_worker)"
)


@dataclass(frozen=True)
class Bundle:
    """What must lie on one node: the resources of one actor, or those of one part of a placement group."""

    name: str  # what a person calls it: "sampler", "trainer worker"
    resources: Mapping[str, float]


@dataclass(frozen=True)
class Node:
    """A node that is there."""

    name: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class NodeType:
    """Nodes that an autoscaler may still start; `count` of None: without a limit."""

    name: str
    resources: Mapping[str, float]
    count: int | None


@dataclass(frozen=True)
class Packing:
    """What has no place. `is_proven`: no other way to pack leaves room for all."""

    left: tuple[Bundle, ...]
    is_proven: bool


def pack(bundles: Sequence[Bundle], nodes: Sequence[Node], types: Sequence[NodeType] = ()) -> Packing:
    """Bundles packed onto nodes and those that may be started."""
    startable = [
        Node(kind.name, kind.resources)
        for kind in types
        for _ in range(len(bundles) if kind.count is None else min(kind.count, len(bundles)))
    ]
    asked = [bundle for bundle in bundles if _amounts(bundle.resources)]
    rooms = [dict(node.resources) for node in (*nodes, *startable)]
    left = _best_fit(asked, [dict(room) for room in rooms])
    if not left or _is_too_much(asked, rooms):
        return Packing(tuple(left), is_proven=True)
    found = _search(sorted(asked, key=_size(rooms), reverse=True), rooms)
    return Packing(() if found else tuple(left), is_proven=found is not None)


def check_fits(
    bundles: Sequence[Bundle], nodes: Sequence[Node], types: Sequence[NodeType] = (), more: str = ""
) -> None:
    """Raises ConfigError naming what the cluster lacks; `more` is said of nodes that are not there."""
    packing = pack(bundles, nodes, types)
    if packing.left and packing.is_proven:
        raise ConfigError(refusal(bundles, packing.left, nodes, types, more))


def refusal(
    bundles: Sequence[Bundle],
    left: Sequence[Bundle],
    nodes: Sequence[Node],
    types: Sequence[NodeType] = (),
    more: str = "",
) -> str:
    """Why a plan can never be placed: what is short in all, what has no place, and what there is."""
    there, needed = _totals(nodes, types), total(bundles)
    short = [
        f"{amount:g} {name} needed, {there.get(name, 0.0):g} there"
        for name, amount in needed.items()
        if amount > there.get(name, 0.0) + SLACK
    ]
    causes = short or [f"no place for {told(left)}, each on one node, with {told_nodes(nodes)}"]
    if types:
        causes.append("the autoscaler may still start " + _told_types(types))
    if more:
        causes.append(more)
    return f"the cluster can never hold this run's actors: {'; '.join(causes)}. {NEXT_STEP}"


def total(bundles: Iterable[Bundle]) -> dict[str, float]:
    """What bundles ask for in all.

    >>> total([Bundle("a", {"CPU": 1, "GPU": 1}), Bundle("b", {"CPU": 0.5})])
    {'CPU': 1.5, 'GPU': 1.0}
    """
    found: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.resources.items():
            found[name] = found.get(name, 0.0) + amount
    return found


def told(bundles: Iterable[Bundle]) -> str:
    """Bundles in words: `2 x sampler (1 GPU + 4 CPU)`."""
    counts = Counter((bundle.name, _words(bundle.resources)) for bundle in bundles)
    return ", ".join(f"{count} x {name} ({words})" for (name, words), count in counts.items())


def told_nodes(nodes: Sequence[Node]) -> str:
    """Nodes in words, alike ones together; only what an actor can ask for."""
    counts = Counter(_words(_asked_for(node.resources)) for node in nodes)
    if not counts:
        return "no node"
    return ", ".join(f"{count} node{'s' if count > 1 else ''} of {words}" for words, count in counts.items())


def _told_types(types: Sequence[NodeType]) -> str:
    return ", ".join(
        f"{'any number' if kind.count is None else kind.count} x {kind.name} ({_words(_asked_for(kind.resources))})"
        for kind in types
    )


def _asked_for(resources: Mapping[str, float]) -> dict[str, float]:
    """Without what Ray adds of its own to a node's resources: its address, its memory, its accelerator's name."""
    own = ("node:", "accelerator_type:", "bundle_group")
    hidden = ("memory", "object_store_memory")
    return {name: v for name, v in resources.items() if not name.startswith(own) and name not in hidden}


def _words(resources: Mapping[str, float]) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing"


def _amounts(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if amount > 0}


def _totals(nodes: Sequence[Node], types: Sequence[NodeType]) -> dict[str, float]:
    rooms = [Bundle(node.name, node.resources) for node in nodes]
    there = total(rooms)
    for kind in types:
        for name, amount in kind.resources.items():
            more = float("inf") if kind.count is None and amount else amount * (kind.count or 0)
            there[name] = there.get(name, 0.0) + more
    return there


def _fits(bundle: Bundle, room: Mapping[str, float]) -> bool:
    return all(amount <= room.get(name, 0.0) + SLACK for name, amount in _amounts(bundle.resources).items())


def _put(bundle: Bundle, room: dict[str, float], sign: float = -1.0) -> None:
    for name, amount in _amounts(bundle.resources).items():
        room[name] = room.get(name, 0.0) + sign * amount


def _size(rooms: Sequence[Mapping[str, float]]):
    """How large a bundle is: its largest share of what there is of a resource."""
    there = total(Bundle("", room) for room in rooms)

    def share(bundle: Bundle) -> float:
        return max(amount / max(there.get(name, 0.0), SLACK) for name, amount in _amounts(bundle.resources).items())

    return share


def _best_fit(bundles: Sequence[Bundle], rooms: list[dict[str, float]]) -> list[Bundle]:
    """What is left when the largest go first, each where least is left of what it asks for. Changes `rooms`."""
    left = []
    for bundle in sorted(bundles, key=_size(rooms), reverse=True):
        open_rooms = [room for room in rooms if _fits(bundle, room)]
        if not open_rooms:
            left.append(bundle)
            continue
        names = _amounts(bundle.resources)
        _put(bundle, min(open_rooms, key=lambda room: (sum(room[name] for name in names), sum(room.values()))))
    return left


def _is_too_much(bundles: Sequence[Bundle], rooms: Sequence[Mapping[str, float]]) -> bool:
    """Whether counts alone prove it: more in all than there is, or more bundles of a shape than nodes have room for."""
    there = total(Bundle("", room) for room in rooms)
    if any(amount > there.get(name, 0.0) + SLACK for name, amount in total(bundles).items()):
        return True
    shapes = Counter(tuple(sorted(_amounts(bundle.resources).items())) for bundle in bundles)
    return any(
        sum(min(int((room.get(name, 0.0) + SLACK) / amount) for name, amount in shape) for room in rooms) < count
        for shape, count in shapes.items()
    )


def _search(bundles: Sequence[Bundle], rooms: list[dict[str, float]]) -> bool | None:
    """Whether there is a way to pack all; None when the search was given up. Alike nodes are tried once."""
    steps = 0

    def place(index: int) -> bool | None:
        nonlocal steps
        if index == len(bundles):
            return True
        tried, sure = set(), True
        for room in rooms:
            state = tuple(sorted((name, round(amount, 5)) for name, amount in room.items()))
            if state in tried or not _fits(bundles[index], room):
                continue
            tried.add(state)
            steps += 1
            if steps > SEARCH_STEPS:
                return None
            _put(bundles[index], room)
            found = place(index + 1)
            _put(bundles[index], room, 1.0)
            if found:
                return True
            sure = sure and found is not None
        return False if sure else None

    return place(0)
