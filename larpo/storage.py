"""Files under a URI, on any file system that pyarrow reaches: s3://, gs://, abfs://, hdfs:// and file://.

A file appears under its name when it is whole. Every call is tried again, with growing pauses, until its limit is over
or the cause is one that waiting does not mend. Credentials come from the environment, never from a URI.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from larpo.errors import ConfigError, StorageError

T = TypeVar("T")

SCHEMES = ("s3", "gs", "abfs", "abfss", "hdfs", "file")
_OPTIONS = ("endpoint_override", "region", "scheme", "project_id")  # what may stand behind a `?`
_WHOLE_ON_CLOSE = ("s3", "gcs", "abfs")  # pyarrow's names of file systems where a file appears when it is closed
_CHUNK = 2**24
_LONGEST_WAIT_S = 20.0
_CONNECT_S = 5.0
_LASTING = (errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_CAUSES = {  # what pyarrow says of a cause that does not pass by itself: what to do
    "NO_SUCH_BUCKET": "there is no such bucket: make it, or give another",
    "NoSuchBucket": "there is no such bucket: make it, or give another",
    "ACCESS_DENIED": "no permission: let these credentials read, write, list and delete there",
    "HTTP status 403": "no permission: give credentials that may read, write, list and delete there",
    "PERMISSION_DENIED": "no permission: let these credentials read, write, list and delete there",
    "INVALID_ACCESS_KEY_ID": "the credentials are not known there: correct AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "the credentials are wrong: correct AWS_SECRET_ACCESS_KEY",
    "INVALID_CLIENT_TOKEN_ID": "the credentials are not known there: correct AWS_ACCESS_KEY_ID",
    "EXPIRED_TOKEN": "the credentials have expired: renew them",
}


def is_uri(location: str | Path) -> bool:
    return "://" in str(location)


def check_location(location: str) -> str:
    """A folder or a URI as it was given; ConfigError for a URI that cannot be used, which does not repeat a login."""
    if not is_uri(location):
        return location
    parts = urlsplit(location)
    if "@" in parts.netloc:
        raise ConfigError(
            f"{parts.scheme}://[login]@...: a URI must not hold a login; credentials come from the environment"
            " (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or the machine's role)"
        )
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"{location}: {parts.scheme}:// is not supported; give a folder, or one of {_listed()}")
    if not parts.netloc and parts.scheme != "file":
        raise ConfigError(f"{location}: names no bucket; give it as {parts.scheme}://BUCKET/PREFIX")
    if ".." in PurePosixPath(parts.path).parts or "%" in parts.path or parts.fragment:
        raise ConfigError(f"{location}: `..`, `%` and `#` cannot be used in a URI; give a plain path")
    unknown = sorted({name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} - set(_OPTIONS))
    if unknown:
        raise ConfigError(f"{location.split('?')[0]}: unknown options {unknown} behind `?`; known: {list(_OPTIONS)}")
    return location


def inside(name: str) -> str:
    """A name from a bucket or a manifest as it is; StorageError for one that leads out of its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise StorageError(f"{name!r} names a file outside its folder: no run of ours wrote it; remove it")
    return name


def _listed() -> str:
    return ", ".join(f"{scheme}://" for scheme in SCHEMES)


def joined(location: str, name: str) -> str:
    """A name below a URI, before what stands behind its `?`; ConfigError for a name that climbs out."""
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ConfigError(f"{name!r} is no name below {location}: it climbs out; give a plain one")
    head, mark, options = location.partition("?")
    return f"{head.rstrip('/')}/{name}{mark}{options}"


def parted(uri: str) -> tuple[str, str]:
    """(URI of what is above, last name) of a URI."""
    head, mark, options = uri.partition("?")
    above, _, name = head.rstrip("/").rpartition("/")
    if not name or above.endswith(("/", ":")):
        raise ConfigError(f"{uri}: names no run; give the run's own, such as s3://BUCKET/PREFIX/NAME")
    return f"{above}{mark}{options}", name


