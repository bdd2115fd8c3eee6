"""Places of the pool: the sampler with least to do comes first, none has more than it may."""

from types import SimpleNamespace

from actors.members import Member
from actors.places import Places


def member(name: str) -> Member:
    return Member(name, SimpleNamespace())


def test_those_with_least_to_do_come_first_until_all_are_full():
    places, a, b = Places(2), member("a"), member("b")
    places.open(a)
    places.open(b)
    assert [places.take(1).name for _ in range(4)] == ["a", "b", "a", "b"]
    assert places.take(1) is None
    places.give_back(b, 1)
    assert places.take(1) is b
    assert (len(places), a.in_flight, b.in_flight) == (2, 2, 2)


def test_one_that_is_closed_gives_back_what_it_has_and_takes_nothing():
    places, a = Places(2), member("a")
    places.open(a)
    assert places.take(1) is a
    places.close(a)
    places.close(a)
    assert (len(places), places.take(1)) == (0, None)
    places.give_back(a, 1)
    assert (a.in_flight, places.take(1)) == (0, None)
    places.open(a)
    assert places.take(1) is a


def test_one_that_opens_again_keeps_what_it_still_has():
    places, a, b = Places(2), member("a"), member("b")
    places.open(a)
    places.take(1)
    places.close(a)
    places.open(a)
    places.open(b)
    assert [places.take(1).name for _ in range(3)] == ["b", "a", "b"]
    assert places.take(1) is None


def test_a_prompt_goes_where_all_of_its_responses_fit_and_a_large_one_where_nothing_is():
    places, a = Places(5), member("a")
    places.open(a)
    assert places.take(3) is a
    assert places.take(3) is None
    assert places.take(2) is a
    places.give_back(a, 3)
    assert (a.in_flight, places.take(6)) == (2, None)
    places.give_back(a, 2)
    assert places.take(6) is a
    assert places.take(1) is None
    places.give_back(a, 6)
    assert (a.in_flight, places.take(5)) == (0, a)
