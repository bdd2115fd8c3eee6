"""The child process that verifiers run in: `python -m larpo.verifier_process NAME`.

One JSON line in, one JSON line out, in order; nothing is unpickled. In: `{"prompt": {...}, "response":
text}`. Out: first `{"ready": true}` or `{"error": kind, "message": text}`, then `{"value": float}` or
`{"failure": reason}` a response. The child ends at the end of its input, and on Linux the kernel ends it with
its parent, even while a verifier hangs.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from larpo.errors import LarpoError
from larpo.types import Message, Prompt
from larpo.verifiers import Verifier, get_verifier

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LONGEST_REASON = 300  # characters of a failure's reason


def encode_request(prompt: Prompt, response: str) -> bytes:
    """One request line. TypeError or ValueError when the answer key is not JSON-like."""
    plain = {
        "id": prompt.id,
        "messages": [[message.role, message.content] for message in prompt.messages],
        "task": prompt.task,
        "answer_key": dict(prompt.answer_key),
    }
    return json.dumps({"prompt": plain, "response": response}).encode() + b"\n"


def decode_request(line: str) -> tuple[Prompt, str]:
    """The prompt and the response of a request line."""
    data = json.loads(line)
    plain = data["prompt"]
    messages = tuple(Message(role, content) for role, content in plain["messages"])
    return Prompt(plain["id"], messages, plain["task"], plain["answer_key"]), data["response"]


def verify(verifier: Verifier, prompt: Prompt, response: str) -> dict[str, Any]:
    """The answer to one request: the verifier's value, or why it gave none."""
    try:
        value = float(verifier(prompt, response))
    except (Exception, SystemExit) as error:
        return {"failure": f"{type(error).__name__}: {error}"[:LONGEST_REASON]}
    if not math.isfinite(value):
        return {"failure": f"not finite ({value})"}
    return {"value": value}


def serve(verifier: Verifier, requests: Iterable[str], answers: TextIO) -> None:
    """Answers every request until the input ends."""
    for line in requests:
        answers.write(json.dumps(verify(verifier, *decode_request(line))) + "\n")
        answers.flush()


def _die_with_parent() -> None:
    """Asks the kernel (Linux only) to kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _private_stdout() -> TextIO:
    """The answer channel; whatever a verifier prints goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def main(name: str) -> None:
    """Loads the verifier, says so, serves."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = _private_stdout()
    try:
        verifier = get_verifier(name)
        greeting: dict[str, Any] = {"ready": True}
    except (LarpoError, ImportError) as error:
        greeting = {"error": type(error).__name__, "message": str(error)}
    answers.write(json.dumps(greeting) + "\n")
    answers.flush()
    if "ready" in greeting:
        serve(verifier, sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1])
