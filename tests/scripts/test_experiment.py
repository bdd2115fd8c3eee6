"""`scripts.experiment` as a user stops it in the middle of an arm, and starts it again."""

import signal

import psutil
import pytest
import yaml

from larpo.experiment import ArmResult
from larpo.recipe import load_config
from tests.toy_runs import Runs, trainable

SLOW_REWARD = """
import time

def low_bytes(prompt, response):
    time.sleep(0.1)
    return sum(ord(letter) < 128 for letter in response) / (1 + len(response)) + 1e-3 * len(set(response))
"""


class Experiment(Runs):
    """Of one arm; the run that is looked at is that arm's."""

    module = "scripts.experiment"

    def __init__(self, folder, policy) -> None:
        super().__init__(folder, policy)
        (folder / "toy_reward.py").write_text(SLOW_REWARD)  # else the run may be over before it is stopped
        self.recipe = folder / "recipe.yaml"
        grid = {"grid": {"arm": {"only": {"training": {"lists_per_step": 2}}}}}
        self.recipe.write_text(self.recipe.read_text() + yaml.safe_dump(grid))
        self.home = folder / "runs" / "recipe"
        self.run_dir, self.result = self.home / "only-seed0", self.home / "results" / "only-seed0.json"

    def begin(self):
        """The same command each time."""
        return self.start(str(self.recipe), "--seeds", "0", f"run.output_dir={self.folder / 'runs'}")

    def arm_log(self) -> str:
        return (self.home / "only-seed0.log").read_text()

    def lists(self) -> dict:
        return {path: path.read_bytes() for path in (self.run_dir / "lists").rglob("part-*.parquet")}


@pytest.fixture
def experiment(tmp_path, tiny_policy):
    """Nothing of it is left."""
    started = Experiment(tmp_path, tiny_policy)
    yield started
    for process in started.processes():
        process.kill()


def stop(driver, *, from_terminal: bool) -> int:
    """Its exit code. Ctrl-C in a terminal reaches the command and the arm that it started; a scheduler, the command."""
    if from_terminal:
        for process in psutil.Process(driver.pid).children():
            process.send_signal(signal.SIGINT)
    driver.send_signal(signal.SIGINT if from_terminal else signal.SIGTERM)
    return driver.wait(180)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_experiment_that_is_stopped_within_an_arm_goes_on_with_it(experiment):
    """Stopped twice: the arm ends well each time, leaves no process and no result, and is resumed, not begun anew."""
    done = 0
    for number, from_terminal in enumerate((False, True), start=1):
        driver = experiment.begin()
        experiment.until(lambda more=done: len(experiment.records("step")) >= more + 2, driver)
        assert stop(driver, from_terminal=from_terminal) == 130, experiment.log()
        experiment.until_gone()
        assert experiment.log().count("interrupted; the same command goes on") == number
        assert experiment.arm_log().count("stopping: the step in progress is ended") == number
        assert any(experiment.run_dir.glob("checkpoints/position-*/manifest.json"))
        assert not experiment.result.exists()
        done, before = len(experiment.records("step")), experiment.lists()
        assert before

    assert experiment.begin().wait(600) == 0, experiment.log() + experiment.arm_log()[-3000:]
    assert [record["resumed"] for record in experiment.records("start")] == [False, True, True]
    after = experiment.lists()
    assert {path: after[path] for path in before} == before
    steps = [record["step"] for record in experiment.records("step")]
    assert steps == list(range(1, len(steps) + 1)), "none is done again, none is not told"
    config = load_config(str(experiment.run_dir / "config.yaml"))
    expected = sum(map(len, trainable(config, experiment.run_dir, (12, 12 + 12))))
    spent = ArmResult.read(experiment.result).spent
    assert (spent["run/step"], spent["train/lists"]) == (len(steps), expected * config.training.epochs)
    assert (spent["sampler/prompts"], spent["sampler/samples"]) == (24, 24 * config.sampling.k)
    assert not list(experiment.run_dir.glob("checkpoints/position-*"))
    assert "| only | 0 |" in (experiment.home / "results" / "table.md").read_text()
    experiment.until_gone()
