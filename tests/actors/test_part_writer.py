"""Parts on disk: in order, together where storage is slow, and an error for everyone whose lists are in it."""

import asyncio
import errno
import threading

import pytest

from actors.part_writer import PartWriter
from larpo.errors import TrainingError
from larpo.home import Home
from larpo.records import list_parts, read_lists
from tests.actors.test_stream import make_list


class SlowHome(Home):
    """One that takes a part only when it is told to."""

    gate = threading.Event()

    def push(self, *paths):
        assert self.gate.wait(10)


def numbers(part):
    return [item.prompt.id for item in read_lists(part)]


def test_lists_that_come_while_a_part_is_written_go_into_the_next_one_together(tmp_path):
    home = SlowHome(tmp_path)
    home.gate.clear()

    async def go():
        writer = PartWriter(tmp_path / "lists", home)
        writes = [asyncio.create_task(writer.write([make_list(0, 0), make_list(0, 1)]))]
        while not list_parts(tmp_path / "lists"):
            await asyncio.sleep(0.005)
        writes += [asyncio.create_task(writer.write([make_list(0, number)])) for number in (2, 3, 4)]
        await asyncio.sleep(0.02)
        assert len(list_parts(tmp_path / "lists")) == 1
        assert not any(write.done() for write in writes)
        home.gate.set()
        await asyncio.gather(*writes)
        await writer.write([make_list(1, 5)])

    asyncio.run(go())
    parts = list_parts(tmp_path / "lists")
    assert [numbers(part) for part in parts] == [["p0", "p1"], ["p2", "p3", "p4"], ["p5"]]
    assert [part.parent.name for part in parts] == ["iteration-0000"] * 2 + ["iteration-0001"]


def test_parts_go_on_after_those_that_are_there(tmp_path):
    for number in range(2):
        asyncio.run(PartWriter(tmp_path / "lists", Home(tmp_path)).write([make_list(0, number)]))
    assert [numbers(part) for part in list_parts(tmp_path / "lists")] == [["p0"], ["p1"]]


def test_a_full_disk_is_told_to_everyone_whose_lists_are_in_the_part_and_the_next_part_may_be_written(
    tmp_path, monkeypatch
):
    full = OSError(errno.ENOSPC, "No space left on device")

    async def go():
        writer = PartWriter(tmp_path / "lists", Home(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr("actors.part_writer.write_part", lambda *a: (_ for _ in ()).throw(full))
            found = await asyncio.gather(*(writer.write([make_list(0, n)]) for n in range(2)), return_exceptions=True)
        for error in found:
            with pytest.raises(TrainingError, match=r"could not write 2 lists .*No space left .*Free disk space"):
                raise error
        await writer.write([make_list(0, 2)])

    asyncio.run(go())
    assert [numbers(part) for part in list_parts(tmp_path / "lists")] == [["p2"]]
