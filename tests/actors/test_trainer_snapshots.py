"""Snapshots that a real trainer writes within an iteration: which steps, whose weights, which versions."""

import pytest

from actors.checkpoints import newest_checkpoint
from actors.policies import policy_folder, snapshots, weights_folder
from actors.published import published_tensors, published_version
from larpo.best_policy import Point


@pytest.mark.slow
def test_a_snapshot_is_the_policy_of_its_step_and_disturbs_no_other(train, trainer_config, make_list, tmp_path):
    lists = [make_list(number, (5 + number % 3, 3)) for number in range(6)]
    training = {"lists_per_step": 1, "prompts_per_iteration": 6}
    config = trainer_config(training=training, evaluation={"every_steps": 2}, checkpoints={"every_steps": 100})
    long = train(config, tmp_path / "long", [[lists]])
    points = [Point(0, 2), Point(0, 4)]  # step 6 is the end of the iteration
    assert snapshots(long.run_dir) == points
    folders = [weights_folder(long.run_dir, point) for point in points]
    assert [published_version(folder) for folder in (*folders, policy_folder(long.run_dir, 1))] == [1, 2, 3]
    assert newest_checkpoint(long.run_dir / "checkpoints")[1].version == 3

    short = train(config, tmp_path / "short", [[lists[:2]]])
    assert snapshots(short.run_dir) == []
    at_two = dict(published_tensors(folders[0]))
    assert max((short.policy(1)[name] - tensor).abs().max() for name, tensor in at_two.items()) < 1e-6
    assert max((long.policy(1)[name] - tensor).abs().max() for name, tensor in at_two.items()) > 1e-3
