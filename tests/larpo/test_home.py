"""A run's home behind a URI, on pyarrow's local file system: what is pushed when, and what a fresh node pulls."""

import json
from pathlib import Path

import pytest

from larpo.config import Config
from larpo.errors import DataError, StorageError
from larpo.home import Home, home_of, manifest_files, working_folder
from larpo.home_sessions import begin, check_new, fence, join, new_folder, open_run, push_rest, read_run
from larpo.storage import inside


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine(name)`: from now on this is another machine, with a cache of its own."""

    def move(name: str) -> None:
        monkeypatch.setenv("LARPO_CACHE", str(tmp_path / name))

    move("a")
    return move


@pytest.fixture
def uri(tmp_path, machine) -> str:
    return f"file://{tmp_path}/far/exp/toy"


def home_at(uri: str) -> Home:
    return Home(working_folder(uri), uri, 5.0)


def write(home: Home, name: str, text: str = "x") -> Path:
    path = home.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def policy(home: Home, name: str, text: str) -> Path:
    """A published folder of one bucket."""
    write(home, f"checkpoints/{name}/bucket-00000.safetensors", text)
    write(
        home,
        f"checkpoints/{name}/manifest.json",
        json.dumps({"files": [{"name": "bucket-00000.safetensors"}], "v": text}),
    )
    return home.folder / "checkpoints" / name


def started(uri: str) -> Home:
    home = home_at(uri)
    new_folder(home)
    write(home, "inputs.json", "{}")
    write(home, "config.yaml", "run: {}")
    begin(home)
    return home


def test_a_folder_is_its_own_home_and_nothing_is_copied(tmp_path):
    home = home_of(Config(), tmp_path / "runs" / "toy")
    assert (home.elsewhere, home.location, home.on_this_node()) == (False, str(tmp_path / "runs" / "toy"), home)
    path = write(home, "a/b")
    home.push(path)
    push_rest(home)
    begin(home)
    fence(home)()
    assert home.place("model") == str(tmp_path / "runs" / "toy" / "model")
    assert home.name(path) == str(path)
    assert home.pull_published(path.parent) == path.parent
    home.discard(path.parent)
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs", tmp_path / "runs" / "toy"]


def test_the_home_is_below_the_output_under_the_runs_name(tmp_path, machine):
    config = Config.model_validate({"run": {"output_dir": "s3://b/exp?region=r"}, "timeouts": {"storage_s": 7}})
    home = home_of(config, tmp_path / "work" / "toy")
    assert (home.location, home.limit_s) == ("s3://b/exp/toy?region=r", 7.0)
    assert home.place("model") == "s3://b/exp/toy/model?region=r"
    assert home.on_this_node().folder == tmp_path / "a" / "runs" / "s3" / "b" / "exp" / "toy"


@pytest.mark.parametrize("name", ["../../.bashrc", "/etc/passwd", "a/../../b"])
def test_a_manifest_or_a_bucket_that_names_a_file_outside_is_refused(tmp_path, name):
    """A copy would be written there."""
    (tmp_path / "manifest.json").write_text(json.dumps({"files": ["model.safetensors", {"name": name}]}))
    with pytest.raises(StorageError, match="names a file outside its folder"):
        manifest_files(tmp_path)
    with pytest.raises(StorageError, match="names a file outside its folder"):
        inside(name)
    assert inside("global_step/a..b.pt") == "global_step/a..b.pt"


def test_a_manifest_is_pushed_after_the_files_that_it_names(uri, monkeypatch):
    home, order = started(uri), []
    put = type(home.storage).put
    monkeypatch.setattr(
        type(home.storage), "put", lambda self, file, name: (order.append(file.name), put(self, file, name))
    )
    home.push(policy(home, "policy-0001", "weights"))
    assert order == ["bucket-00000.safetensors", "manifest.json"]


def test_a_push_that_fails_says_that_nothing_is_lost(uri, tmp_path):
    home = started(uri)
    (tmp_path / "far" / "exp" / "toy" / "lists").write_text("in the way")
    with pytest.raises(
        StorageError, match=r"could not be written .* Nothing that was computed is lost: it lies in .*/a/runs"
    ):
        Home(home.folder, uri, 1.0).push(write(home, "lists/part"))


def test_a_fresh_machine_gets_what_it_needs_to_go_on_and_no_weights(uri, machine):
    home = started(uri)
    for name in ("metrics.jsonl", "lists/iteration-0000/part-00000.parquet", "evaluation/iteration-0000.json"):
        home.push(write(home, name))
    home.push(policy(home, "policy-0001", "weights"), write(home, "model/model.safetensors"))
    machine("b")
    folder = open_run(uri)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {
        *("config.yaml", "inputs.json", "session", "metrics.jsonl"),
        *("lists/iteration-0000/part-00000.parquet", "evaluation/iteration-0000.json"),
    }
    again = home_at(uri)
    begin(again)
    assert [path.name for path in again.checkpoint_folders()] == ["policy-0001"]
    assert not (folder / "checkpoints/policy-0001/bucket-00000.safetensors").exists()
    assert (again.pull_published("checkpoints/policy-0001") / "bucket-00000.safetensors").read_text() == "weights"


def test_what_could_not_be_pushed_is_pushed_when_the_run_goes_on_there(uri):
    home = started(uri)
    write(home, "lists/iteration-0000/part-00000.parquet", "computed")
    policy(home, "policy-0001", "weights")
    (home.folder / "checkpoints/policy-0002").mkdir()  # cut off: it has no manifest
    assert open_run(uri) == home.folder
    begin(home)
    assert home.storage.read("lists/iteration-0000/part-00000.parquet") == b"computed"
    assert home.storage.read("checkpoints/policy-0001/bucket-00000.safetensors") == b"weights"
    assert [path.name for path in home.checkpoint_folders()] == ["policy-0001"]


def test_what_is_old_goes_when_the_run_went_on_elsewhere(uri, machine):
    home = started(uri)
    write(home, "lists/iteration-0000/part-00000.parquet", "of a")
    machine("b")
    open_run(uri)
    there = home_at(uri)
    begin(there)
    there.push(write(there, "lists/iteration-0000/part-00000.parquet", "of b"))
    machine("a")
    folder = open_run(uri)
    begin(home)
    assert (folder / "lists/iteration-0000/part-00000.parquet").read_text() == "of b"
    assert home.storage.read("lists/iteration-0000/part-00000.parquet") == b"of b"


def test_a_process_whose_run_was_taken_over_stops(uri, machine):
    check = fence(started(uri))
    check()
    machine("b")
    open_run(uri)
    begin(home_at(uri))
    with pytest.raises(StorageError, match="another process has resumed this run"):
        check()


def test_a_policy_that_was_written_again_replaces_the_one_here(uri, machine):
    """After a rollback the same name stands for other weights, of the same size."""
    home = started(uri)
    home.push(policy(home, "policy-0001", "old weights"))
    machine("b")
    other = home_at(uri)
    join(other)
    other.pull_published("checkpoints/policy-0001")
    home.push(policy(home, "policy-0001", "new weights"))
    folder = other.pull_published("checkpoints/policy-0001")
    assert (folder / "bucket-00000.safetensors").read_text() == "new weights"


def test_another_nodes_folder_of_an_earlier_session_is_emptied(uri, machine):
    home = started(uri)
    machine("b")
    other = home_at(uri)
    join(other)
    write(other, "heldout/iteration-0000/part-00000.parquet")
    join(other)
    assert (other.folder / "heldout").exists()
    begin(home)
    join(other)
    assert not (other.folder / "heldout").exists()


def test_what_is_discarded_is_gone_here_and_there(uri):
    home = started(uri)
    folder, result = policy(home, "policy-0001", "weights"), write(home, "evaluation/iteration-0000.json")
    home.push(folder, result)
    home.discard(folder)
    home.discard(result)
    assert not folder.exists()
    assert not result.exists()
    assert set(home.storage.sizes()) == {"config.yaml", "inputs.json", "session"}


def test_only_what_belongs_to_the_run_is_pushed_at_its_end(uri):
    home = started(uri)
    for name in ("report.html", "model/config.json", "wandb/offline/run.wandb", "checkpoints/reference_log_probs.json"):
        write(home, name)
    for name in (".lock", "metrics.jsonl.partial", "lists/.part.1.tmp", "checkpoints/ray_train/state", "a/.hidden/b"):
        write(home, name)
    push_rest(home)
    kept = {"report.html", "model/config.json", "wandb/offline/run.wandb", "checkpoints/reference_log_probs.json"}
    assert set(home.storage.sizes()) == {"config.yaml", "inputs.json", "session"} | kept


def test_a_copy_to_read_follows_the_home(uri, machine):
    home = started(uri)
    home.push(write(home, "metrics.jsonl", "1"), write(home, "evaluation/a.json"), write(home, "model/config.json"))
    machine("b")
    copy = read_run(uri)
    assert (copy / "metrics.jsonl").read_text() == "1"
    assert not (copy / "model").exists()
    home.push(write(home, "metrics.jsonl", "2"))
    home.discard(home.folder / "evaluation/a.json")
    assert read_run(uri, "model") == copy
    assert (copy / "metrics.jsonl").read_text() == "2"
    assert (copy / "model").exists()
    assert not (copy / "evaluation/a.json").exists()
    assert read_run("runs/toy") == Path("runs/toy")


def test_another_run_at_the_same_place_is_not_written_over(uri):
    check_new(uri)
    started(uri)
    with pytest.raises(DataError, match=r"far/exp/toy already holds another run.*--resume"):
        check_new(uri)


def test_what_holds_no_run_is_refused(uri):
    with pytest.raises(DataError, match=r"far/exp/toy is not a run folder: it has no config\.yaml"):
        open_run(uri)
    with pytest.raises(DataError, match="is not a run folder"):
        read_run(uri)
