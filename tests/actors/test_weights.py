"""Weights on their way, without Ray where none is needed: buckets, checksums, versions, whole folders."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
from types import SimpleNamespace

import numpy
import pytest
import torch

from actors.published import (
    PublishedFolder,
    checksum,
    encode_bucket,
    published_tensors,
    published_version,
    read_beside,
    read_buckets,
    split_into_buckets,
)
from actors.weights import Bucket, WeightStore, remove_orphans, write_bucket_files
from larpo.errors import CheckpointError, StorageError

TENSORS = {
    "embed": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "head": torch.tensor([[1.5, -2.0], [float("inf"), 0.1]], dtype=torch.bfloat16).T,  # not contiguous
    "scale": torch.tensor(3.0),
}


def publish(folder, version: int, tensors=TENSORS):
    target = PublishedFolder(folder, version)
    for name, tensor in tensors.items():
        target.add(encode_bucket({name: tensor}))
    target.close()
    return folder


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, []),
        ({"a": 4, "b": 6, "c": 1}, [["a", "b"], ["c"]]),
        ({"a": 6, "b": 6, "c": 4}, [["a"], ["b", "c"]]),
        ({"a": 4, "big": 25, "b": 4}, [["a"], ["big"], ["b"]]),
        ({"a": 10, "b": 10}, [["a"], ["b"]]),
        ({"a": 0, "b": 10, "c": 0}, [["a", "b", "c"]]),
    ],
)
def test_buckets_hold_at_most_their_limit_unless_one_parameter_is_larger(sizes, expected):
    assert split_into_buckets(sizes, limit=10) == expected


def test_a_published_folder_gives_back_version_names_and_bits(tmp_path):
    folder = publish(tmp_path / "policy-0001", 7)
    assert published_version(folder) == 7
    read = dict(published_tensors(folder))
    assert list(read) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_every_process_reads_the_parameters_of_a_bucket_in_one_order(tmp_path):
    """Ranks gather them one by one as they read; a bucket's own order is a hash map's, another in each process."""
    names = [f"layers.{number}" for number in range(32)]
    target = PublishedFolder(tmp_path / "policy-0001", 1)
    target.add(encode_bucket({name: torch.ones(1) for name in reversed(names)}))
    target.close()
    assert [name for name, _ in published_tensors(tmp_path / "policy-0001")] == sorted(names)


def test_a_published_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "policy-0001"
    target = PublishedFolder(folder, 1)
    target.add(encode_bucket(TENSORS))
    assert not folder.exists()
    publish(folder, 2)  # what was cut off is no obstacle
    assert published_version(folder) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["policy-0001"]


def test_a_full_disk_while_publishing_leaves_the_folder_that_was_there(tmp_path, monkeypatch):
    folder = publish(tmp_path / "policy-0001", 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        publish(folder, 2)
    assert published_version(folder) == 1
    assert list(dict(published_tensors(folder))) == list(TENSORS)


def test_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path):
    folder = publish(tmp_path / "policy-0001", 1)
    told = json.loads((folder / "manifest.json").read_text())
    (tmp_path / "elsewhere").write_bytes(b"x")
    (folder / "manifest.json").write_text(json.dumps(told | {"beside": {"../elsewhere": checksum(b"x")}}))
    with pytest.raises(StorageError, match=r"elsewhere"):
        read_beside(folder)


@pytest.mark.parametrize("index", [0, 40, -1])
def test_a_damaged_bucket_on_disk_is_refused_by_name(tmp_path, index):
    folder = publish(tmp_path / "policy-0001", 1)
    path = folder / "bucket-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"bucket-00001\.safetensors is damaged"):
        list(read_buckets(folder))


def test_a_folder_whose_checksums_are_of_an_earlier_kind_is_read_and_still_checked(tmp_path):
    folder = publish(tmp_path / "policy-0001", 1)
    told = json.loads((folder / "manifest.json").read_text())
    for entry in told["files"]:
        entry["checksum"] = hashlib.sha256((folder / entry["name"]).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(told))
    assert list(dict(published_tensors(folder))) == list(TENSORS)
    with open(folder / told["files"][0]["name"], "ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="is damaged"):
        list(read_buckets(folder))


def test_a_bucket_that_arrives_damaged_is_not_laid_before_an_engine(tmp_path):
    data = encode_bucket(TENSORS)
    bucket = Bucket(data.nbytes, checksum(data), (None,))
    (path,) = write_bucket_files(tmp_path, 3, [(bucket, data)])
    assert path.read_bytes() == data.tobytes()
    path.unlink()
    changed = data.copy()
    changed[-1] ^= 1
    with pytest.raises(CheckpointError, match=r"bucket 1 of weight version 3 arrived damaged"):
        write_bucket_files(tmp_path, 3, [(bucket, data), (bucket, changed)])
    assert not list(tmp_path.iterdir())


def test_weights_that_find_no_room_on_a_node_are_refused_with_what_to_do(tmp_path):
    """/dev/full takes nothing, as shared memory that is full."""
    data = encode_bucket(TENSORS)
    (tmp_path / f"larpo-{os.getpid()}-v3-1.safetensors").symlink_to("/dev/full")
    buckets = [(Bucket(data.nbytes, checksum(data), (None,)), data)] * 2
    with pytest.raises(CheckpointError, match=r"has no room for 0 MiB of weights: .* \(--shm-size of a container\)"):
        write_bucket_files(tmp_path, 3, buckets)
    assert not list(tmp_path.iterdir())


def test_a_fixed_bucket_of_two_versions_is_in_the_store_once(tmp_path, local_ray):
    folders = []
    for version in (1, 2):
        target = PublishedFolder(tmp_path / f"policy-{version}", version)
        target.add(encode_bucket({"changes": torch.full((4,), float(version))}))
        target.add(encode_bucket({"stays": torch.arange(4.0)}), fixed=True)
        target.add(encode_bucket({"is not said to stay": torch.arange(4.0)}))
        target.close()
        folders.append(tmp_path / f"policy-{version}")
    store = WeightStore()
    for version, folder in enumerate(folders, 1):
        store.publish_folder(version, str(folder))
    first, second = store.buckets(1), store.buckets(2)
    assert [bucket.fixed for bucket in second] == [False, True, False]
    assert [new is old for new, old in zip(second, first, strict=True)] == [False, True, False]
    published = read_buckets(folders[1])
    for bucket, written in zip(second, published, strict=True):
        assert numpy.array_equal(local_ray.get(bucket.reference[0]), written)


def test_versions_only_count_up():
    store = WeightStore()
    assert store.newest() == 0
    store.publish(2, ())
    for version in (1, 2):
        with pytest.raises(CheckpointError, match=f"weight version {version} was published after version 2"):
            store.publish(version, ())
    store.publish(3, ())
    assert store.newest() == 3


def test_the_store_keeps_the_newest_versions_and_names_them():
    store = WeightStore(keep=2)
    buckets = {version: (Bucket(version, str(version), (None,)),) for version in (1, 2, 4)}
    for version, content in buckets.items():
        store.publish(version, content)
    assert store.buckets(4) == buckets[4]
    assert store.buckets(2) == buckets[2]
    with pytest.raises(CheckpointError, match=r"weight version 1 is not in the store, which holds \[2, 4\]"):
        store.buckets(1)


class StoreWithoutRay(WeightStore):
    def put_bucket(self, data, known=None, fixed=False):
        return Bucket(len(data), known, (None,), fixed)


def test_a_lent_policy_is_beside_the_published_versions(tmp_path):
    store, five = StoreWithoutRay(keep=1), (Bucket(1, "five", (None,)),)
    store.publish(5, five)
    for version in (3, 7):
        store.lend_folder(version, str(publish(tmp_path / str(version), version)))
        assert store.buckets(version)
        assert store.buckets(5) == five
        assert store.newest() == 5
    assert store.highest() == 7
    with pytest.raises(CheckpointError, match=r"weight version 3 is not in the store, which holds \[5, 7\]"):
        store.buckets(3)


def test_a_store_that_is_started_again_holds_the_same_versions(tmp_path):
    facts = {}
    notes = SimpleNamespace(read=lambda: json.loads(json.dumps(facts)), write=facts.update)
    first = StoreWithoutRay(keep=2, memo=notes)
    for version in (1, 2, 3):
        first.publish_folder(version, str(publish(tmp_path / f"policy-{version}", version)))
    first.lend_folder(7, str(publish(tmp_path / "snapshot", 7)))
    again = StoreWithoutRay(keep=2, memo=notes)
    for version in (2, 3, 7):
        assert again.buckets(version) == first.buckets(version)
    assert (again.newest(), again.highest()) == (3, 7)
    again.publish_folder(3, str(tmp_path / "policy-3"))  # Ray repeats a call that was lost with the process
    with pytest.raises(CheckpointError, match="weight version 3 was published after version 3"):
        again.publish_folder(3, str(publish(tmp_path / "another", 3)))
    shutil.rmtree(tmp_path / "snapshot")  # evaluated and dropped: nobody asks for it any more
    third = StoreWithoutRay(keep=2, memo=notes)
    assert (third.newest(), third.highest()) == (3, 7)
    third.lend_folder(3, str(tmp_path / "policy-3"))  # what an iteration begins with
    fourth = StoreWithoutRay(keep=1, memo=notes)
    assert fourth.newest() == 3
    fourth.publish_folder(8, str(publish(tmp_path / "policy-8", 8)))
    assert fourth.buckets(3) == third.buckets(3)  # still lent
    with pytest.raises(CheckpointError, match=r"weight version 7 is not in the store, which holds \[2, 3\]"):
        third.buckets(7)
    shutil.rmtree(tmp_path / "policy-8")
    with pytest.raises(FileNotFoundError, match=r"policy-8"):
        StoreWithoutRay(keep=2, memo=notes)


def test_a_store_that_dies_again_while_it_takes_up_its_weights_forgets_none(tmp_path):
    class Store(StoreWithoutRay):
        left = 9

        def put_bucket(self, *arguments):
            type(self).left -= 1
            if self.left < 0:
                raise MemoryError("killed")
            return super().put_bucket(*arguments)

    facts = {}
    notes = SimpleNamespace(read=lambda: json.loads(json.dumps(facts)), write=facts.update)
    first = Store(keep=2, memo=notes)
    folders = {version: str(publish(tmp_path / f"policy-{version}", version)) for version in (5, 6)}
    for version, folder in folders.items():
        first.publish_folder(version, folder)
    held = len(first.buckets(5))
    Store.left = held  # one version, and no more
    with pytest.raises(MemoryError):
        Store(keep=2, memo=notes)
    Store.left = 9
    assert Store(keep=2, memo=notes).newest() == 6


@pytest.mark.slow
def test_a_real_store_that_is_killed_gives_the_same_weights_again(tmp_path, local_ray):
    from actors.placement import kill, place_store

    store = place_store(restarts=1)
    local_ray.get(store.publish_folder.remote(5, str(publish(tmp_path / "policy-0001", 5))))
    process = local_ray.get(store.vitals.remote()).process
    os.kill(process, signal.SIGKILL)
    assert local_ray.get(store.newest.remote(), timeout=60) == 5
    assert local_ray.get(store.vitals.remote()).process != process
    pulled = [local_ray.get(bucket.reference[0]) for bucket in local_ray.get(store.buckets.remote(5))]
    for data, written in zip(pulled, read_buckets(tmp_path / "policy-0001"), strict=True):
        assert numpy.array_equal(data, written)
    kill(store)


def test_a_published_folder_goes_through_the_object_store_unchanged(tmp_path, local_ray):
    from actors.placement import kill, place_store

    folder = publish(tmp_path / "policy-0001", 5)
    store = place_store()
    local_ray.get(store.publish_folder.remote(5, str(folder)))
    buckets = local_ray.get(store.buckets.remote(local_ray.get(store.newest.remote())))
    pulled = [local_ray.get(bucket.reference[0]) for bucket in buckets]
    paths = write_bucket_files(tmp_path, 5, zip(buckets, pulled, strict=True))
    for path, data in zip(paths, read_buckets(folder), strict=True):
        assert numpy.array_equal(numpy.fromfile(path, dtype=numpy.uint8), data)
    kill(store)


def test_the_store_refuses_a_damaged_folder_and_keeps_what_it_had(tmp_path, local_ray):
    from actors.placement import kill, place_store

    store = place_store()
    local_ray.get(store.publish_folder.remote(1, str(publish(tmp_path / "good", 1))))
    folder = publish(tmp_path / "bad", 2)
    (folder / "bucket-00002.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"bucket-00002\.safetensors is damaged"):
        local_ray.get(store.publish_folder.remote(2, str(folder)))
    assert local_ray.get(store.newest.remote()) == 1
    kill(store)


def test_bucket_files_of_dead_processes_are_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine, others = tmp_path / f"larpo-{os.getpid()}-v1-0.safetensors", tmp_path / "larpo-notes.safetensors"
    for path in (mine, others, tmp_path / f"larpo-{dead.pid}-v1-0.safetensors"):
        path.write_bytes(b"")
    remove_orphans(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, others])
