"""Seconds of waiting: they only grow, and those of several who wait at once are counted once."""

from contextlib import suppress

import pytest

from actors.waits import Waits


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("actors.waits.time.monotonic", lambda: now[0])
    return now


def test_a_second_counts_once_however_many_wait(clock):
    waits = Waits()
    with waits.of("producer"):
        clock[0] += 10
        with waits.of("producer"):
            clock[0] += 1
            assert waits.seconds("producer") == 11
        assert waits.seconds("producer") == 11
        clock[0] += 5
        assert waits.seconds("producer") == 16
    clock[0] += 100
    assert waits.seconds("producer") == 16
    assert waits.seconds("consumer") == 0


def test_those_of_a_wait_that_failed_stay(clock):
    """They have been shown, and a total does not fall."""
    waits = Waits()
    with suppress(RuntimeError), waits.of("consumer"):
        clock[0] += 3
        raise RuntimeError("rolled back")
    assert waits.seconds("consumer") == 3
