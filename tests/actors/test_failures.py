"""Real runs whose parts are killed one after another: they go on, lose no prompt, and train every list once an epoch.

What a kill costs is the longest pause after it in what the killed part feeds: ranked lists, or steps. Undisturbed, a
list takes two seconds here, two lists at a time: a reward that is slow keeps the run at work while its parts die.
docs/failures.md has the table of what each failure costs, and the tests that show the rest of it.
"""

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace

import psutil
import pytest

from actors import placement
from actors.cast import TrainingCast
from larpo.errors import TrainingError
from larpo.home import Home
from tests.toy_runs import Runs, check_exactly_once, command_of, train_workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LIMIT_S = 600
SLOW_REWARD = """
import time

def low_bytes(prompt, response):
    time.sleep(0.5)
    return sum(ord(letter) < 128 for letter in response) / (1 + len(response)) + 1e-3 * len(set(response))
"""
KNOBS = (
    "training.prompts_per_iteration=24",
    "training.max_failures=20",
    "samplers.count=2",
    "samplers.max_restarts=20",
    "samplers.resources={CPU: 0.25}",
    "sampling.max_new_tokens=90",
    "samplers.max_model_len=192",
    "reward.cache=false",
    "reward.replicas=2",
    "timeouts.stalled_s=8",
)


def titled(runs: Runs, *begins: str, says: str = "") -> list[psutil.Process]:
    """Processes of a run whose title begins so: Ray's name of the actor or ours, whichever was set last."""
    titles = {process: command_of(process) for process in runs.processes()}
    return [process for process, title in titles.items() if title.startswith(begins) and says in title]


def samplers(runs: Runs) -> list[psutil.Process]:
    return titled(runs, "ray::Sampler", "ray::killed/sampler-")


def busy_samplers(runs: Runs) -> list[psutil.Process]:
    return titled(runs, "ray::killed/sampler-", says=": samples ")


def engines_at_work(runs: Runs) -> list[psutil.Process]:
    """Those under samplers that have prompts."""
    return [
        child
        for sampler in busy_samplers(runs)
        for child in sampler.children(recursive=True)
        if command_of(child).startswith("VLLM::EngineCore")
    ]


def part(title: str, name: str) -> Callable[[Runs], list[psutil.Process]]:
    return lambda runs: titled(runs, f"ray::{title}", f"ray::killed/{name}")


@dataclass
class Kill:
    """One part of a run: which processes die, and what is told of it."""

    kind: str
    victims: Callable[[Runs], list[psutil.Process]]
    told_of: str  # the failure's actor begins so
    says: str = "its process ended"
    feeds: str = "lists"  # the event that shows that work goes on
    count: int = 1  # how many of them: lists that were sampled before go on being ranked


KILLS = [
    Kill(
        "a reward actor, within a batch",
        lambda runs: titled(runs, "ray::killed/reward-", says=": ranks ")[:1],
        "reward-",
    ),
    Kill("a trainer worker", lambda runs: train_workers(runs.processes())[:1], "trainer-0", feeds="step"),
    Kill("the stream's actor", part("ListStream", "stream"), "stream", feeds="step"),
    Kill("the weight store", part("WeightStore", "weights"), "store"),
    Kill("an engine that generates", lambda runs: engines_at_work(runs)[:1], "sampler-", "EngineDeadError"),
    Kill("a sampler that generates", lambda runs: busy_samplers(runs)[-1:], "sampler-"),
    Kill("every sampler at once", samplers, "sampler-", count=4),
]


