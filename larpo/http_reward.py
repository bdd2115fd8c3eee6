"""Rewards from a server: JSON in, JSON out.

`GET /describe` answers `{"fingerprint": text, "joint": bool}`; with `joint` (false when left out) a list is always
asked for as a whole. `POST /score` takes `{"requests": [{"prompt": {"id", "messages": [{"role", "content"}], "task",
"answer_key"}, "responses": [text, ...]}, ...]}` and answers `{"fingerprint": text, "rewards": [[{"value": number,
"failure": text}, ...], ...]}`; `failure` may be left out, and a plain number stands for a value.
`scripts/serve_reward.py` is such a server.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from requests import Response, Session
from urllib3.exceptions import HTTPError

from larpo.errors import EndpointError
from larpo.reward_config import LONGEST_BACKOFF_S, Endpoint
from larpo.rewards import Request, Reward, finite
from larpo.types import Message, Prompt

TOKEN = "LARPO_REWARD_TOKEN"  # an environment variable: what the server may ask for


class HttpReward:
    """Asks the addresses by turns; one that stalls, fails or answers nonsense is passed over for the next attempt.

    Raises EndpointError, naming every attempt's cause, when all attempts at a request failed.
    """

    def __init__(
        self, section: Endpoint, *, failed_reward: float = 0.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._section, self._failed, self._sleep = section, failed_reward, sleep
        self._turn = itertools.cycle(section.addresses)
        self._session = Session()
        if os.environ.get(TOKEN):
            self._session.headers["Authorization"] = f"Bearer {os.environ[TOKEN]}"
        self.fingerprint, self.joint = self._attempt(self._describe)

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[Reward]:
        return self.score_lists([(prompt, responses)])[0]

    def score_lists(self, requests: Sequence[Request]) -> list[list[Reward]]:
        """In one request; a retry asks again for all of it."""
        body = {"requests": [{"prompt": _plain(prompt), "responses": list(texts)} for prompt, texts in requests]}
        return self._attempt(lambda address: self._parse(self._ask("POST", f"{address}/score", body), requests))

    def close(self) -> None:
        self._session.close()

    def _attempt(self, work: Callable[[str], Any]) -> Any:
        causes, attempts = [], self._section.retries + 1
        for number in range(attempts):
            address = next(self._turn).rstrip("/")
            try:
                return work(address)
            except (OSError, ValueError, HTTPError) as error:  # requests' own are OSErrors
                causes.append(f"{address}: {type(error).__name__}: {error}"[:300])
            if number + 1 < attempts:
                self._sleep(min(self._section.backoff_s * 2**number, LONGEST_BACKOFF_S))
        raise EndpointError(
            f"the reward server gave no answer in {attempts} attempts (reward.endpoint.retries = "
            f"{self._section.retries}): " + "; ".join(causes)
        )

    def _describe(self, address: str) -> tuple[str, bool]:
        found = self._ask("GET", f"{address}/describe", None)
        fingerprint, joint = found.get("fingerprint"), found.get("joint", False)
        if not isinstance(fingerprint, str) or not fingerprint:
            raise ValueError(f"/describe gave the fingerprint {fingerprint!r}, not a text")
        if not isinstance(joint, bool):
            raise ValueError(f"/describe gave joint = {joint!r}, not true or false")
        return fingerprint, joint

    def _ask(self, method: str, url: str, body: Any) -> dict[str, Any]:
        """The reply's JSON object; an error when it is late as a whole, too long, not a success, or something else."""
        deadline = time.monotonic() + self._section.timeout_s
        with self._session.request(
            method, url, json=body, stream=True, timeout=self._section.timeout_s, allow_redirects=False
        ) as reply:
            text = self._read(reply, deadline)
            if reply.status_code != 200:
                raise ValueError(f"status {reply.status_code}: {text[:200]!r}")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"the reply is a {type(found).__name__}, not an object")
        return found

    def _read(self, reply: Response, deadline: float) -> bytes:
        text, limit = b"", self._section.reply_mib * 2**20
        while piece := reply.raw.read1(1 << 16, decode_content=True):  # what is there, however little
            text += piece
            if len(text) > limit:
                raise ValueError(f"the reply is longer than {limit} bytes (reward.endpoint.reply_mib)")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the reply took over {self._section.timeout_s:g} s (reward.endpoint.timeout_s)")
        return text

    def _parse(self, reply: dict[str, Any], asked: Sequence[Request]) -> list[list[Reward]]:
        """Rewards in the shape of the request; ValueError for any other shape, or another model's rewards."""
        if reply.get("fingerprint") != self.fingerprint:
            raise ValueError(f"the server's model is {reply.get('fingerprint')!r} now, it was {self.fingerprint!r}")
        rewards, shape = reply.get("rewards"), [len(texts) for _, texts in asked]
        if not isinstance(rewards, list) or not all(isinstance(row, list) for row in rewards):
            raise ValueError("the reply's rewards are not a list of lists")
        if [len(row) for row in rewards] != shape:
            raise ValueError(f"the reply has {[len(row) for row in rewards]} rewards a prompt, asked were {shape}")
        return [[self._reward(entry) for entry in row] for row in rewards]

    def _reward(self, entry: Any) -> Reward:
        if isinstance(entry, dict) and entry.get("failure"):
            return Reward(self._failed, str(entry["failure"])[:300])
        value = entry.get("value") if isinstance(entry, dict) else entry
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"a reward is {value!r}, not a number")
        try:
            return finite(float(value), self._failed)
        except OverflowError as error:
            raise ValueError("a reward is a whole number too long for a float") from error


def _plain(prompt: Prompt) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "messages": [asdict(message) for message in prompt.messages],
        "task": prompt.task,
        "answer_key": dict(prompt.answer_key),
    }


def decode_requests(body: Any) -> list[Request]:
    """The requests of a `/score` body; ValueError for anything that is not one."""
    try:
        return [(_prompt(entry["prompt"]), [_text(text) for text in entry["responses"]]) for entry in body["requests"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a score request: {type(error).__name__}: {error}") from error


def _prompt(plain: dict[str, Any]) -> Prompt:
    messages = tuple(Message(_text(message["role"]), _text(message["content"])) for message in plain["messages"])
    return Prompt(_text(plain["id"]), messages, _text(plain.get("task", "")), dict(plain.get("answer_key", {})))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value
