"""What lies where, what is rolled back and what is dropped, on folders of the form that the trainer writes."""

import pytest

from actors.policies import (
    drop_policies,
    evaluated_points,
    highest_version,
    is_written,
    result_file,
    roll_back,
    snapshots,
)
from actors.policies import weights_folder as folder_of
from actors.published import PublishedFolder
from larpo.best_policy import BASE, Point
from larpo.home import Home

POINTS = [Point(0, 3), Point(0, 6), Point(1), Point(1, 9), Point(2)]


@pytest.fixture
def run_dir(tmp_path):
    """Two iterations with snapshots, evaluated up to the step 6."""
    for version, point in enumerate(POINTS, start=1):
        PublishedFolder(folder_of(tmp_path, point), version).close()
    (tmp_path / "evaluation").mkdir()
    for point in (BASE, *POINTS[:2]):
        result_file(tmp_path, point).write_text("{}")
    return tmp_path


def written(run_dir):
    return [point for point in POINTS if is_written(run_dir, point)]


def test_folders_and_results_are_found_in_the_order_of_training(run_dir):
    (run_dir / "checkpoints" / "snapshot-0001-step-00000012.partial").mkdir()
    (run_dir / "evaluation" / "iteration-0002.partial").write_text("")
    assert snapshots(run_dir) == [Point(0, 3), Point(0, 6), Point(1, 9)]
    assert evaluated_points(run_dir) == [BASE, Point(0, 3), Point(0, 6)]
    assert result_file(run_dir, Point(1)).name == "iteration-0001.json"
    assert result_file(run_dir, Point(1, 9)).name == "iteration-0001-step-00000009.json"


def test_versions_are_counted_over_policies_and_snapshots(run_dir, tmp_path):
    assert highest_version(run_dir) == len(POINTS)
    PublishedFolder(folder_of(run_dir, Point(0, 2)), 9).close()
    assert highest_version(run_dir) == 9
    (folder_of(run_dir, Point(0, 2)) / "manifest.json").unlink()  # as while it is deleted
    assert highest_version(run_dir) == len(POINTS)
    assert highest_version(tmp_path / "new") == 0


def test_a_rollback_takes_back_what_lay_behind_its_checkpoint(run_dir):
    for point in POINTS[2:]:
        result_file(run_dir, point).write_text("{}")
    roll_back(Home(run_dir), 2, 9)
    assert (snapshots(run_dir), evaluated_points(run_dir)) == ([Point(0, 3), Point(0, 6), Point(1, 9)], [BASE, *POINTS])
    roll_back(Home(run_dir), 1, 8)
    assert snapshots(run_dir) == [Point(0, 3), Point(0, 6)]
    assert evaluated_points(run_dir) == [BASE, *POINTS[:3]]
    roll_back(Home(run_dir), 0, 3)
    assert evaluated_points(run_dir) == [BASE, Point(0, 3)]


def test_what_waits_for_its_evaluation_stays_and_so_does_the_best(run_dir):
    drop_policies(Home(run_dir), 1, 1, Point(0, 3))
    assert written(run_dir) == [Point(0, 3), Point(1), Point(1, 9), Point(2)]
    drop_policies(Home(run_dir), 2, 1, Point(1))
    assert written(run_dir) == [Point(1), Point(1, 9), Point(2)]  # the best is older than what checkpoints need


def test_the_policies_that_checkpoints_go_on_from_stay(run_dir):
    drop_policies(Home(run_dir), 2, 2, None)
    assert written(run_dir) == [Point(1), Point(1, 9), Point(2)]
    drop_policies(Home(run_dir), 2, 1, None)
    assert written(run_dir) == [Point(1, 9), Point(2)]
