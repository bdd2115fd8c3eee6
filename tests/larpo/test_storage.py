"""Files under a URI: on a real S3 server, and on pyarrow's local file system."""

import hashlib
import os
import threading
import time

import pyarrow.fs
import pytest

from larpo.errors import ConfigError, StorageError
from larpo.storage import Storage, check_location, joined, parted
from tests.s3_server import BUCKET, KEY, SECRET, S3Server, Way


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp("s3") / "log.txt")
    before = {name: os.environ.get(name) for name in server.environment()}
    os.environ |= server.environment()
    yield server
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.close()


@pytest.fixture(params=["s3", "file"])
def uri(request, tmp_path):
    if request.param == "file":
        return f"file://{tmp_path}/far"
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{tmp_path.name}"


def test_what_was_put_comes_back(uri, tmp_path):
    storage, data = Storage(uri), os.urandom(3 * 2**20)
    (tmp_path / "a").write_bytes(data)
    storage.put(tmp_path / "a", "x/y/a.bin")
    storage.put_bytes(b"", "x/empty.gz")
    storage.get("x/y/a.bin", tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == data
    assert storage.sizes() == {"x/empty.gz": 0, "x/y/a.bin": len(data)}
    assert storage.sizes("x/y") == {"x/y/a.bin": len(data)}
    assert storage.read("x/empty.gz") == b""
    assert storage.checksum("x/y/a.bin") == hashlib.sha256(data).hexdigest()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b"]


def test_what_is_not_there_is_said_at_once(uri, tmp_path):
    storage, started = Storage(uri), time.monotonic()
    assert storage.sizes() == {}
    assert storage.read("a") is None
    assert storage.checksum("a") is None
    with pytest.raises(FileNotFoundError):
        storage.get("a", tmp_path / "a")
    storage.delete("a")
    assert not (tmp_path / "a").exists()
    assert time.monotonic() - started < 5


def test_deleted_files_are_gone_and_others_stay(uri):
    storage = Storage(uri)
    storage.put_bytes(b"1", "x/a")
    storage.put_bytes(b"2", "x/b")
    storage.delete("x/a")
    assert storage.sizes() == {"x/b": 1}
    storage.put_bytes(b"3", "xy/a")
    storage.delete_below("x")
    storage.delete_below("z")
    assert storage.sizes() == {"xy/a": 1}


def test_a_file_that_was_cut_off_while_it_was_written_is_none(tmp_path):
    """Where a file does not appear at once, it is written under another name first."""
    storage = Storage(f"file://{tmp_path}/far")
    storage.put_bytes(b"old", "a")
    (tmp_path / "far" / "a.partial").write_bytes(b"ne")
    assert storage.sizes() == {"a": 3}
    assert storage.read("a") == b"old"


def test_a_bucket_that_is_missing_is_named(s3, tmp_path):
    storage = Storage("s3://no-such-bucket/x", limit_s=60)
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x: there is no such bucket: make it"):
        storage.check()
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x/a could not be written: there is no such bucket"):
        storage.put_bytes(b"1", "a")
    assert time.monotonic() - started < 10


def test_credentials_that_are_not_known_are_refused_without_showing_them(tmp_path, monkeypatch):
    server = S3Server(tmp_path / "log.txt", INITIAL_NO_AUTH_ACTION_COUNT="1")
    try:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        storage = Storage(f"s3://{BUCKET}/strict?region=us-east-1", limit_s=60)  # a file system of its own
        with pytest.raises(StorageError, match=r"could not be written: .*(credentials|permission)") as caught:
            storage.put_bytes(b"1", "a")
        assert KEY not in str(caught.value)
        assert SECRET not in str(caught.value)
    finally:
        server.close()


def test_storage_that_comes_back_in_time_costs_nothing_but_time(s3, tmp_path):
    way = Way(s3.port)
    storage = Storage(f"s3://{BUCKET}/{tmp_path.name}?endpoint_override=127.0.0.1:{way.port}&scheme=http", limit_s=60)
    storage.put_bytes(b"before", "a")
    way.cut()
    mending = threading.Timer(1.5, way.mend)
    mending.start()
    started = time.monotonic()
    storage.put_bytes(b"after", "b")
    assert time.monotonic() - started > 1
    mending.join()
    assert storage.sizes() == {"a": 6, "b": 5}
    way.close()


def test_storage_that_stays_away_is_an_error_when_the_limit_is_over(s3, tmp_path):
    way = Way(s3.port)
    uri = f"s3://{BUCKET}/{tmp_path.name}?endpoint_override=127.0.0.1:{way.port}&scheme=http"
    way.close()
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        Storage(uri, limit_s=3).put_bytes(b"1", "a")
    assert time.monotonic() - started < 10
    for part in (
        f"s3://{BUCKET}/{tmp_path.name}/a?",
        "could not be written within 3 s (timeouts.storage_s)",
        "network",
    ):
        assert part in str(caught.value)


def test_a_full_disk_is_no_reason_to_try_again(tmp_path, monkeypatch):
    import errno
    import shutil

    storage = Storage(f"file://{tmp_path}/far", limit_s=60)
    storage.put_bytes(b"1", "a")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    started = time.monotonic()
    with pytest.raises(StorageError, match="No space left on device"):
        storage.get("a", tmp_path / "a")
    assert time.monotonic() - started < 5
    assert [path.name for path in tmp_path.iterdir()] == ["far"]


@pytest.mark.parametrize(
    ("location", "says"),
    [
        (f"s3://{KEY}:{SECRET}@bucket/x", "must not hold a login"),
        (f"s3://{KEY}@bucket/x", "must not hold a login"),
        ("ftp://host/x", r"ftp:// is not supported; give a folder, or one of s3://"),
        ("s3:///x", "names no bucket"),
        ("s3://bucket/x/../../other", "cannot be used"),
        ("s3://bucket/x/%2e%2e/other", "cannot be used"),
        ("s3://bucket/x?access_key=1", "unknown options"),
        ("s3://bucket/x#y", "cannot be used"),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused(location, says):
    with pytest.raises(ConfigError, match=says) as caught:
        check_location(location)
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("location", ["runs", "/mnt/nfs/../runs", "s3://b/x?region=eu-west-1", "gs://b", "file:///a/b"])
def test_a_location_that_can_be_used_stays_as_it_is(location):
    assert check_location(location) == location


def test_names_go_before_the_options():
    assert joined("s3://b/x/?region=r", "a/b") == "s3://b/x/a/b?region=r"
    assert parted("s3://b/x/name?region=r") == ("s3://b/x?region=r", "name")
    assert parted("file:///runs/name") == ("file:///runs", "name")
    for uri in ("s3://b", "s3://b/", "file:///a"):
        with pytest.raises(ConfigError, match="names no run"):
            parted(uri)
    for name in ("../a", "a/../../b", "/a"):
        with pytest.raises(ConfigError, match="climbs out"):
            joined("s3://b/x", name)


def test_every_scheme_but_s3_is_pyarrows_own():
    assert pyarrow.fs.FileSystem.from_uri("gs://bucket/x")[1] == "bucket/x"
