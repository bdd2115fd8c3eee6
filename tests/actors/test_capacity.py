"""Plans packed onto nodes: what fits, what never does, and what is said of it. Many shapes, no Ray."""

import itertools
import random

import pytest

from actors.capacity import Bundle, Node, NodeType, check_fits, pack, told, total
from larpo.errors import ConfigError


def bundles(*asked):
    return [Bundle(f"actor {number}", resources) for number, resources in enumerate(asked)]


def nodes(*rooms):
    return [Node(f"node {number}", room) for number, room in enumerate(rooms)]


GPU, CPU = {"GPU": 1.0}, {"CPU": 1.0}


@pytest.mark.parametrize(
    ("asked", "rooms", "left"),
    [
        ([], [], 0),
        ([{}], [], 0),  # asks for nothing
        ([{"CPU": 0.0}], [], 0),
        ([GPU], [], 1),
        ([GPU], [CPU], 1),
        ([GPU] * 4, [{"GPU": 4}], 0),
        ([GPU] * 5, [{"GPU": 4}], 1),
        ([{"GPU": 2}] * 3, [{"GPU": 3}] * 2, 1),  # six GPUs, and no place for the third pair
        ([{"GPU": 8}], [{"GPU": 4}] * 4, 1),  # sixteen, and none of them eight
        ([{"GPU": 0.5}] * 4, [{"GPU": 2}], 0),
        ([{"GPU": 0.3}] * 3, [{"GPU": 1}], 0),
        ([{"GPU": 0.1}] * 10, [{"GPU": 1}], 0),  # 0.1 ten times is a little more than 1 in floats
        ([{"GPU": 1, "CPU": 8}] * 2, [{"GPU": 2, "CPU": 8}], 1),
        ([{"GPU": 1, "CPU": 8}, {"GPU": 1}], [{"GPU": 2, "CPU": 8}], 0),
        ([{"slot": 1}] * 3, [{"slot": 1, "CPU": 4}] * 3, 0),
        ([{"CPU": 6}, {"CPU": 5}, {"CPU": 5}, {"CPU": 4}], [{"CPU": 10}] * 2, 0),
        # largest first, each where least is left, wants three nodes here; two are enough
        ([{"CPU": c} for c in (4, 4, 3, 3, 3, 3)], [{"CPU": 10}] * 2, 0),
        ([{"CPU": c} for c in (4, 4, 3, 3, 3, 4)], [{"CPU": 10}] * 2, 1),
    ],
)
def test_what_has_no_place(asked, rooms, left):
    packing = pack(bundles(*asked), nodes(*rooms))
    assert (len(packing.left), packing.is_proven) == (left, True)


def test_packing_agrees_with_trying_everything():
    """On small random plans; some of them fit."""
    draw, fitting = random.Random(0), 0
    for _ in range(300):
        asked = [{"GPU": draw.randint(0, 3), "CPU": draw.randint(1, 5)} for _ in range(draw.randint(1, 5))]
        rooms = [{"GPU": draw.randint(0, 4), "CPU": draw.randint(2, 8)} for _ in range(draw.randint(1, 3))]
        fits = any(
            all(
                sum(one[name] for one, place in zip(asked, places, strict=True) if place == number) <= room[name]
                for number, room in enumerate(rooms)
                for name in room
            )
            for places in itertools.product(range(len(rooms)), repeat=len(asked))
        )
        packing = pack(bundles(*asked), nodes(*rooms))
        assert (not packing.left, packing.is_proven) == (fits, True), (asked, rooms)
        fitting += fits
    assert 50 < fitting < 250


def test_hundreds_of_actors_are_packed_at_once():
    asked = [{"GPU": 1, "CPU": 4}] * 300 + [{"GPU": 4}] * 20 + [{"CPU": 2}] * 50
    assert not pack(bundles(*asked), nodes(*[{"GPU": 8, "CPU": 48}] * 48)).left
    assert pack(bundles(*asked), nodes(*[{"GPU": 8, "CPU": 48}] * 47)).left


def test_a_search_that_is_given_up_refuses_nothing():
    """Thirty different sizes that fill three nodes to the last unit: too many ways to try them all."""
    draw = random.Random(1)
    sizes = [{"CPU": draw.randint(100, 900) + 0.5} for _ in range(31)]
    rooms = nodes(*[{"CPU": total(bundles(*sizes))["CPU"] / 3}] * 3)
    packing = pack(bundles(*sizes), rooms)
    assert packing.left
    assert not packing.is_proven
    check_fits(bundles(*sizes), rooms)


@pytest.mark.parametrize(
    ("kinds", "fits"),
    [
        ([NodeType("gpu", {"GPU": 8}, 2)], True),
        ([NodeType("gpu", {"GPU": 8}, 1)], False),  # four there, eight to come, sixteen asked for
        ([NodeType("gpu", {"GPU": 8}, None)], True),
        ([NodeType("gpu", {"GPU": 3}, None)], False),  # of which no number holds four GPUs in one node
        ([NodeType("gpu", {"GPU": 4}, 3), NodeType("cpu", {"CPU": 64}, None)], True),
        ([], False),
    ],
)
def test_nodes_that_may_still_be_started_count(kinds, fits):
    packing = pack(bundles(*[{"GPU": 4}] * 4), nodes({"GPU": 4, "CPU": 8}), kinds)
    assert (not packing.left, packing.is_proven) == (fits, True)


def test_a_refusal_names_what_is_short_in_all():
    asked = [Bundle("sampler", {"GPU": 1}), Bundle("trainer worker", {"GPU": 4})]
    with pytest.raises(ConfigError, match=r"never hold .*: 5 GPU needed, 2 there\. Lower samplers\.count"):
        check_fits(asked, [Node("a", {"GPU": 2})])


def test_a_refusal_names_what_has_no_place_on_one_node():
    asked = [Bundle("sampler", {"GPU": 1})] * 2 + [Bundle("trainer worker", {"GPU": 4})] * 2
    there = [Node("a", {"GPU": 5.0, "node:1.2.3.4": 1, "memory": 1e9})] * 2 + [Node("b", {"CPU": 4.0})]
    assert not pack(asked, there).left
    with pytest.raises(ConfigError) as refused:
        check_fits(asked[1:], [*there[1:], *[Node("c", {"GPU": 3.0})] * 2], [NodeType("x", CPU, 2)])
    for part in ("no place for 1 x trainer worker (4 GPU), each on one node", "1 node of 5 GPU", "2 nodes of 3 GPU"):
        assert part in str(refused.value)
    assert "may still start 2 x x (1 CPU)" in str(refused.value)
    assert "1.2.3.4" not in str(refused.value)


def test_alike_actors_are_told_together():
    asked = [Bundle("sampler", {"GPU": 1, "CPU": 0.5})] * 3 + [Bundle("reward", {})]
    assert told(asked) == "3 x sampler (1 GPU + 0.5 CPU), 1 x reward (nothing)"
