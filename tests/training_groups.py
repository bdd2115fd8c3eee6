"""Training groups that outlive a run: many small runs share the half minute that Ray Train and its imports take.

The ranks are those of a real group, and run the real loop; what is left out is the start of a group for each run, which
tests that are about it ask for (`fresh`).
"""

import asyncio
import itertools
import threading
from concurrent.futures import Future, wait
from pathlib import Path

from actors import training_group
from actors.members import result
from actors.trainer import TrainSpec, train_loop
from larpo.config import Training

LIMIT_S = 300.0


class Desk:
    """An actor: hands runs to ranks, and hears when a rank has ended one."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._runs: dict[int, tuple] = {}
        self._ended: dict[int, int] = {}
        self._changed = asyncio.Condition()

    async def put(self, number: int, run: tuple) -> None:
        """`run` is (spec,), or () for the end of the group."""
        async with self._changed:
            self._runs[number] = run
            self._changed.notify_all()

    async def take(self, number: int) -> tuple:
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._runs)
        return self._runs[number]

    async def end(self, number: int) -> None:
        async with self._changed:
            self._ended[number] = self._ended.get(number, 0) + 1
            self._changed.notify_all()

    async def wait_ended(self, number: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended.get(number, 0) == self._ranks)


def serve(settings: dict) -> None:
    """What every rank does instead of one run: all of them, in order."""
    import ray

    desk = settings["spec"]
    for number in itertools.count():
        run = ray.get(desk.take.remote(number))
        if not run:
            return
        train_loop({"spec": run[0]})
        ray.get(desk.end.remote(number), timeout=LIMIT_S)


class SharedGroup:
    """One group of that many ranks, and its end."""

    def __init__(self, ranks: int, storage: Path) -> None:
        import ray

        self._desk = ray.remote(num_cpus=0)(Desk).remote(ranks)
        self._number = 0
        self._end: Future[None] = Future()
        threading.Thread(target=self._fit, args=(ranks, storage), name="shared-group", daemon=True).start()

    def _fit(self, ranks: int, storage: Path) -> None:
        training = Training(workers=ranks, resources_per_worker={"CPU": 0.1}, max_failures=0)
        try:
            training_group.fit_group(serve, self._desk, storage, training, step_s=LIMIT_S)
            self._end.set_result(None)
        except BaseException as error:
            self._end.set_exception(error)

    @property
    def is_there(self) -> bool:
        return not self._end.done()

    async def train(self, spec: TrainSpec) -> None:
        """As `training_group.train`."""
        number, self._number = self._number, self._number + 1
        await self._desk.put.remote(number, (spec,))
        run = asyncio.ensure_future(result(self._desk.wait_ended.remote(number)))
        end = asyncio.wrap_future(self._end)
        await asyncio.wait({run, end}, return_when=asyncio.FIRST_COMPLETED)
        await (end if end.done() else run)

    def close(self) -> None:
        import ray

        ray.get(self._desk.put.remote(self._number, ()), timeout=LIMIT_S)
        wait([self._end], timeout=LIMIT_S)


class SharedGroups:
    """By their number of ranks, each started when it is first asked for."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self._groups: dict[int, SharedGroup] = {}

    def __getitem__(self, ranks: int) -> SharedGroup:
        group = self._groups.get(ranks)
        if group is None or not group.is_there:
            group = self._groups[ranks] = SharedGroup(ranks, self._storage / str(ranks))
        return group

    def close(self) -> None:
        for group in self._groups.values():
            if group.is_there:
                group.close()
