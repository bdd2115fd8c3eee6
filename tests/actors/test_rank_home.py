"""Checkpoints of ranks on nodes that have no folder in common: through the run's home, and whole or not at all."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors import checkpoints, rank_home
from actors.checkpoints import TrainerState, checkpoint_folder, newest_at
from actors.rank_home import RankHome
from actors.work import Journal
from larpo.errors import CheckpointError
from larpo.home import Home
from larpo.home_sessions import begin


class Group:
    """Two ranks as threads, each on the node whose folder it is given."""

    def __init__(self, uri: str, *folders: Path) -> None:
        self._barrier, self._slots = threading.Barrier(len(folders), timeout=60), [None] * len(folders)
        self._homes = [Home(folder, uri, 5.0) for folder in folders]

    def _gather(self, rank: int):
        def gather(value):
            self._slots[rank] = value
            self._barrier.wait()
            found = list(self._slots)
            self._barrier.wait()
            return found

        return gather

    def each(self, work):
        """What `work(rank, its home)` comes to on every rank."""

        def go(rank: int):
            return work(rank, RankHome(self._homes[rank], rank, self._gather(rank)))

        with ThreadPoolExecutor(len(self._homes)) as pool:
            return list(pool.map(go, range(len(self._homes))))


def state_at(position: int) -> TrainerState:
    return TrainerState(position, 1, 0, Journal(position, 0, 0, {"0/0": tuple(f"p{n}" for n in range(position))}))


def save(position: int, keep: int = 2):
    """Every rank writes its part, rank 0 the part that all read, and they commit."""

    def work(rank: int, home: RankHome) -> None:
        folder = checkpoint_folder(home.checkpoints, position)
        (folder / "engine").mkdir(parents=True, exist_ok=True)  # the ranks may see one folder
        (folder / "engine" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(bytes([rank]) * position)
        if rank == 0:
            (folder / "engine" / "mp_rank_00_model_states.pt").write_bytes(b"model" * position)
        home.commit(folder, state_at(position), keep)

    return work


def restored(rank: int, home: RankHome):
    folder, state, damaged = home.newest_checkpoint()
    return state.step, damaged, {path.name for path in (folder / "engine").iterdir()}


@pytest.fixture
def uri(tmp_path) -> str:
    uri = f"file://{tmp_path}/far/toy"
    begin(Home(tmp_path / "driver", uri, 5.0))
    return uri


@pytest.fixture
def group(tmp_path, uri) -> Group:
    """Two nodes."""
    return Group(uri, tmp_path / "a", tmp_path / "b")


@pytest.fixture
def fresh(tmp_path, uri) -> Group:
    """Two others."""
    return Group(uri, tmp_path / "c", tmp_path / "d")


OWN = [{"mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"}]
OWN += [{"mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"}]


def test_each_node_pulls_what_its_ranks_read_and_no_more(group, fresh, tmp_path):
    group.each(save(3))
    assert not list((tmp_path / "a").rglob("*rank_1_*"))
    assert fresh.each(restored) == [(3, (), OWN[0]), (3, (), OWN[1])]


def test_the_driver_knows_the_newest_checkpoint_without_a_copy(group, tmp_path, uri):
    group.each(save(3))
    driver = Home(tmp_path / "driver", uri, 5.0)
    driver.pull_index()
    folder, state, damaged = newest_at(driver)
    assert (state, damaged) == (state_at(3), ())
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "state.json"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "rank_1_mp_rank_00_optim_states.pt is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "rank_1_mp_rank_00_optim_states.pt is damaged"),
        (Path.unlink, "rank_1_mp_rank_00_optim_states.pt is missing"),
    ],
    ids=["flipped", "torn", "missing"],
)
def test_all_pass_over_what_is_damaged_for_one(group, fresh, tmp_path, uri, damage, reason):
    """The driver, which reads it through, too."""
    group.each(save(3))
    group.each(save(4))
    damage(tmp_path / "far/toy/checkpoints/position-00000004/engine/zero_pp_rank_1_mp_rank_00_optim_states.pt")
    for step, (note,), _ in fresh.each(restored):
        assert step == 3
        assert reason in note
    driver = Home(tmp_path / "driver", uri, 5.0)
    driver.pull_index()
    assert newest_at(driver)[1] == state_at(3)


def test_when_none_is_whole_every_rank_says_so(group, fresh, tmp_path):
    group.each(save(3))
    flip(tmp_path / "far/toy/checkpoints/position-00000003/engine/mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="is whole"):
        fresh.each(restored)


def test_a_file_that_is_damaged_on_its_node_alone_comes_from_the_home(group, tmp_path):
    group.each(save(3))
    flip(tmp_path / "a/checkpoints/position-00000003/engine/mp_rank_00_model_states.pt")
    assert [step for step, *_ in group.each(restored)] == [3, 3]
    assert (tmp_path / "a/checkpoints/position-00000003/engine/mp_rank_00_model_states.pt").read_bytes() == b"model" * 3


def test_the_newest_few_are_kept_at_the_home_and_on_every_node(group, tmp_path):
    for position in (1, 2, 5):
        group.each(save(position))
    kept = ["position-00000002", "position-00000005"]
    for place in ("far/toy", "a", "b"):
        assert sorted(path.name for path in (tmp_path / place / "checkpoints").iterdir()) == kept, place


def test_what_was_cut_off_before_its_manifest_does_not_count_and_goes(group, fresh, tmp_path):
    group.each(save(1))
    cut = tmp_path / "far/toy/checkpoints/position-00000002/engine"
    cut.mkdir(parents=True)
    (cut / "mp_rank_00_model_states.pt").write_bytes(b"half")
    assert [step for step, *_ in fresh.each(restored)] == [1, 1]
    fresh.each(save(3))
    found = {path.name for path in (tmp_path / "far/toy/checkpoints").iterdir() if list(path.rglob("*.pt"))}
    assert found == {"position-00000001", "position-00000003"}


def test_ranks_on_one_node_push_and_pull_once(tmp_path, uri):
    group = Group(uri, tmp_path / "a", tmp_path / "a")
    assert group.each(lambda rank, home: home.acts) == [True, False]
    both = Group(uri, tmp_path / "c", tmp_path / "c")
    group.each(save(3))
    assert both.each(restored) == [(3, (), OWN[0] | OWN[1])] * 2


@pytest.mark.parametrize("where", ["", "far"])
def test_each_rank_reads_its_own_part_through_and_no_other(tmp_path, uri, monkeypatch, where):
    """A checkpoint of a 7B model is 98 GB: one rank alone would read for minutes."""
    group = Group(uri if where else "", tmp_path / "run", tmp_path / "run")
    rank_of, read = threading.local(), []
    real = checkpoints.file_checksum

    def noted(path: Path) -> str:
        read.append((rank_of.here, path.name))
        return real(path)

    def as_rank(work):
        def go(rank: int, home: RankHome):
            rank_of.here = rank
            return work(rank, home)

        return go

    for module in (checkpoints, rank_home):
        monkeypatch.setattr(module, "file_checksum", noted)
    parts = {(n, f"zero_pp_rank_{n}_mp_rank_00_optim_states.pt") for n in range(2)}
    parts |= {(0, "mp_rank_00_model_states.pt"), (0, "state.json")}
    for work in (save(3), lambda rank, home: home.newest_checkpoint()):
        read.clear()
        group.each(as_rank(work))
        assert sorted(read) == sorted(parts)


def test_all_pass_over_what_is_damaged_for_one_in_a_folder_that_all_see(tmp_path):
    group = Group("", tmp_path / "run", tmp_path / "run")
    for position in (3, 4):
        group.each(save(position))
    flip(tmp_path / "run/checkpoints/position-00000004/engine/zero_pp_rank_1_mp_rank_00_optim_states.pt")
    for step, (note,), _ in group.each(restored):
        assert step == 3
        assert "rank_1_mp_rank_00_optim_states.pt is damaged" in note


def test_a_folder_that_every_rank_sees_is_committed_as_before(tmp_path):
    group = Group("", tmp_path / "run", tmp_path / "run")
    (tmp_path / "run/checkpoints/position-00000002").mkdir(parents=True)
    group.each(lambda rank, home: home.commit(home.checkpoints / "position-00000002", state_at(2), 2))
    assert [found[1] for found in group.each(lambda rank, home: home.newest_checkpoint())] == [state_at(2)] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
