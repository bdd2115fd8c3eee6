"""What wandb was given, read back from what it writes offline: a log in LevelDB's format, of wandb's records."""

from __future__ import annotations

import io
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.telemetry import Telemetry
from larpo.config import Config
from larpo.evaluation import HeldoutResult, summary
from larpo.records import write_part

CONFIG = Config.model_validate(
    {
        "telemetry": {"wandb": True, "console": "plain", "report_samples": 1},
        "run": {"name": "w"},
        "training": {"iterations": 7},
    }
)
BLOCK, HEADER = 32768, 7  # of LevelDB's log, and of each of its pieces; the file begins with as many bytes


def pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type (1 whole, 2 first, 3 middle, 4 last) and bytes of each piece."""
    at = HEADER
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        yield kind, data[at + HEADER : at + HEADER + length]
        at += HEADER + length


def records(file: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    found, held = [], b""
    for kind, piece in pieces(file.read_bytes()):
        held = piece if kind in (1, 2) else held + piece
        if kind in (1, 4):
            found.append(Record.FromString(held))
    return found


def ended(file: Path, within_s: float = 60.0) -> list[Any]:
    """The records of a file that wandb's service, a process of its own, may still be writing."""
    deadline = time.monotonic() + within_s
    while True:
        found = records(file)
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < deadline, "wandb wrote no end"
        time.sleep(0.05)


def history(found: list[Any]) -> dict[str, list[Any]]:
    """Everything logged, by name, in order; what has parts by name and part, as in `report/loss:path`."""
    told: dict[str, list[Any]] = {}
    for record in found:
        for item in record.history.item:
            told.setdefault(item.key or ":".join(item.nested_key), []).append(json.loads(item.value_json))
    return told


@pytest.fixture(scope="module")
def files(tmp_path_factory, make_list) -> list[Path]:
    """wandb's files of a run that was resumed."""
    folder = tmp_path_factory.mktemp("run")
    write_part(folder / "lists", [make_list(0, (4, 2), rewards=[1.0, 0.25])], 0, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        for session in (0, 1):
            with Telemetry(CONFIG, folder, resume=session > 0, stream=io.StringIO()) as telemetry:
                for step in (1, 2, 3):
                    metrics = {"train/loss": 1.5 / (step + 3 * session), "train/grad_norm": 2.0}
                    telemetry.log("step", metrics, step=step + 3 * session, iteration=session, epoch=0)
                result = HeldoutResult("base", ("p0",), ((0.5,),), (1.0,), ((3,),), 0.0)
                telemetry.log("evaluation", summary(result), label=f"iteration {session}", iteration=session)
                telemetry.log("sampler", {"sampler/tokens": 12.0}, sampler="sampler-0")
                telemetry.log("done", {"heldout/reward_after": 0.75})
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime)


def test_a_resumed_run_has_the_same_id_and_its_steps_go_on(files) -> None:
    first, second = (ended(file) for file in files)
    ids = {record.run.run_id for record in (*first, *second) if record.WhichOneof("record_type") == "run"}
    assert ids == {(files[0].parents[2] / "wandb_id").read_text().strip()}
    assert max(history(first)["_step"]) < min(history(second)["_step"])
    assert history(first)["step"] + history(second)["step"] == [1, 2, 3, 4, 5, 6]


def test_the_configuration_is_there(files) -> None:
    (run,) = [r.run for r in ended(files[0]) if r.WhichOneof("record_type") == "run"][:1]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["training"]["iterations"] == 7
    assert config["run"]["name"] == "w"


def test_metrics_are_there_by_step_and_by_iteration(files) -> None:
    found = ended(files[1])
    told = history(found)
    assert told["train/loss"] == [1.5 / step for step in (4, 5, 6)]
    assert told["heldout/reward"] == [0.5]
    assert told["heldout/reward_after"] == [0.75]
    assert "sampler/tokens" not in told  # of every sampler: to Ray's metrics and the file
    axes = {r.metric.glob_name: r.metric.step_metric for r in found if r.WhichOneof("record_type") == "metric"}
    assert (axes["train/*"], axes["heldout/*"]) == ("step", "iteration")


def test_the_reports_plots_and_the_table_of_sample_lists_are_there(files) -> None:
    for file in files:
        told, media = history(ended(file)), file.parent / "files"
        assert told["report/loss:_type"] == ["html-file"]
        assert "data:image/svg+xml" in (media / told["report/loss:path"][0]).read_text()
        assert "report/staleness:path" not in told  # no record has any
        shown = json.loads((media / told["report/sample_lists:path"][0]).read_text())
        assert shown["columns"][:5] == ["iteration", "prompt", "text", "place", "reward"]
        assert [row[:5] for row in shown["data"]] == [
            [1, "p0", "question 0", 1, 1.0],
            [1, "p0", "question 0", 2, 0.25],
        ]
