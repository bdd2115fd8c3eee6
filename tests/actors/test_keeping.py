"""What the driver pushes while a run goes on and at its end, on pyarrow's local file system."""

import time

import pytest

from actors import keeping
from actors.keeping import kept
from actors.preparation import resumed_run
from larpo.errors import StorageError
from larpo.home import Home, working_folder
from larpo.home_sessions import begin
from larpo.recipe import config_to_yaml, load_config


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    monkeypatch.setenv("LARPO_CACHE", str(tmp_path / "cache"))
    uri = f"file://{tmp_path}/far/toy"
    home = Home(working_folder(uri), uri, 1.0)
    home.folder.mkdir(parents=True)
    begin(home)
    return home


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_log_is_there_before_the_run_is_over(home, monkeypatch):
    monkeypatch.setattr(keeping, "EVERY_S", 0.05)
    log = home.folder / "metrics.jsonl"
    with kept(home):
        log.write_text("one\n")
        until(lambda: home.storage.read("metrics.jsonl") == b"one\n")
        log.write_text("one\ntwo\n")
    assert home.storage.read("metrics.jsonl") == b"one\ntwo\n"


def test_a_run_that_ends_badly_leaves_what_it_has(home):
    with pytest.raises(KeyboardInterrupt), kept(home):
        _interrupted(home)
    assert home.storage.read("report.html") == b"so far"


def test_what_ended_a_run_is_raised_though_nothing_can_be_pushed(home, tmp_path, capsys):
    _put_in_the_way(home, tmp_path)
    with pytest.raises(KeyboardInterrupt), kept(home):
        _interrupted(home)
    assert "alarm: " in capsys.readouterr().err


def test_a_good_end_that_cannot_be_pushed_is_an_error(home, tmp_path):
    with pytest.raises(StorageError, match="Nothing that was computed is lost"), kept(home):
        _put_in_the_way(home, tmp_path)


def _interrupted(home: Home) -> None:
    (home.folder / "report.html").write_text("so far")
    raise KeyboardInterrupt


def _put_in_the_way(home: Home, tmp_path) -> None:
    """A file where the model's folder would be."""
    (home.folder / "model").mkdir()
    (home.folder / "model" / "config.json").write_text("{}")
    (tmp_path / "far" / "toy" / "model").write_text("in the way")


def test_a_run_that_was_moved_goes_on_where_it_lies(home, tmp_path):
    config = load_config("quickstart", ["run.output_dir=s3://gone/exp"])
    (home.folder / "config.yaml").write_text(config_to_yaml(config))
    begin(home)
    found, folder = resumed_run(home.uri, [])
    assert (found.run.output_dir, folder) == (f"file://{tmp_path}/far", home.folder)
    found, folder = resumed_run(tmp_path / "far" / "toy", [])
    assert (found.run.output_dir, folder) == (str(tmp_path / "far"), tmp_path / "far" / "toy")
