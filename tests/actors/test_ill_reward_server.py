"""A run whose reward comes from a server that falls ill: it ends with that cause, and is resumed later."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from larpo.records import read_lists
from tests.toy_runs import check_exactly_once


class RewardServer:
    """On loopback; it answers 503 while it `is_ill`, and keeps the ids of the prompts that it was asked for."""

    def __init__(self) -> None:
        self.is_ill, self.asked = False, []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def score(self, requests: list[dict]) -> list[list[float]]:
        self.asked += [request["prompt"]["id"] for request in requests]
        return [[self.reward(text) for text in request["responses"]] for request in requests]

    @staticmethod
    def reward(text: str) -> float:
        """As `tests.toy_runs` has it, so that responses differ."""
        return sum(ord(letter) < 128 for letter in text) / (1 + len(text)) + 1e-3 * len(set(text))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(server: RewardServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer({"fingerprint": "toy"})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["requests"]
            if server.is_ill:
                self.answer({"error": "out of order"}, 503)
            else:
                self.answer({"fingerprint": "toy", "rewards": server.score(asked)})

        def answer(self, found: dict, status: int = 200) -> None:
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


@contextmanager
def reward_server():
    server = RewardServer()
    try:
        yield server
    finally:
        server.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_that_fails_ends_the_run_and_costs_no_list(runs):
    """The lists on disk stay as they are: nothing of them is sampled or ranked again."""
    with reward_server() as server:
        knobs = ("reward.kind=http", f"reward.endpoint.addresses=[{server.address}]")
        driver = runs.new("stream", *knobs, "reward.endpoint.retries=1", "reward.endpoint.backoff_s=0.1")
        runs.until(lambda: runs.records("step"), driver)
        server.is_ill = True
        assert driver.wait(300) == 1, runs.log()
        said = runs.log()
        (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert error.startswith("error: EndpointError: the reward server gave no answer in 2 attempts")
        assert error.count(f"{server.address}: ValueError: status 503: ") == 2
        assert "out of order" in error
        assert f"--resume {runs.run_dir}" in said
        assert not runs.records("done")
        runs.until_gone()
        kept = {path: path.read_bytes() for path in (runs.run_dir / "lists").rglob("part-*.parquet")}
        there = {item.prompt.id for item in read_lists(runs.run_dir / "lists")}
        assert there

        server.is_ill, server.asked = False, []
        assert runs.start("--resume", str(runs.run_dir)).wait(600) == 0, runs.log()
        assert {path: path.read_bytes() for path in kept} == kept
        assert there.isdisjoint(server.asked)
    check_exactly_once(runs.run_dir)
    assert {c.reward_fingerprint for item in read_lists(runs.run_dir / "lists") for c in item.candidates} == {"toy"}
    assert runs.records("done")
