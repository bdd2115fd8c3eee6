"""How many threads a worker takes: what others leave idle, by made-up readings and by this machine's own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from actors.idle_cores import IdleCores, Reading, quota, reading


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


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        pytest.param({"cpu.max": "100000 100000\n"}, 1, id="one core"),
        pytest.param({"cpu.max": "50000 100000\n"}, 1, id="half a core"),
        pytest.param({"cpu.max": "max 100000\n"}, os.cpu_count(), id="no limit"),
        pytest.param({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1, id="version 1"),
        pytest.param({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, os.cpu_count(), id="none"),
        pytest.param({}, os.cpu_count(), id="no files"),
    ],
)
def test_a_container_may_use_so_many(tmp_path, files, cores):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert quota(tmp_path) == cores


SPIN = "import time\nwhile time.process_time() < 0.5: pass"


def _used(before: Reading) -> tuple[float, float]:
    """CPU-seconds since then of this process, and of others."""
    now = reading()
    own = now.own_busy - before.own_busy
    return own, now.all_busy - before.all_busy - own


def test_readings_tell_own_work_from_that_of_others():
    """Half a second of CPU each, however long that takes beside others."""
    before = reading()
    subprocess.run([sys.executable, "-c", SPIN], check=True, timeout=60)
    own, others = _used(before)
    assert own < 0.3
    assert others > 0.4
    before, end = reading(), time.process_time() + 0.5
    while time.process_time() < end:
        pass
    assert _used(before)[0] > 0.4
