"""The child process that verifiers and reward functions run in: `python -m larpo.function_process KIND NAME`.

One JSON line in, one JSON line out, in order; nothing is unpickled. In: `{"prompt": {...}, "responses":
[text, ...]}`, of one response for a verifier. Out: first `{"ready": true}` or `{"error": kind, "message": text}`, then
`{"values": [float, ...]}` or `{"failure": reason}` a request. The child ends at the end of its input, and on Linux the
kernel ends it with its parent, even while a function hangs.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TextIO

from larpo.errors import LarpoError
from larpo.types import Message, Prompt
from larpo.user_function import load_function
from larpo.verifiers import get_verifier

Kind = Literal["verifier", "callable"]
ListFunction = Callable[[Prompt, Sequence[str]], Iterable[float]]

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LONGEST_REASON = 300  # characters of a failure's reason


def encode_request(prompt: Prompt, responses: Sequence[str]) -> bytes:
    """One request line. TypeError or ValueError when the answer key is not JSON-like."""
    plain = {
        "id": prompt.id,
        "messages": [[message.role, message.content] for message in prompt.messages],
        "task": prompt.task,
        "answer_key": dict(prompt.answer_key),
    }
    return json.dumps({"prompt": plain, "responses": list(responses)}).encode() + b"\n"


def decode_request(line: str) -> tuple[Prompt, list[str]]:
    """The prompt and the responses of a request line."""
    data = json.loads(line)
    plain = data["prompt"]
    messages = tuple(Message(role, content) for role, content in plain["messages"])
    return Prompt(plain["id"], messages, plain["task"], plain["answer_key"]), data["responses"]


def load(kind: Kind, name: str) -> ListFunction:
    """What answers requests: a verifier, response by response, or a user's function of whole lists."""
    if kind == "callable":
        return load_function(name, "callable")
    verifier = get_verifier(name)
    return lambda prompt, responses: [verifier(prompt, response) for response in responses]


def answer(function: ListFunction, prompt: Prompt, responses: Sequence[str]) -> dict[str, Any]:
    """The answer to one request: a finite number a response, or why there is none."""
    try:
        values = [float(value) for value in function(prompt, responses)]
    except (Exception, SystemExit) as error:
        return {"failure": f"{type(error).__name__}: {error}"[:LONGEST_REASON]}
    if len(values) != len(responses):
        return {"failure": f"{len(values)} rewards for {len(responses)} responses"}
    strange = [value for value in values if not math.isfinite(value)]
    return {"failure": f"not finite ({strange[0]})"} if strange else {"values": values}


def serve(function: ListFunction, requests: Iterable[str], answers: TextIO) -> None:
    """Answers every request until the input ends."""
    for line in requests:
        answers.write(json.dumps(answer(function, *decode_request(line))) + "\n")
        answers.flush()


def _die_with_parent() -> None:
    """Asks the kernel (Linux only) to kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _private_stdout() -> TextIO:
    """The answer channel; whatever a function prints goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def main(kind: Kind, name: str) -> None:
    """Loads the function, says so, serves."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = _private_stdout()
    try:
        function = load(kind, name)
        greeting: dict[str, Any] = {"ready": True}
    except (LarpoError, ImportError) as error:
        greeting = {"error": type(error).__name__, "message": str(error)}
    answers.write(json.dumps(greeting) + "\n")
    answers.flush()
    if "ready" in greeting:
        serve(function, sys.stdin, answers)


if __name__ == "__main__":
    main("callable" if sys.argv[1] == "callable" else "verifier", sys.argv[2])