class KilledRun:
    """A run that each of the kills has hit, and what each cost."""

    def __init__(self, runs: Runs) -> None:
        self.runs, self.at, self.seconds = runs, {}, {}
        (runs.folder / "toy_reward.py").write_text(SLOW_REWARD)
        driver = runs.new("stream", *KNOBS)
        self.after(driver, "step", 0.0)
        for kill in KILLS:
            self.strike(driver, kill)
        assert driver.wait(LIMIT_S) == 0, runs.log()

    def strike(self, driver, kill: Kill) -> None:
        victims: list[psutil.Process] = []
        self.runs.until(lambda: victims.extend(kill.victims(self.runs)) or victims, driver)
        self.at[kill.kind] = time.time()
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        self.runs.until(lambda: self.told(kill), driver)
        self.after(driver, kill.feeds, self.told(kill)[0]["time"], kill.count)
        times = [record["time"] for record in self.runs.records(kill.feeds)]
        pauses = itertools.pairwise(times)
        self.seconds[kill.kind] = max(end - begin for begin, end in pauses if end > self.at[kill.kind])

    def told(self, kill: Kill) -> list[dict]:
        found = [record for record in self.runs.records("failure") if record["time"] > self.at[kill.kind]]
        return [record for record in found if record["actor"].startswith(kill.told_of)]

    def after(self, driver, event: str, moment: float, count: int = 1) -> None:
        """Until so many records of that event have come since."""

        def have_come() -> bool:
            return sum(record["time"] > moment for record in self.runs.records(event)) >= count

        self.runs.until(have_come, driver)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, tiny_policy):
    runs = Runs(tmp_path_factory.mktemp("killed"), tiny_policy)
    yield KilledRun(runs)
    for process in runs.processes():
        process.kill()


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.kind)
def test_a_part_that_is_killed_is_told_of_and_costs_time_alone(killed, kill):
    first = killed.told(kill)[0]["reason"].splitlines()
    print(f"{kill.kind}: {killed.seconds[kill.kind]:.1f} s")
    print("\n".join(first))
    assert kill.says in first[0]
    assert "ActorDiedError" not in first[0]
    assert first[1:], "its log's last lines are missing"


@pytest.mark.parametrize("kind", ["an engine that generates", "a sampler that generates"])
def test_what_was_being_generated_went_back_to_the_queue(killed, kind):
    flow = [record for record in killed.runs.records("flow") if record["time"] > killed.at[kind]]
    assert next(record["pool/requeued"] for record in flow if record["pool/requeued"]) > 0


def test_the_watchdog_named_what_stood_still_while_no_sampler_lived(killed):
    begun = killed.at["every sampler at once"]
    alarms = [record["message"] for record in killed.runs.records("alarm") if record["time"] > begun]
    (first, *_) = [message for message in alarms if message.startswith("nothing has moved for ")]
    print(first)
    assert "engines since " in first
    assert "sampler-0" in first
    assert re.search(r"sampling since \S+, \d+ prompts? (sampled or )?waiting for ", first)


def test_the_run_that_was_hit_so_often_ends_with_every_list_trained_once_an_epoch(killed):
    run_dir = killed.runs.run_dir
    assert json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["event"] == "done"
    check_exactly_once(run_dir, counts=(24, 24))
    assert not killed.runs.processes()


@pytest.fixture
def own_disk(tmp_path):
    """The folder of a run's results on a file system of its own."""
    folder = tmp_path / "runs"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], check=False).returncode:
        pytest.skip("a file system of its own needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_full_ends_the_run_and_costs_nothing_once_there_is_room(own_disk, runs):
    """Lists, checkpoints and metrics lie there; what was whole stays whole."""
    driver = runs.new("stream")
    runs.until(lambda: len(runs.records("step")) >= 2, driver)
    filler = own_disk / "filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
    began = time.monotonic()
    assert driver.wait(LIMIT_S) == 1, runs.log()
    print(f"the run ended {time.monotonic() - began:.1f} s after the disk was full")
    said = runs.log()
    assert "No space left on device" in said
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert str(runs.run_dir) in error, said
    assert "resume" in said
    runs.until_gone()
    filler.unlink()
    assert runs.start("--resume", str(runs.run_dir)).wait(LIMIT_S) == 0, runs.log()
    check_exactly_once(runs.run_dir)


def test_a_stream_that_dies_too_often_ends_the_run_with_one_error(local_ray, trainer_config, tmp_path):
    config = trainer_config(training={"max_failures": 1})

    async def go():
        cast = TrainingCast(
            SimpleNamespace(config=config, lists=tmp_path / "lists", home=Home(tmp_path)), lambda *told: None
        )
        for _ in range(2):
            status = await cast.call(cast.stream.status)
            os.kill(status.vitals.process, signal.SIGKILL)
        try:
            await cast.call(cast.stream.status)
        finally:
            placement.kill(cast.store)

    with pytest.raises(TrainingError) as caught:
        asyncio.run(go())
    message = str(caught.value)
    assert "status has nobody to answer it: its actor died, and is not started again" in message
    assert "(training.max_failures = 1); resume the run" in message
    assert "its process ended (SYSTEM_ERROR)" in message
