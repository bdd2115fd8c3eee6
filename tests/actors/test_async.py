"""Real runs with new weights within an iteration: none is too stale, and a kill changes nothing of that."""

import itertools
import signal

import pytest

from larpo.records import read_lists
from tests.toy_runs import Runs, check_exactly_once, train_workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LIMIT_S = 600
KNOBS = (
    "training.epochs=1",
    "training.prompts_per_iteration=24",
    "training.lists_per_step=3",
    "weights.every_steps=2",
    "max_staleness=1",
    "sampling.max_new_tokens=30",
    "lists.memory=current",
)


def check(runs: Runs) -> None:
    """Within the bound by the trainer's own count and by the lists, with several versions in an iteration."""
    check_exactly_once(runs.run_dir, counts=(24, 24), epochs=1)
    steps = runs.records("step")
    stalest = [step["train/staleness_max"] for step in steps]
    print(f"staleness of the steps: {stalest}")
    assert max(stalest) <= 1
    lists = list(read_lists(runs.run_dir / "lists"))
    early = sum(item.publication < 0 for item in lists)
    print(f"{early} prompts asked for before their iteration")
    assert early > 0
    for iteration in range(2):
        mine = [item for item in lists if item.iteration == iteration]
        assert len({item.publication for item in mine}) >= 3  # a run that goes on may have left one out
        versions = {span.version for item in mine for c in item.candidates for span in c.versions}
        print(f"iteration {iteration}: weight versions {sorted(versions)}")
        assert len(versions) >= 3
    assert not list((runs.run_dir / "checkpoints").glob("publication-*"))


@pytest.mark.parametrize("on_update", ["finish", "span"])
def test_samplers_take_new_weights_within_an_iteration(runs, on_update):
    driver = runs.new("async", *KNOBS, f"weights.on_update={on_update}")
    assert driver.wait(LIMIT_S) == 0, runs.log()
    check(runs)
    spans = [c.versions for item in read_lists(runs.run_dir / "lists") for c in item.candidates]
    torn = sum(len(each) > 1 for each in spans)
    print(f"responses of several versions: {torn} of {len(spans)}")
    if on_update == "finish":
        assert torn == 0
    assert all(a.version <= b.version for each in spans for a, b in itertools.pairwise(each))
    told = [record["label"] for record in runs.records("evaluation")]
    assert len(told) == len(set(told)) >= 2


def test_a_trainer_and_a_driver_that_die_within_an_iteration_leave_no_list_too_stale(runs):
    driver = runs.new("async", *KNOBS, "training.max_failures=3")
    runs.until(lambda: len(runs.records("step")) >= 5, driver)
    train_workers(runs.processes())[0].send_signal(signal.SIGKILL)
    runs.until(lambda: any(r["actor"].startswith("trainer") for r in runs.records("failure")), driver)
    runs.until(lambda: len([r for r in runs.records("step") if r["iteration"] == 1]) >= 5, driver)
    driver.kill()
    driver.wait()
    for process in runs.processes():
        process.kill()
    assert runs.start("--resume", str(runs.run_dir)).wait(LIMIT_S) == 0, runs.log()
    check(runs)
