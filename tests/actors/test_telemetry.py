"""Telemetry: strict records that survive kills, sinks that never end a run, no secrets."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.console import RunState
from actors.telemetry import Telemetry, plain_number
from actors.telemetry_sinks import RaySink, wandb_mode, within
from larpo.config import Config
from larpo.errors import DataError, LarpoError, PhaseTimeout, StorageError
from larpo.masking import redact

QUIET = Config.model_validate({"telemetry": {"wandb": False, "console": "plain"}})
WITH_WANDB = Config.model_validate({"telemetry": {"wandb": True, "console": "plain"}, "run": {"name": "w"}})


def opened(run_dir: Path, *, resume: bool = False, config: Config = QUIET) -> tuple[Telemetry, io.StringIO]:
    stream = io.StringIO()
    return Telemetry(config, run_dir, resume=resume, stream=stream), stream


def records(run_dir: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not strict JSON")

    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def test_a_record_has_time_event_fields_and_metrics(tmp_path: Path) -> None:
    before = time.time()
    with opened(tmp_path)[0] as telemetry:
        telemetry.log("step", {"train/loss": 1.5, "train/lists": 16}, step=3, iteration=0, epoch=0)
        telemetry.log("done", {"heldout/reward_after": 0.3})
    start, step, done = records(tmp_path)
    assert (start["event"], start["resumed"]) == ("start", False)
    assert before <= step.pop("time") <= time.time()
    assert step == {"event": "step", "step": 3, "iteration": 0, "epoch": 0, "train/loss": 1.5, "train/lists": 16}
    assert done["event"] == "done"


def test_every_line_is_there_at_once_and_strict_json(tmp_path: Path) -> None:
    telemetry, _ = opened(tmp_path)
    bad = {"train/loss": float("nan"), "train/grad_norm": float("inf"), "train/entropy": np.float32("-inf")}
    telemetry.log("step", bad, step=1, iteration=0, epoch=0)
    telemetry.log("weights", {"weights/version": np.int64(4)}, shards=[{"seconds": float("nan")}, (1, 2)], ok=True)
    step, weights = records(tmp_path)[1:]  # not closed yet
    assert [step[name] for name in bad] == [None, None, None]
    assert (weights["weights/version"], weights["shards"], weights["ok"]) == (4, [{"seconds": None}, [1, 2]], True)
    telemetry.close()


def test_undeclared_names_and_fields_in_the_way_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path)[0] as telemetry:
        with pytest.raises(LarpoError, match="nearest: 'train/loss'"):
            telemetry.log("step", {"train/lose": 1.0}, step=1, iteration=0, epoch=0)
        with pytest.raises(LarpoError, match="lacks the field 'epoch'"):
            telemetry.log("step", {"train/loss": 1.0}, step=1, iteration=0)
        with pytest.raises(LarpoError, match="field 'time'"):
            telemetry.log("weights", {}, time=3)
    assert len(records(tmp_path)) == 1


def test_alarms_and_failures_are_counted_and_a_failure_has_a_kind(tmp_path: Path) -> None:
    with opened(tmp_path)[0] as telemetry:
        telemetry.log("failure", actor="sampler-3", reason="killed by signal 9")
        telemetry.log("failure", actor="sampler-3", reason="no answer", kind="lease")
        telemetry.log("alarm", message="gap 0.2 above 0.1")
    *failures, alarm = records(tmp_path)[1:]
    assert [(record["kind"], record["run/failures"]) for record in failures] == [("sampler", 1), ("lease", 1)]
    assert alarm["run/alarms"] == 1


def test_plain_numbers() -> None:
    values = (3, True, 2.5, np.int32(4), np.float64(0.5), torch.tensor(1.5), float("inf"))
    plain = [plain_number(value) for value in values]
    assert plain == [3, 1, 2.5, 4, 0.5, 1.5, None]
    assert [type(value) for value in plain[:5]] == [int, int, float, int, float]


def test_another_runs_file_is_refused_and_a_torn_line_is_cut(tmp_path: Path) -> None:
    opened(tmp_path)[0].close()
    with pytest.raises(DataError, match="--resume"):
        opened(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1.0, "event": "st')
    with opened(tmp_path, resume=True)[0] as telemetry:
        telemetry.log("weights", {"weights/version": 1})
    assert [(r["event"], r.get("resumed")) for r in records(tmp_path)] == [
        ("start", False), ("start", True), ("weights", None),
    ]  # fmt: skip


def test_lines_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    telemetry, _ = opened(tmp_path)

    def work(actor: int) -> None:
        for i in range(50):
            telemetry.log("span", actor=f"sampler-{actor}", kind="sample", start=i, end=i + 1)

    threads = [threading.Thread(target=work, args=(actor,)) for actor in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    telemetry.close()
    assert len(records(tmp_path)) == 1 + 8 * 50


def test_alarms_failures_states_and_lines_reach_the_console(tmp_path: Path) -> None:
    telemetry, stream = opened(tmp_path)
    telemetry.update(RunState(phase="sampling"))
    telemetry.log("alarm", message="gap 0.2 above 0.1")
    telemetry.log("failure", actor="sampler-1", reason="killed by signal 9")
    telemetry.say("results are in runs/x")
    telemetry.close()
    telemetry.close()
    lines = stream.getvalue().splitlines()
    assert "sampling" in lines[0]
    assert lines[1:] == [
        "alarm: gap 0.2 above 0.1",
        "failure of sampler-1: killed by signal 9",
        "results are in runs/x",
    ]


def test_secrets_never_reach_file_or_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws/verysecret2")
    telemetry, stream = opened(tmp_path)
    reason = "401 for hf_verysecret1 at https://me:pass@host/x with aws/verysecret2"
    telemetry.log("failure", actor="sampler-0", reason=reason, trace=[{"line": reason}])
    telemetry.say(reason)
    telemetry.close()
    for text in (stream.getvalue(), (tmp_path / "metrics.jsonl").read_text()):
        assert "verysecret" not in text
        assert "me:pass" not in text
        assert "401 for [HF_TOKEN] at https://[login]@host/x with [AWS_SECRET_ACCESS_KEY]" in text


def test_a_view_that_fails_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("the metrics agent is gone")

    monkeypatch.setattr("actors.telemetry.RaySink.log", fails)
    telemetry, _ = opened(tmp_path)
    telemetry.log("step", {"train/loss": 1.0}, step=1, iteration=0, epoch=0)
    telemetry.close()
    assert records(tmp_path)[-1]["train/loss"] == 1.0


def test_redact_leaves_the_rest_alone() -> None:
    env = {"HF_TOKEN": "x", "PATH": "/usr/bin:/bin", "TOKENIZERS_PARALLELISM": "falsefalse", "API_KEY": "12345678"}
    text = "x /usr/bin:/bin falsefalse 12345678"
    assert redact(text, env) == "x /usr/bin:/bin falsefalse [API_KEY]"


def test_wandb_mode(tmp_path: Path) -> None:
    assert wandb_mode({}, tmp_path) == "offline"
    assert wandb_mode({"WANDB_API_KEY": "k"}, tmp_path) == "online"
    assert wandb_mode({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, tmp_path) == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password p\n")
    assert wandb_mode({}, tmp_path) == "online"
    assert wandb_mode({"WANDB_BASE_URL": "https://wandb.other.org"}, tmp_path) == "offline"


def holds(path: Path, text: bytes, within_s: float) -> bool:
    """wandb's service writes its file a moment after `finish` returned, more on a busy machine."""
    deadline = time.monotonic() + within_s
    while text not in path.read_bytes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_wandb_runs_offline_and_goes_on_under_the_same_id(tmp_path: Path) -> None:
    ids = []
    for resume in (False, True):
        telemetry, stream = opened(tmp_path, resume=resume, config=WITH_WANDB)
        telemetry.log("step", {"train/loss": 1.0, "train/grad_norm": float("nan")}, step=1, iteration=0, epoch=0)
        telemetry.close()
        assert "wandb is offline" in stream.getvalue()
        assert "alarm" not in stream.getvalue()
        ids.append((tmp_path / "wandb_id").read_text().strip())
    assert ids[0] == ids[1]
    logs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(logs) == 2
    for log in logs:
        assert ids[0] in log.name  # wandb adds -1 when both began in the same second
        assert holds(log / f"run-{ids[0]}.wandb", b"train/loss", within_s=60)
    assert [record["event"] for record in records(tmp_path)] == ["start", "step", "start", "step"]


