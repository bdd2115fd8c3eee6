"""Tokens in the environment of a real run are nowhere in what it writes: run folder, wandb, Ray's logs, console."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from larpo.errors import DataError
from scripts.command import exit_code
from tests.toy_runs import Runs, check_exactly_once

PLANTED = {
    "HF_TOKEN": "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",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefplanted0",
    "LARPO_REWARD_TOKEN": "planted-reward-token-4711",
    "AWS_SECRET_ACCESS_KEY": "plantedAwsSecret/4711",
}


@contextmanager
def reward_server(token: str):
    """Rewards the length of a response, of those who show the token; gives its address, and what it saw and does.

    When `breaks_after` requests were scored, it answers the others with an error that repeats the token, until it is
    `well` again.
    """
    state = SimpleNamespace(logins=set(), scored=0, breaks_after=5, well=False, broke=0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"fingerprint": "by-length"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if state.scored >= state.breaks_after and not state.well:
                state.broke += 1
                return self._answer({"error": f"the model is gone; I know {token} well"}, 500)
            state.scored += 1
            rewards = [[float(len(text)) for text in asked["responses"]] for asked in body["requests"]]
            self._answer({"fingerprint": "by-length", "rewards": rewards})

        def _answer(self, reply: dict, status: int = 200) -> None:
            state.logins.add(self.headers.get("Authorization", ""))
            text = json.dumps(reply).encode()
            self.send_response(status if self.headers.get("Authorization") == f"Bearer {token}" else 401)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", state
    finally:
        server.shutdown()
        server.server_close()


def holding(folder: Path, values: dict[str, str]) -> list[str]:
    """Files below a folder that hold one of the values, as bytes; a file is named with what it holds."""
    found = []
    for file in (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        content = file.read_bytes()
        found += [f"{file.relative_to(folder)}: {name}" for name, value in values.items() if value.encode() in content]
    return found


def test_the_search_finds_what_is_there(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "log").write_bytes(b"\0\xff" + PLANTED["HF_TOKEN"].encode())
    assert holding(tmp_path, PLANTED) == ["x/log: HF_TOKEN"]


def test_an_error_message_does_not_repeat_a_secret(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", PLANTED["HF_TOKEN"])

    def work() -> int:
        raise DataError(f"401 for https://me:word@hub.test with {PLANTED['HF_TOKEN']}")

    assert exit_code(work) == 2
    assert capsys.readouterr().err == "error: 401 for https://[login]@hub.test with [HF_TOKEN]\n"


def test_nor_does_the_traceback_of_an_error_that_nobody_foresaw(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", PLANTED["HF_TOKEN"])

    def work() -> int:
        raise RuntimeError(f"401 with {PLANTED['HF_TOKEN']}")

    assert exit_code(work) == 1
    said = capsys.readouterr().err
    assert "in work" in said
    assert said.endswith("RuntimeError: 401 with [HF_TOKEN]\n")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_that_fails_costs_no_list_and_planted_tokens_are_nowhere_in_what_a_run_writes(
    tmp_path, tiny_policy, monkeypatch
):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    runs = Runs(tmp_path, tiny_policy)
    overrides = ["training.iterations=1", "training.epochs=1", "telemetry.wandb=true", "reward.kind=http"]
    with reward_server(PLANTED["LARPO_REWARD_TOKEN"]) as (address, server):
        overrides += [f"reward.endpoint.addresses=['{address}']", "reward.endpoint.backoff_s=0.1"]
        assert runs.new("stream", *overrides).wait(400) == 1, runs.log()
        assert server.broke > 1, "it was not asked again"
        assert "the model is gone; I know [LARPO_REWARD_TOKEN] well" in runs.log(), runs.log()
        assert (tmp_path / "log.txt").read_text().count("error: ") == 1, runs.log()
        assert f"go on with: python -m scripts.align --resume {runs.run_dir}" in runs.log(), runs.log()
        server.well = True
        assert runs.start("--resume", str(runs.run_dir)).wait(400) == 0, runs.log()
    check_exactly_once(runs.run_dir, counts=(12,), epochs=1)
    assert server.logins == {f"Bearer {PLANTED['LARPO_REWARD_TOKEN']}"}  # the token was used
    wandb = [path for path in runs.run_dir.rglob("*.wandb") if path.stat().st_size]
    assert wandb, list(runs.run_dir.rglob("*"))
    session = Path(runs._ray)
    logs = [path for path in session.rglob("*.out") if path.is_file()]
    assert logs, list(session.iterdir())
    files = sum(path.is_file() for folder in (tmp_path, session) for path in folder.rglob("*"))
    print(f"{files} files were searched")
    assert holding(tmp_path, PLANTED) == []
    assert holding(session, PLANTED) == []
    assert not [name for name in PLANTED if PLANTED[name] in runs.log()]
