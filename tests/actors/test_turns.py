"""Turns on one GPU: who waits for whom; then whole runs of real parts, on a CPU too, where vLLM frees nothing."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from actors.turns import Turns, Visits, begin_sampling, begin_training
from larpo.config import Config, Timeouts
from larpo.errors import PhaseTimeout
from tests.toy_runs import check_exactly_once


class Recorded:
    """The conductor's cast over a real `Turns`; what the pool is told is written down."""

    def __init__(self, trainer_start_s: float = 5.0) -> None:
        self.turns, self.told = Turns(), []
        config = Config.model_validate({"timeouts": {"trainer_start_s": trainer_start_s, "weights_s": 5.0}})
        self.run = SimpleNamespace(config=config)
        self.samplers = SimpleNamespace(sleep=self._tells("sleep"), wake=self._tells("wake"))

    def _tells(self, what):
        async def call():
            self.told.append(what)

        return call

    async def call(self, method, *arguments):
        return await method(*arguments)


def test_sampler_and_trainer_follow_each_other():
    """The samplers sleep before the trainer comes, and wake when it has left."""

    async def go():
        house, work, trained = Recorded(), asyncio.Queue(), asyncio.Queue()

        async def trainer() -> None:
            for _ in range(3):  # its start, and two iterations
                await work.get()
                while not await house.turns.enter(0.01):
                    pass
                house.told.append("train")
                await asyncio.sleep(0)
                house.told.append("leave")
                await house.turns.leave()
                trained.put_nowait("iteration")

        ranks = asyncio.create_task(trainer())
        work.put_nowait("start")
        await begin_sampling(house, "trainer_start_s")
        await trained.get()
        for _ in range(2):
            work.put_nowait("lists")  # long before the turn is given
            await asyncio.sleep(0.03)
            house.told.append("sample")
            await begin_training(house)
            await asyncio.wait_for(trained.get(), 10)
            await begin_sampling(house, "weights_s")
        await asyncio.wait_for(ranks, 10)
        return house.told

    turn = ["sample", "sleep", "train", "leave", "wake"]
    assert asyncio.run(go()) == ["train", "leave", "wake", *turn, *turn]


def test_a_trainer_that_does_not_leave_is_an_error():
    async def go():
        house = Recorded(trainer_start_s=0.05)
        with pytest.raises(PhaseTimeout, match=r"did not leave the GPU within 0\.05 s \(timeouts\.trainer_start_s\)"):
            await begin_sampling(house, "trainer_start_s")
        assert house.told == []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.turns.LOOK_S", 0.01)
        asyncio.run(go())


def test_a_trainer_that_comes_in_the_samplers_turn_gives_signs_until_it_is_its_own(local_ray, monkeypatch):
    """Ray's actor and a rank's side of it: a group that starts anew while the samplers are at work."""
    monkeypatch.setattr("actors.turns.LOOK_S", 0.1)
    turns = ray.remote(num_cpus=0)(Turns).remote()
    ray.get(turns.leave.remote(), timeout=60)
    assert ray.get(turns.to_samplers.remote(0.1), timeout=60)
    signs = []

    def give_sign():
        signs.append(len(signs))
        if len(signs) == 3:
            ray.get(turns.to_trainer.remote(), timeout=60)

    Visits(turns, Timeouts(), give_sign).enter()
    assert len(signs) == 3
    assert not ray.get(turns.to_samplers.remote(0.1), timeout=60), "the trainer is there"
    ray.kill(turns)


def test_without_turns_nobody_waits():
    async def go():
        house = Recorded()
        house.turns = None
        await begin_training(house)
        await begin_sampling(house, "weights_s")
        assert house.told == []

    asyncio.run(go())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_by_turns_trains_while_its_sampler_sleeps(runs):
    arguments = (f"run.output_dir={runs.folder / 'runs'}", "run.name=killed", "overlap=none", "samplers.sleep=true")
    assert runs.start(str(runs.folder / "recipe.yaml"), *arguments).wait() == 0, runs.log()
    check_exactly_once(runs.run_dir)
    spans = runs.records("span")
    naps = [(s["start"], s["end"]) for s in spans if s["kind"] == "sleep"]
    trained = [(s["start"], s["end"]) for s in spans if s["kind"] in ("train", "publish")]
    sampled = [(s["start"], s["end"]) for s in spans if s["kind"] == "sample"]
    assert len(naps) == 2
    assert trained
    assert all(any(start <= a and b <= end for start, end in naps) for a, b in trained)
    assert not any(a < end and start < b for start, end in naps for a, b in sampled)
    assert not runs.processes()


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_a_run_by_turns_on_one_gpu_has_its_memory_for_either_side(runs):
    """The sampler's engine takes 0.85 of the GPU, for which there would be no room beside the trainer's own."""
    shares = ("samplers.resources={GPU: 0.5}", "training.resources_per_worker={GPU: 0.5}")
    arguments = (f"run.output_dir={runs.folder / 'runs'}", "run.name=killed", "overlap=none", "samplers.sleep=true")
    assert runs.start(str(runs.folder / "recipe.yaml"), *arguments, *shares).wait() == 0, runs.log()
    check_exactly_once(runs.run_dir)


@pytest.mark.gpu
def test_a_sleeping_engine_gives_its_memory_back_and_takes_it_again(tiny_policy):
    from actors.engine import Engine, EngineOptions

    async def go() -> tuple[int, int, int]:
        section = {"sleep": True, "memory_fraction": 0.5, "max_model_len": 128, "enforce_eager": True}
        config = Config.model_validate({"policy": {"dtype": "float32"}, "samplers": section})
        engine = await Engine.start(Path(tiny_policy), EngineOptions.of(config))
        awake = torch.cuda.mem_get_info()[0]
        before = await engine.generate("a", [1, 2, 3], temperature=0.0, max_tokens=8)
        await engine.sleep()
        asleep = torch.cuda.mem_get_info()[0]
        await engine.wake()
        after = await engine.generate("b", [1, 2, 3], temperature=0.0, max_tokens=8)
        engine.shutdown()
        assert before.token_ids == after.token_ids
        return awake, asleep, torch.cuda.get_device_properties(0).total_memory

    awake, asleep, total = asyncio.run(go())
    assert asleep - awake > 0.3 * total
