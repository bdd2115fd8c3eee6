"""Doubles of sampler actors, and a pool over them."""

import asyncio
from types import SimpleNamespace

from ray.exceptions import RayActorError

from actors.pool import SamplerPool
from actors.sampler import SampleTask
from larpo.config import Samplers, Timeouts


class Double:
    """Stands for a sampler actor: each method does what the test says, once it is called through `remote`."""

    def __init__(self, name, sample=None, start=None, update=None, stats=None, placed=None, sleep=None, node=""):
        self.name, self.killed, self.tasks, self.turns = name, False, [], []
        self.placed = SimpleNamespace(remote=placed or self._on(node))
        self.shutdown = SimpleNamespace(remote=self._zero)
        self.start = SimpleNamespace(remote=start or self._zero)
        self.update = SimpleNamespace(remote=update or self._takes)
        self.stats = SimpleNamespace(remote=stats or self._stats)
        self.sleep = SimpleNamespace(remote=sleep or self._turn("sleep"))
        self.leave = SimpleNamespace(remote=self._zero)
        self.wake = SimpleNamespace(remote=self._turn("wake"))
        self.sample = SimpleNamespace(remote=lambda task: self._sample(sample, task))

    async def _zero(self, *_):
        return 0

    @staticmethod
    def _on(node):
        async def placed():
            return node

        return placed

    def _turn(self, what):
        async def turn():
            self.turns.append(what)

        return turn

    async def _takes(self, version):
        return version

    async def _stats(self):
        return SimpleNamespace(weight_version=0, memory_bytes=2**30)

    async def _sample(self, behaviour, task):
        self.tasks.append(task.key)
        return await behaviour(task) if behaviour else [f"{task.key} by {self.name}"]


class House:
    """A pool over doubles, placed in this order, and what it did."""

    def __init__(self, *doubles, count=1, per_sampler=4, **knobs):
        timeouts = {"engine_start_s": 5.0, "weights_s": 5.0, **knobs.pop("timeouts", {})}
        self.doubles, self.placed, self.failures = list(doubles), [], []
        self.draining: set[str] = set()
        self.pool = SamplerPool(
            self._spawn,
            lambda actor: setattr(actor, "killed", True),
            Samplers(count=count, **knobs),
            Timeouts(**timeouts),
            responses_per_sampler=per_sampler,
            on_failure=lambda name, reason: self.failures.append((name, reason)),
            draining=lambda: self.draining,
            own_node="own",
        )

    def _spawn(self, name):
        self.placed.append(self.doubles.pop(0))
        return self.placed[-1]

    def sample(self, *keys):
        tasks = [SampleTask(key, 0, (1,), ((1.0, 1),), 4) for key in keys]
        return asyncio.gather(*(self.pool.sample(task) for task in tasks), return_exceptions=True)


async def dies(*_):
    raise RayActorError(error_msg="the node went away")


async def hangs(*_):
    await asyncio.Event().wait()


async def settled():
    """Background work that waits for nothing gets done."""
    for _ in range(20):
        await asyncio.sleep(0)
