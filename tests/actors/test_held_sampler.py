"""Weights that one of two real samplers does not take: it is replaced, and the other goes on."""

import asyncio
import time

import psutil
import pytest

from actors import placement
from actors.engine import EngineOptions
from actors.pool import SamplerPool
from actors.sampler import SampleTask
from larpo.config import Config
from larpo.policy import load_policy, prepare_policy
from tests.actors.test_engine import write_policy

LIMIT_S = 600


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sampler_that_does_not_take_new_weights_is_replaced_while_the_other_samples(local_ray, tiny_policy, tmp_path):
    """The engine of one of two real samplers is held (SIGSTOP) when the weights come."""
    knobs = {"resources": {"CPU": 0}, "max_model_len": 128, "max_num_seqs": 8, "enforce_eager": True, "count": 2}
    config = Config.model_validate(
        {
            "policy": {"model": str(tiny_policy), "dtype": "float32"},
            "samplers": knobs,
            "timeouts": {"weights_s": 60.0},
        }
    )
    folder = write_policy(tmp_path / "policy-0001", 1, load_policy(tiny_policy, dtype="float32"))
    store, failures = placement.place_store(), []
    local_ray.get(store.publish_folder.remote(1, str(folder)))
    pool = SamplerPool(
        lambda name: placement.place_sampler(config, EngineOptions.of(config), prepare_policy(config.policy), store),
        placement.kill,
        config.samplers,
        config.timeouts,
        prompts_per_sampler=4,
        on_failure=lambda name, reason: failures.append((name, reason)),
    )

    async def go():
        await pool.start()
        held = await pool.members[1].actor.pid.remote()
        (engine,) = (p for p in psutil.Process(held).children() if "EngineCore" in " ".join(p.cmdline()))
        engine.suspend()
        began = time.monotonic()
        await pool.update(1)
        assert pool.members[0].version == 1
        answers = await pool.sample(SampleTask("0000/p", 0, (40, 41, 42), ((1.0, 2),), 20))
        assert {span.version for candidate in answers for span in candidate.versions} == {1}
        await asyncio.wait_for(pool.members[1].ready.wait(), LIMIT_S)
        print(f"weights that one sampler did not take: {time.monotonic() - began:.1f} s, of which 60 are the limit")
        assert pool.members[1].version == 1
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
        await pool.stop()

    asyncio.run(go())
    ((name, reason),) = failures
    assert name == "sampler-1"
    assert reason.startswith("no weight update within 60 s (timeouts.weights_s)")