def test_a_failing_wandb_is_one_alarm_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        mode = "online"

        def __init__(self, *_: object) -> None: ...

        def log(self, *_: object) -> None:
            raise ConnectionError("no route")

    monkeypatch.setattr("actors.telemetry.WandbSink", Broken)
    telemetry, stream = opened(tmp_path, config=WITH_WANDB)
    for step in (1, 2, 3):
        telemetry.log("step", {"train/loss": 1.0}, step=step, iteration=0, epoch=0)
    telemetry.close()
    events = [record["event"] for record in records(tmp_path)]
    assert events == ["start", "step", "alarm", "step", "step"]
    assert "wandb failed to log (ConnectionError: no route)" in stream.getvalue()


def test_a_wandb_that_fails_to_finish_leaves_done_the_last_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("disk")

    sink = types.SimpleNamespace(mode="online", log=lambda *_: None, show=lambda *_: None, close=fail)
    monkeypatch.setattr("actors.telemetry.WandbSink", lambda *_: sink)
    telemetry, stream = opened(tmp_path, config=WITH_WANDB)
    telemetry.log("done")
    telemetry.close()
    assert records(tmp_path)[-1]["event"] == "done"
    assert "wandb failed to finish (OSError: disk)" in stream.getvalue()


def test_a_wandb_that_hangs_is_left_behind() -> None:
    with pytest.raises(PhaseTimeout, match=r"wandb\.init took longer than 0\.05 s"):
        within(0.05, "wandb.init", lambda: time.sleep(1))
    assert within(5.0, "x", lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5.0, "x", lambda: 1 / 0)


