"""A real S3 server on this machine (moto), in a process of its own, and a way to it that a test can cut."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import boto3

SECRET = "planted-secret-8f2c61d0"  # must turn up nowhere
KEY = "PLANTEDKEY0123456789"
BUCKET = "larpo-test"


class S3Server:
    """moto's server on loopback with one empty bucket, and what the environment must hold to reach it."""

    def __init__(self, log: Path, **environment: str) -> None:
        self.port = free_port()
        with open(log, "w") as out:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | environment)
        deadline = time.monotonic() + 120
        while not _answers(self.port):
            assert self._process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )
        self.client.create_bucket(Bucket=BUCKET)

    def environment(self, port: int | None = None) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def download(self, prefix: str, folder: Path) -> Path:
        """Everything below a prefix, as files."""
        for key in self.keys(prefix):
            if not key.endswith("/"):
                path = folder / key.removeprefix(prefix).lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.read(key))
        return folder

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


class Way:
    """A TCP forwarder to a server: while it is cut, connections are refused, and those that were open end."""

    def __init__(self, target: int) -> None:
        self.port, self._target, self._open = free_port(), target, set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.mend()

    def mend(self) -> None:
        self._server = self._do(asyncio.start_server(self._forward, "127.0.0.1", self.port))

    def cut(self) -> None:
        async def close() -> None:
            self._server.close()
            for writer in self._open:
                writer.transport.abort()

        self._do(close())

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _forward(self, reader, writer) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._open |= {writer, far_writer}
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        self._open -= {writer, far_writer}


async def _copy(reader, writer) -> None:
    with suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    writer.close()


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def _answers(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0
