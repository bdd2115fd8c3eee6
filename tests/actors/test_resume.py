"""Going on after a death: no list is lost, none is trained twice in an epoch.

The whole runs are real ones: `python -m scripts.align` on a tiny policy, killed in the middle of each phase.
"""

import asyncio
import json
import os
import signal
import subprocess

import pytest

from actors.stream import ListStream
from actors.work import IterationEnd, Journal
from tests.toy_runs import Runs, check_exactly_once, kill_one_rank


def test_a_rank_that_died_waiting_takes_no_list_with_it(trainer_config, make_list, tmp_path):
    """Its question is still in the stream when the group that replaced it asks the same."""

    async def go():
        config = trainer_config(training={"lists_per_step": 2})
        stream = ListStream(config, str(tmp_path / "lists"))
        await stream.restore(Journal())
        await stream.open_iteration(0)
        await stream.offer([make_list(n) for n in range(2)])
        first = await stream.next_work(0, 1, 0)
        dead = asyncio.create_task(stream.next_work(0, 1, 1))
        await asyncio.sleep(0.05)
        await stream.restore(Journal())  # no checkpoint yet: from the start
        await stream.offer([make_list(n) for n in range(2, 4)])
        with pytest.raises(RuntimeError, match="rolled back"):
            await dead
        await stream.close_iteration(0)
        return first, [await stream.next_work(0, 1, position) for position in range(3)]

    first, (again, second, end) = asyncio.run(go())
    assert [item.prompt.id for item in again.lists] == [item.prompt.id for item in first.lists] == ["p0", "p1"]
    assert [item.prompt.id for item in second.lists] == ["p2", "p3"]
    assert isinstance(end, IterationEnd)


@pytest.mark.slow
def test_a_killed_trainer_worker_costs_nothing_but_time(train, trainer_config, make_list, tmp_path):
    """It is within its steps, one after the other: all lists are there. Ray Train starts the group again; the weights
    are those of a run in which nobody died. Stage 3 is in test_trainer_lora.py and test_elastic_trainer.py.
    """
    count = 48
    lists = [make_list(number, (5 + number % 3, 3)) for number in range(count)]
    config = trainer_config(
        training={"lists_per_step": 3, "workers": 2, "zero_stage": 2, "prompts_per_iteration": count, "epochs": 2},
        checkpoints={"every_steps": 4},
        stream={"capacity": count},
    )
    calm = train(config, tmp_path / "calm", [[lists]])

    async def kill_one():
        await kill_one_rank(tmp_path / "killed", 4, doing="trains")
        assert not list((tmp_path / "killed/checkpoints").glob(f"position-{count // 3:08}*")), "the epoch was over"

    killed = train(config, tmp_path / "killed", [[lists, kill_one]], fresh=True)
    assert {key: sorted(ids) for key, ids in killed.consumed.items()} == {
        key: sorted(f"p{n}" for n in range(count)) for key in ("0/0", "0/1")
    }
    assert killed.consumed == calm.consumed
    for name, tensor in calm.policy(1).items():
        assert (killed.policy(1)[name] - tensor).abs().max() < 1e-6, name


def is_sampling(runs: Runs) -> bool:
    """Samplers are busy, and no list has been ranked."""
    return any(record["actor"].startswith("sampler") and record["kind"] == "sample" for record in runs.records("span"))


def is_training(runs: Runs) -> bool:
    return len(runs.records("step")) >= 2


def is_publishing(runs: Runs) -> bool:
    return any(runs.run_dir.glob("checkpoints/policy-0001*"))


DEATHS = [  # those without overlap are in tests/scripts/test_storage.py
    pytest.param([is_training], id="training"),
    pytest.param([is_sampling, is_publishing], id="sampling, then publishing", marks=pytest.mark.slow),
]


def kill(runs: Runs, driver: subprocess.Popen, phase) -> None:
    """Kill the run's driver in `phase`; returns when nothing of the run is left."""
    runs.until(lambda: phase(runs), driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    runs.until_gone()
    assert not runs.records("done")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("deaths", DEATHS)
def test_a_run_whose_driver_was_killed_resumes_to_its_end(runs, deaths):
    kill(runs, runs.new("stream"), deaths[0])
    for phase in deaths[1:]:
        kill(runs, runs.start("--resume", str(runs.run_dir)), phase)
    base = runs.run_dir / "evaluation" / "iteration-0000.json"
    evaluated = json.loads(base.read_text()) if base.exists() else None
    base.unlink(missing_ok=True)  # as if the kill had come before the base policy's evaluation was through

    assert runs.start("--resume", str(runs.run_dir)).wait() == 0, runs.log()
    assert json.loads((runs.run_dir / "metrics.jsonl").read_text().splitlines()[-1])["event"] == "done"
    check_exactly_once(runs.run_dir)
    if evaluated is not None:
        assert json.loads(base.read_text())["greedy_rewards_P"] == evaluated["greedy_rewards_P"]
    assert not runs.processes()