def test_ray_gets_gauges_and_counters_only_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, str, float, dict[str, str]]] = []

    def instrument(verb: str) -> Any:
        def make(name: str, text: str, tag_keys: tuple[str, ...]) -> Any:
            assert text
            assert tag_keys == (("run", "sampler") if "_sampler_" in name else ("run",))
            return types.SimpleNamespace(**{verb: lambda value, tags: sent.append((verb, name, value, tags))})

        return make

    running = [False]
    fake = types.SimpleNamespace(is_initialized=lambda: running[0])
    metrics = types.SimpleNamespace(Gauge=instrument("set"), Counter=instrument("inc"))
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.util", types.SimpleNamespace(metrics=metrics))
    monkeypatch.setitem(sys.modules, "ray.util.metrics", metrics)
    sink = RaySink("run-1")
    sink.log({"train/loss": 1.0}, {})
    assert sent == []
    running[0] = True
    sink.log({"train/loss": 2.0, "train/tokens": 512, "train/bad_steps": 0}, {"step": 3})
    sink.log({"sampler/tokens": 40}, {"sampler": "sampler-7"})
    assert sent == [
        ("set", "larpo_train_loss", 2.0, {"run": "run-1"}),
        ("inc", "larpo_train_tokens", 512, {"run": "run-1"}),
        ("inc", "larpo_sampler_tokens", 40, {"run": "run-1", "sampler": "sampler-7"}),
    ]


def test_a_full_disk_is_not_hidden(tmp_path: Path) -> None:
    telemetry, _ = opened(tmp_path)
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    telemetry._file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(StorageError, match=r"metrics\.jsonl could not be written: .*No space left .*; free disk space"):
        telemetry.log("weights", {"weights/version": 1})
