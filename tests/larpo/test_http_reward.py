"""Rewards from a server: real ones on loopback, good and bad."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from larpo.errors import RewardError
from larpo.http_reward import HttpReward, decode_requests
from larpo.reward_config import Endpoint
from larpo.reward_config import Reward as RewardSection
from larpo.rewards import Reward, make_reward_model
from larpo.types import Message, Prompt

PROMPT = Prompt("p", (Message("user", "2 + 2 ="),), "chain_sum", {"task": "chain_sum", "answer": "4", "metadata": {}})
REQUESTS = [(PROMPT, ["4", "five"]), (PROMPT, ["It is 4."])]
GOOD = {"fingerprint": "f", "rewards": [[1.0, {"value": 0.5}], [{"value": 0.0, "failure": "late"}]]}
EXPECTED = [[Reward(1.0), Reward(0.5)], [Reward(-1.0, "late")]]


@contextmanager
def server(*answers):
    """Serves `/score` with one answer after the other, the last for ever; yields its address and what it was asked."""
    asked, left = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, b'{"fingerprint": "f"}')

        def do_POST(self):
            asked.append((self.headers, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            answer = left.pop(0) if len(left) > 1 else left[0]
            answer(self) if callable(answer) else self.answer(200, json.dumps(answer).encode())

        def answer(self, status, body, length=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    threading.Thread(target=found.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{found.server_port}", asked
    finally:
        found.shutdown()
        found.server_close()


def stalls(handler):
    time.sleep(3)


def trickles(handler):
    """A byte now and then: each read is in time, the whole is not."""
    handler.answer(200, b"{", length=1000)
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def breaks_off(handler):
    handler.answer(200, b'{"fingerprint": "f", "rew', length=1000)


def fails(handler):
    handler.answer(503, b"out of order")


def sends_elsewhere(handler):
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:1/")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def swells(handler):
    handler.answer(200, b" " * (2 * 2**20))


NONSENSE = [
    lambda handler: handler.answer(200, b"<html>"),
    [1, 2],
    {"fingerprint": "f"},
    {"fingerprint": "f", "rewards": [[1.0], [0.0]]},
    {"fingerprint": "f", "rewards": [[1.0, "much"], [0.0]]},
    {"fingerprint": "f", "rewards": [[1.0, True], [0.0]]},
    {**GOOD, "fingerprint": "another"},
]


def reward(*addresses, **knobs):
    waits = []
    section = Endpoint(addresses=addresses, **{"timeout_s": 0.5, "reply_mib": 1, **knobs})
    model = HttpReward(section, failed_reward=-1.0, sleep=waits.append)
    return model, waits


def test_rewards_come_in_the_shape_of_the_request():
    with server(GOOD) as (address, asked):
        model, waits = reward(address)
        assert model.score_lists(REQUESTS) == EXPECTED
        assert waits == []
        assert model.fingerprint == "f"
        assert decode_requests(asked[0][1]) == REQUESTS


def test_a_value_that_is_not_finite_is_a_failure():
    def answer(handler):
        handler.answer(200, b'{"fingerprint": "f", "rewards": [[NaN, 1], [Infinity]]}')

    with server(answer) as (address, _):
        found = reward(address)[0].score_lists(REQUESTS)
    assert found == [[Reward(-1.0, "not finite (nan)"), Reward(1.0)], [Reward(-1.0, "not finite (inf)")]]


@pytest.mark.parametrize("trouble", [stalls, trickles, breaks_off, fails, sends_elsewhere, swells, *NONSENSE])
def test_trouble_costs_a_retry_and_no_list(trouble):
    with server(trouble, GOOD) as (address, asked):
        timeout_s = 1.5 if trouble in (stalls, trickles) else 30.0  # a good answer needs time too, on a busy machine
        model, waits = reward(address, backoff_s=0.25, timeout_s=timeout_s)
        assert model.score_lists(REQUESTS) == EXPECTED
        assert waits == [0.25]
        assert len(asked) == 2


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        (stalls, "Read timed out"),
        (trickles, "the reply took over 0.5 s (reward.endpoint.timeout_s)"),
        (fails, "status 503: b'out of order'"),
        (sends_elsewhere, "status 302"),
        (swells, "longer than 1048576 bytes (reward.endpoint.reply_mib)"),
        (NONSENSE[3], "the reply has [1, 1] rewards a prompt, asked were [2, 1]"),
        (NONSENSE[6], "the server's model is 'another' now, it was 'f'"),
    ],
)
def test_lasting_trouble_is_one_error_with_the_cause_of_every_attempt(trouble, cause):
    with server(trouble) as (address, asked):
        model, waits = reward(address, retries=2, backoff_s=20.0)
        with pytest.raises(RewardError) as caught:
            model.score_lists(REQUESTS)
    assert "no answer in 3 attempts (reward.endpoint.retries = 2)" in str(caught.value)
    assert str(caught.value).count(cause) == 3
    assert waits == [20.0, 30.0]
    assert len(asked) == 3


def test_addresses_are_taken_by_turns_and_a_dead_one_is_passed_over():
    with server(GOOD) as (first, asked_first), server(GOOD) as (second, asked_second):
        model, waits = reward(first, second)
        for _ in range(4):
            model.score_lists(REQUESTS)
        assert len(asked_first) == len(asked_second) == 2
        model, waits = reward("http://127.0.0.1:1", second)
        assert model.score_lists(REQUESTS) == EXPECTED
        assert 1 <= len(waits) <= 2


def test_a_server_that_is_not_there_is_an_error_at_the_start():
    with pytest.raises(RewardError, match=r"http://127\.0\.0\.1:1: ConnectionError"):
        reward("http://127.0.0.1:1", retries=1)


def test_the_token_goes_into_a_header(monkeypatch):
    monkeypatch.setenv("LARPO_REWARD_TOKEN", "hush")
    with server(GOOD) as (address, asked):
        reward(address)[0].score_lists(REQUESTS)
    assert asked[0][0]["Authorization"] == "Bearer hush"


@pytest.mark.parametrize("body", [[], {"requests": [{}]}, {"requests": [{"prompt": {"id": 3}, "responses": []}]}])
def test_a_body_that_is_no_request_is_refused(body):
    with pytest.raises(ValueError, match="not a score request"):
        decode_requests(body)


def test_the_reference_server_serves_a_verifier(monkeypatch):
    """Ours on both sides of a real connection, with a token."""
    from aiohttp.test_utils import TestServer

    from actors.reward import RewardActor
    from scripts.serve_reward import application

    monkeypatch.setenv("LARPO_REWARD_TOKEN", "hush")
    actor = RewardActor(RewardSection())

    async def work():
        described = await actor.describe()
        async with TestServer(application(actor, described)) as served:
            address = str(served.make_url("")).rstrip("/")

            def ask():
                section = RewardSection(kind="http", endpoint=Endpoint(addresses=(address,), retries=0))
                right = make_reward_model(section)
                monkeypatch.setenv("LARPO_REWARD_TOKEN", "wrong")
                with pytest.raises(RewardError, match="the token is wrong or missing"):
                    make_reward_model(section)
                return right.score_lists(REQUESTS), right.fingerprint == described.fingerprint

            monkeypatch.setenv("LARPO_REWARD_TOKEN", "hush")
            return await asyncio.to_thread(ask)

    assert asyncio.run(work()) == ([[Reward(1.0), Reward(0.0)], [Reward(1.0)]], True)


def test_what_a_served_model_raises_reaches_the_client():
    from aiohttp.test_utils import TestServer

    from scripts.serve_reward import application

    class Full:
        async def rank(self, requests):
            raise MemoryError("no room for 3 GiB")

        async def close(self):
            pass

    async def work():
        async with TestServer(application(Full(), SimpleNamespace(fingerprint="f", joint=False))) as served:
            endpoint = Endpoint(addresses=(str(served.make_url("")).rstrip("/"),), retries=0)
            model = await asyncio.to_thread(make_reward_model, RewardSection(kind="http", endpoint=endpoint))
            await asyncio.to_thread(model.score_lists, REQUESTS)

    with pytest.raises(RewardError, match="MemoryError: no room for 3 GiB"):
        asyncio.run(work())


def test_the_reference_server_ranks_whole_lists_where_the_model_is_joint(tmp_path, monkeypatch):
    from aiohttp.test_utils import TestServer

    from actors.reward import RewardActor
    from scripts.serve_reward import application

    (tmp_path / "served_ranks.py").write_text("def size(prompt, texts): return [len(texts)] * len(texts)\n")
    monkeypatch.syspath_prepend(tmp_path)
    actor = RewardActor(RewardSection(kind="callable", name="served_ranks:size"))

    async def work():
        async with TestServer(application(actor, await actor.describe())) as served:
            endpoint = Endpoint(addresses=(str(served.make_url("")).rstrip("/"),), retries=0)
            model = await asyncio.to_thread(make_reward_model, RewardSection(kind="http", endpoint=endpoint))
            return model.joint, await asyncio.to_thread(model.score_lists, REQUESTS)

    assert asyncio.run(work()) == (True, [[Reward(2.0), Reward(2.0)], [Reward(1.0)]])