@dataclass(frozen=True)
class Storage:
    """Files under one URI, by their names below it. Raises StorageError when the limit is over."""

    uri: str
    limit_s: float = 300.0  # of one call, with all its tries

    def put(self, file: Path, name: str) -> None:
        """Copy a file there."""
        self._tried("written", name, lambda: self._write(name, lambda: file.open("rb")))

    def put_bytes(self, data: bytes, name: str) -> None:
        self._tried("written", name, lambda: self._write(name, lambda: io.BytesIO(data)))

    def get(self, name: str, file: Path) -> None:
        """Copy a file from there, whole or not at all; FileNotFoundError when there is none."""
        self._tried("read", name, lambda: self._fetch(name, file), may_lack=True)

    def read(self, name: str) -> bytes | None:
        """What a small file holds; None when there is none."""

        def call() -> bytes:
            with self._opened(name) as source:
                return source.read()

        with suppress(FileNotFoundError):
            return self._tried("read", name, call, may_lack=True)
        return None

    def checksum(self, name: str) -> str | None:
        """SHA-256 of a file, which is read through and kept nowhere; None when there is none."""

        def call() -> str:
            digest = hashlib.sha256()
            with self._opened(name) as source:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
            return digest.hexdigest()

        with suppress(FileNotFoundError):
            return self._tried("read", name, call, may_lack=True)
        return None

    def sizes(self, below: str = "") -> dict[str, int]:
        """Every whole file below a name, and its size in bytes; nothing for a name that is not there."""
        import pyarrow.fs

        def call() -> dict[str, int]:
            files, root = self._files()
            chosen = pyarrow.fs.FileSelector(_path(root, below), recursive=True, allow_not_found=True)
            found = {info.path: info.size for info in files.get_file_info(chosen) if info.is_file}
            start = len(root.rstrip("/")) + 1
            whole = {path[start:]: size for path, size in sorted(found.items()) if not path.endswith(".partial")}
            return {inside(name): size for name, size in whole.items()}

        return self._tried("listed", below, call)

    def delete(self, name: str) -> None:
        """Delete a file; what is not there is deleted."""

        def call() -> None:
            files, root = self._files()
            files.delete_file(_path(root, name))

        with suppress(FileNotFoundError):
            self._tried("deleted", name, call, may_lack=True)

    def delete_below(self, name: str) -> None:
        """Delete a folder and all in it; what is not there is deleted."""

        def call() -> None:
            files, root = self._files()
            files.delete_dir(_path(root, name))

        with suppress(FileNotFoundError):
            self._tried("deleted", name, call, may_lack=True)

    def check(self) -> None:
        """StorageError when it cannot be listed, or the bucket is not there: listing one that is missing says nothing.

        Whether it can be written shows with the first file, which is the run's configuration.
        """
        import pyarrow.fs

        self.sizes()
        bucket = urlsplit(self.uri).netloc
        if urlsplit(self.uri).scheme not in ("s3", "gs") or not bucket:
            return

        def call() -> Any:
            files, _ = self._files()
            return files.get_file_info(bucket).type

        if self._tried("found", "", call) == pyarrow.fs.FileType.NotFound:
            raise StorageError(f"{self.uri}: {_CAUSES['NO_SUCH_BUCKET']}")

    def _files(self) -> tuple[Any, str]:
        return _file_system(self.uri)

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        files, root = self._files()
        with files.open_input_stream(_path(root, name), compression=None) as source:
            yield source

    def _write(self, name: str, opened: Callable[[], IO[bytes]]) -> None:
        files, root = self._files()
        path = _path(root, name)
        at_once = files.type_name in _WHOLE_ON_CLOSE
        target = path if at_once else f"{path}.partial"
        with opened() as source:
            if not at_once:
                files.create_dir(str(PurePosixPath(path).parent), recursive=True)
            with files.open_output_stream(target, compression=None) as out:
                shutil.copyfileobj(source, out, _CHUNK)
            size = source.tell()
        if not at_once:
            files.move(target, path)
        found = files.get_file_info(path).size
        if found != size:
            raise OSError(f"{found} of {size} bytes are there")

    def _fetch(self, name: str, file: Path) -> None:
        beside = file.with_name(f".{file.name}.{os.getpid()}.partial")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._opened(name) as source, open(beside, "wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
            beside.rename(file)
        finally:
            beside.unlink(missing_ok=True)

    def _tried(self, what: str, name: str, call: Callable[[], T], *, may_lack: bool = False) -> T:
        """The result of `call`, tried again as long as that may help; `may_lack`: FileNotFoundError is an answer."""
        import pyarrow as pa

        started, pause = time.monotonic(), 0.5
        while True:
            try:
                return call()
            except (OSError, pa.ArrowException) as error:
                if may_lack and isinstance(error, FileNotFoundError):
                    raise
                cause = _cause(error)
                spent = time.monotonic() - started
                if cause is not None or spent + pause > self.limit_s:
                    where = joined(self.uri, name) if name else self.uri
                    tried = "" if cause else f" within {self.limit_s:g} s (timeouts.storage_s)"
                    raise StorageError(f"{where} could not be {what}{tried}: {cause or _said(error)}") from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_WAIT_S)


def _path(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}" if name else root


def _cause(error: Exception) -> str | None:
    """What to do about an error that waiting does not mend; None for one that may pass."""
    import pyarrow as pa

    if isinstance(error, OSError) and error.errno in _LASTING:
        return str(error)
    if isinstance(error, pa.ArrowInvalid | pa.ArrowNotImplementedError):
        return _said(error)
    return next((text for sign, text in _CAUSES.items() if sign in str(error)), None)


def _said(error: Exception) -> str:
    """An error of a file system in one line, without the ids of its requests."""
    text = re.sub(r"\s*\(Request ID: [^)]*\)", "", " ".join(str(error).split()))
    return f"{text}. Check the network, and the endpoint" if "NETWORK" in text else text


@cache
def _file_system(uri: str) -> tuple[Any, str]:
    """pyarrow's file system of a URI, and the path in it."""
    import pyarrow.fs

    parts = urlsplit(check_location(uri))
    if parts.scheme != "s3":
        return pyarrow.fs.FileSystem.from_uri(uri)
    options = dict(parse_qsl(parts.query))
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, endpoint = given.rpartition("://")
    files = pyarrow.fs.S3FileSystem(
        endpoint_override=options.get("endpoint_override") or endpoint.rstrip("/") or None,
        scheme=options.get("scheme") or scheme or "https",
        region=options.get("region"),
        connect_timeout=_CONNECT_S,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=2),  # ours goes on from there
    )
    return files, f"{parts.netloc}{parts.path}".rstrip("/")
