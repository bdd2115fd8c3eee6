"""A verifier or a user's reward function called in a process of its own, with a time limit a call."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import larpo
from larpo.errors import ConfigError, DataError, RewardError
from larpo.function_process import Kind, encode_request
from larpo.types import Prompt

START_LIMIT_S = 120.0  # the process imports what the function needs in this time


class FunctionCaller:
    """A function that raises, gives NaN or infinity, exits, crashes or exceeds the limit costs that one call.

    The process is started again where it is gone. Calls from several threads are served one after the other.

    Raises ConfigError when the function cannot be loaded, RewardError when its process does not start.
    """

    def __init__(self, kind: Kind, name: str, limit_s: float) -> None:
        self._kind, self._name, self._limit_s = kind, name, limit_s
        # The kernel ends the child with the thread that started it: one thread of ours starts every child.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=kind)
        self._child: _Child | None = None
        self._closed = False
        try:
            self._thread.submit(self._ready_child).result()
        except BaseException:
            self.close()
            raise

    def call(self, calls: Sequence[tuple[Prompt, Sequence[str]]]) -> list[list[float] | str]:
        """Of each call, a finite number a response, or the reason why there is none.

        Raises DataError for an answer key that is not JSON-like, RewardError after `close`.
        """
        if self._closed:
            raise RewardError(f"the reward model of {self._kind} {self._name!r} was closed; make another")
        return self._thread.submit(lambda: [self._call(*each) for each in calls]).result()

    def close(self) -> None:
        """Ends the process after the call that it is working on. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._thread.submit(self._drop_child).result()
        self._thread.shutdown()

    def _call(self, prompt: Prompt, responses: Sequence[str]) -> list[float] | str:
        request = _encoded(prompt, responses)
        try:
            answer = self._ready_child().ask(request, self._limit_s)
        except TimeoutError:
            self._drop_child()
            return f"timed out after {self._limit_s:g} s"
        except EOFError:
            return f"the {self._kind}'s process died ({self._drop_child(grace_s=1.0)})"
        return answer["failure"] if "failure" in answer else answer["values"]

    def _ready_child(self) -> _Child:
        """The running child; a fresh one where it never ran or ended while it had nothing to do."""
        if self._child is None or self._child.ended():
            self._drop_child()
            self._child = _Child(self._kind, self._name)
        return self._child

    def _drop_child(self, grace_s: float = 0.0) -> str:
        """Kills the child and says how it ended."""
        child, self._child = self._child, None
        return child.kill(grace_s) if child else "it never ran"


def _encoded(prompt: Prompt, responses: Sequence[str]) -> bytes:
    """The request line; DataError when the answer key is not JSON-like."""
    try:
        return encode_request(prompt, responses)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"prompt {prompt.id!r}: its answer_key cannot be given to a reward function ({error}); keep to text, "
            "numbers, lists and structs"
        ) from error


class _Child:
    """The function's process, with a limit on each exchange. Belongs to one thread."""

    def __init__(self, kind: Kind, name: str) -> None:
        command = [sys.executable, "-P", "-m", "larpo.function_process", kind, name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=_child_environment()
        )
        assert self._process.stdin
        assert self._process.stdout
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._unread = b""
        self._greet(kind, name)

    def _greet(self, kind: Kind, name: str) -> None:
        """Waits until the function is loaded."""
        try:
            greeting = self._read_answer(time.monotonic() + START_LIMIT_S)
        except (TimeoutError, EOFError) as error:
            raise RewardError(
                f"the process of {kind} {name!r} did not start within {START_LIMIT_S:g} s "
                f"({self.kill(1.0)}); its error output says why, or run it by hand: "
                f"python -m larpo.function_process {kind} {name}"
            ) from error
        if "error" in greeting:
            self.kill()
            raise ConfigError(f"{kind} {name!r}: {greeting['error']}: {greeting['message']}")

    def ask(self, request: bytes, limit_s: float) -> dict[str, Any]:
        """The answer to a request line; TimeoutError past the limit, EOFError when the process is gone."""
        deadline = time.monotonic() + limit_s
        self._write(request, deadline)
        return self._read_answer(deadline)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self, grace_s: float = 0.0) -> str:
        """Ends the process, after `grace_s` for one that is ending by itself, and says how it ended."""
        try:
            ending = f"exit code {self._process.wait(grace_s)}"
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            ending = "killed"
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        return ending

    def _write(self, request: bytes, deadline: float) -> None:
        left = memoryview(request)
        while left:
            _wait([], [self._in], deadline)
            try:
                left = left[os.write(self._in, left) :]
            except BrokenPipeError as error:
                raise EOFError from error

    def _read_answer(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._unread:
            _wait([self._out], [], deadline)
            piece = os.read(self._out, 1 << 16)
            if not piece:
                raise EOFError
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)


def _wait(readable: list[int], writable: list[int], deadline: float) -> None:
    """Returns when one of the descriptors can be used; TimeoutError after the deadline."""
    poller = select.poll()  # select.select refuses descriptors above 1023, which busy actors have
    for descriptor in readable:
        poller.register(descriptor, select.POLLIN)
    for descriptor in writable:
        poller.register(descriptor, select.POLLOUT)
    if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _child_environment() -> dict[str, str]:
    """Ours with our import path, so that larpo and a user's function are found though not installed."""
    root = str(Path(larpo.__file__).resolve().parent.parent)
    folders = [root, *(os.path.abspath(folder) for folder in sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(folders))}
