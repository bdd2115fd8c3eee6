"""How many threads a worker takes: what others leave idle, by made-up readings and by this machine's own."""

import multiprocessing
import time
from collections.abc import Iterator

import pytest

from actors.idle_cores import IdleCores, Reading, reading


def cores(own: int, of_node: int, *readings: tuple[float, float, float]) -> IdleCores:
    """Which reads these, after a reading of zeros."""
    given: Iterator[Reading] = iter([Reading(0.0, 0.0, 0.0), *(Reading(*numbers) for numbers in readings)])
    return IdleCores(own, of_node, lambda: next(given))


@pytest.mark.parametrize(
    ("others", "threads"),
    [
        pytest.param(0.0, 4, id="alone"),
        pytest.param(0.3, 4, id="small work"),
        pytest.param(0.5, 3, id="half a core"),
        pytest.param(1.0, 3, id="a core"),
        pytest.param(2.9, 1, id="all other cores"),
        pytest.param(4.0, 1, id="all cores"),
    ],
)
def test_others_leave_so_many_cores(others, threads):
    assert cores(1, 4, (10.0, 10 * others, 0.0)).threads() == threads


def test_what_a_process_uses_itself_is_not_anothers():
    """With both of two cores in use by its own threads it keeps them."""
    found = cores(1, 2, (10.0, 0.0, 0.0), (20.0, 20.0, 19.0), (30.0, 40.0, 30.0))
    assert [found.threads() for _ in range(3)] == [2, 2, 1]


def test_no_fewer_than_its_own():
    assert cores(3, 2, (10.0, 20.0, 0.0)).threads() == 3


def test_a_short_while_says_nothing():
    """Neither changes the number nor moves the begin of what the next reading tells."""
    found = cores(1, 2, (0.5, 0.5, 0.0), (1.0, 0.5, 0.0), (2.0, 0.6, 0.0))
    assert [found.threads() for _ in range(3)] == [1, 1, 2]


def _spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _seconds_of_this_process_and_others(before: Reading, after: Reading) -> tuple[float, float]:
    own = after.own_busy - before.own_busy
    return own, after.all_busy - before.all_busy - own


def test_readings_of_this_machine_tell_own_work_from_that_of_others():
    """Whatever else runs here meanwhile, half a second of a process that spins is seen."""
    other = multiprocessing.get_context("fork").Process(target=_spin, args=(0.8,))
    before = reading()
    other.start()
    other.join(30)
    between = reading()
    _spin(0.8)
    after = reading()
    of_spinning_other = _seconds_of_this_process_and_others(before, between)
    of_own_spinning = _seconds_of_this_process_and_others(between, after)
    assert of_spinning_other[0] < 0.3
    assert of_spinning_other[1] > 0.3
    assert of_own_spinning[0] > 0.3
