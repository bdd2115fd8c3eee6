"""Rewards by a verifier that runs in a process of its own, with a time limit a response."""

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
from larpo.rewards import Request, Reward
from larpo.types import Prompt, stable_hash
from larpo.verifier_process import encode_request
from larpo.verifiers import check_verifier_name, verifier_version

START_LIMIT_S = 120.0  # a verifier's process imports its packages in this time


class VerifierReward:
    """Rewards by a verifier that runs in a process of its own.

    A verifier that raises, gives NaN or infinity, exits, crashes or exceeds the limit costs that one reward:
    its value is `failed_reward` and its failure the reason; the process is started again where it is gone. An
    empty response is scored as any other. Calls from several threads are served one after the other.

    Raises ConfigError when the verifier cannot be loaded, RewardError when its process does not start.
    """

    def __init__(self, name: str, *, timeout_s: float = 5.0, failed_reward: float = 0.0) -> None:
        check_verifier_name(name)
        self.fingerprint = verifier_fingerprint(name, timeout_s, failed_reward)
        self._name, self._timeout_s, self._failed = name, timeout_s, failed_reward
        # The kernel ends the child with the thread that started it: one thread of ours starts every child.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verifier")
        self._child: _Child | None = None
        self._closed = False
        try:
            self._thread.submit(self._ready_child).result()
        except BaseException:
            self.close()
            raise

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[Reward]:
        return self.score_lists([(prompt, responses)])[0]

    def score_lists(self, requests: Sequence[Request]) -> list[list[Reward]]:
        if self._closed:
            raise RewardError(f"the reward model of verifier {self._name!r} was closed; make another")
        return self._thread.submit(self._score_lists, requests).result()

    def close(self) -> None:
        """Ends the verifier's process after the call that it is working on. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._thread.submit(self._drop_child).result()
        self._thread.shutdown()

    def _score_lists(self, requests: Sequence[Request]) -> list[list[Reward]]:
        return [[self._score_one(prompt, text) for text in responses] for prompt, responses in requests]

    def _score_one(self, prompt: Prompt, response: str) -> Reward:
        request = _encoded(prompt, response)
        try:
            answer = self._ready_child().ask(request, self._timeout_s)
        except TimeoutError:
            self._drop_child()
            return Reward(self._failed, f"timed out after {self._timeout_s:g} s")
        except EOFError:
            return Reward(self._failed, f"the verifier's process died ({self._drop_child(grace_s=1.0)})")
        if "failure" in answer:
            return Reward(self._failed, answer["failure"])
        return Reward(answer["value"])

    def _ready_child(self) -> _Child:
        """The running child; a fresh one where it never ran or ended while it had nothing to do."""
        if self._child is None or self._child.ended():
            self._drop_child()
            self._child = _Child(self._name)
        return self._child

    def _drop_child(self, grace_s: float = 0.0) -> str:
        """Kills the child and says how it ended."""
        child, self._child = self._child, None
        return child.kill(grace_s) if child else "it never ran"


def verifier_fingerprint(name: str, timeout_s: float, failed_reward: float) -> str:
    """Short hash of everything that decides a verifier's rewards: name, versions and the two knobs."""
    return f"{stable_hash('verifier', name, verifier_version(name), timeout_s, failed_reward):016x}"


def _encoded(prompt: Prompt, response: str) -> bytes:
    """The request line; DataError when the answer key is not JSON-like."""
    try:
        return encode_request(prompt, response)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"prompt {prompt.id!r}: its answer_key cannot be given to a verifier ({error}); keep to text, "
            "numbers, lists and structs"
        ) from error


class _Child:
    """A verifier's process, with a limit on each exchange. Belongs to one thread."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, "-P", "-m", "larpo.verifier_process", name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=_child_environment()
        )
        assert self._process.stdin
        assert self._process.stdout
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._unread = b""
        self._greet(name)

    def _greet(self, name: str) -> None:
        """Waits until the verifier is loaded."""
        try:
            greeting = self._read_answer(time.monotonic() + START_LIMIT_S)
        except (TimeoutError, EOFError) as error:
            raise RewardError(
                f"the process of verifier {name!r} did not start within {START_LIMIT_S:g} s "
                f"({self.kill(1.0)}); its error output says why, or run it by hand: "
                f"python -m larpo.verifier_process {name}"
            ) from error
        if "error" in greeting:
            self.kill()
            raise ConfigError(f"verifier {name!r}: {greeting['error']}: {greeting['message']}")

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
    """Ours with our import path, so that larpo and a user's verifier are found though not installed."""
    root = str(Path(larpo.__file__).resolve().parent.parent)
    folders = [root, *(os.path.abspath(folder) for folder in sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(folders))}
