"""Checkpoints on disk without a trainer: only a whole one is gone on from."""

import errno
import os
import shutil

import pytest

from actors.checkpoints import (
    MANIFEST,
    TrainerState,
    checkpoint_folder,
    checksums,
    commit_checkpoint,
    newest_checkpoint,
    prune,
    read_state,
)
from actors.work import Journal
from larpo.errors import CheckpointError


def state_at(position: int) -> TrainerState:
    consumed = {"0/0": tuple(f"p{n}" for n in range(position)), "0/1": ("p0",)}
    return TrainerState(position, 3, 1, Journal(position, 0, 1, consumed))


def written(root, position: int):
    """A checkpoint of two files, as the trainer leaves it before the commit."""
    folder = checkpoint_folder(root, position)
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "model.pt").write_bytes(bytes(range(256)) * position)
    (folder / "engine" / "optimizer.pt").write_bytes(b"moments" * position)
    return folder


def committed(root, position: int):
    folder = written(root, position)
    commit_checkpoint(folder, state_at(position), checksums(folder))
    return folder


def flip(path, index: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= bit
    path.write_bytes(data)


def torn(folder):
    path = folder / "engine" / "model.pt"
    path.write_bytes(path.read_bytes()[:-1])


def test_the_newest_checkpoint_comes_back_as_it_was(tmp_path):
    for position in (9, 10, 100):
        committed(tmp_path, position)
    folder, state, damaged = newest_checkpoint(tmp_path)
    assert folder == checkpoint_folder(tmp_path, 100)
    assert state == state_at(100)
    assert damaged == ()


def test_no_checkpoint_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    written(tmp_path, 1)
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (torn, "model.pt is damaged"),
        (lambda folder: flip(folder / "engine" / "model.pt", 700), "model.pt is damaged"),
        (lambda folder: (folder / "engine" / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: shutil.rmtree(folder / "engine"), "model.pt is missing"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "manifest cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "manifest cannot be read"),
    ],
    ids=["torn", "flipped", "missing", "emptied", "manifest torn", "manifest empty"],
)
def test_a_damaged_checkpoint_is_passed_over_and_it_says_why(tmp_path, damage, reason):
    committed(tmp_path, 1)
    committed(tmp_path, 2)
    damage(committed(tmp_path, 3))
    folder, state, damaged = newest_checkpoint(tmp_path)
    assert folder == checkpoint_folder(tmp_path, 2)
    assert state == state_at(2)
    (note,) = damaged
    assert note.startswith("position-00000003: ")
    assert reason in note


@pytest.mark.parametrize("bit", [1, 4, 128])
def test_no_flipped_bit_beside_the_engine_changes_the_state(tmp_path, bit):
    """The journal says what was trained: a wrong one would lose a list, or train it twice."""
    folder = committed(tmp_path, 1)
    for path in (path for path in folder.iterdir() if path.is_file()):
        for index in range(path.stat().st_size):
            flip(path, index, bit)
            with pytest.raises(CheckpointError, match=r"no checkpoint under .* is whole"):
                newest_checkpoint(tmp_path)
            flip(path, index, bit)
    assert newest_checkpoint(tmp_path)[1] == state_at(1)


def test_a_checkpoint_that_was_cut_off_before_its_commit_does_not_count(tmp_path):
    committed(tmp_path, 1)
    written(tmp_path, 2)
    folder, _, damaged = newest_checkpoint(tmp_path)
    assert folder == checkpoint_folder(tmp_path, 1)
    assert damaged == ()


def test_when_none_is_whole_it_says_so_of_each(tmp_path):
    torn(committed(tmp_path, 1))
    torn(committed(tmp_path, 2))
    with pytest.raises(CheckpointError, match="is whole") as caught:
        newest_checkpoint(tmp_path)
    assert "position-00000001" in str(caught.value)
    assert "position-00000002" in str(caught.value)


def test_the_newest_few_are_kept_and_what_was_cut_off_before_them_goes(tmp_path):
    for position in (2, 3, 4, 10):
        committed(tmp_path, position)
    written(tmp_path, 1)
    written(tmp_path, 11)  # being written now
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "position-00000004",
        "position-00000010",
        "position-00000011",
    ]


def test_pruning_without_a_committed_checkpoint_deletes_nothing(tmp_path):
    written(tmp_path, 1)
    prune(tmp_path, keep=1)
    assert checkpoint_folder(tmp_path, 1).exists()


def test_a_checkpoint_written_over_one_at_its_position_counts_only_when_committed(tmp_path):
    """After a rollback the trainer comes by the same position again."""
    committed(tmp_path, 1)
    folder = committed(tmp_path, 2)
    (folder / "engine" / "model.pt").write_bytes(b"half of the new one")
    assert newest_checkpoint(tmp_path)[0] == checkpoint_folder(tmp_path, 1)
    commit_checkpoint(folder, state_at(2), checksums(folder))
    assert newest_checkpoint(tmp_path)[0] == folder


@pytest.mark.parametrize("written_before", [0, 1])
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, written_before):
    """Whichever write of the commit fails, the checkpoint before it is the newest, and a later try succeeds."""
    committed(tmp_path, 1)
    folder = written(tmp_path, 2)
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > written_before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*one before is whole"):
            commit_checkpoint(folder, state_at(2), checksums(folder))
    assert newest_checkpoint(tmp_path)[1] == state_at(1)
    commit_checkpoint(folder, state_at(2), checksums(folder))
    assert newest_checkpoint(tmp_path)[1] == state_at(2)


def test_state_is_read_with_tuples(tmp_path):
    assert read_state(committed(tmp_path, 3)) == state_at(3)
