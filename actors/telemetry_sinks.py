"""Where records go beside `metrics.jsonl`: wandb and the Ray dashboard. Secrets go nowhere."""

from __future__ import annotations

import netrc
import os
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from larpo.errors import PhaseTimeout
from larpo.masking import redact_all
from larpo.metrics import METRICS

if TYPE_CHECKING:
    from actors.telemetry import Told


def wandb_mode(env: Mapping[str, str], home: Path) -> str:
    """WANDB_MODE where it is set; else `online` with a key or a netrc login, `offline` without."""
    if env.get("WANDB_MODE"):
        return env["WANDB_MODE"]
    if env.get("WANDB_API_KEY"):
        return "online"
    host = urlparse(env.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    path = Path(env.get("NETRC") or home / ".netrc")
    return "online" if path.is_file() and netrc.netrc(str(path)).authenticators(host) else "offline"


def within(seconds: float, what: str, call: Callable[[], Any]) -> Any:
    """The result of `call`, or PhaseTimeout; a call that took too long goes on in a daemon thread."""
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            box["result"] = call()
        except Exception as error:
            box["error"] = error

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in box:
        raise box["error"]
    if "result" not in box:
        raise PhaseTimeout(
            f"{what} took longer than {seconds:g} s (timeouts.wandb_s); set telemetry.wandb=false to run without it"
        )
    return box["result"]


class WandbSink:
    """A wandb run in `run_dir/wandb`, under the same id after a resume."""

    def __init__(self, config: Told, run_dir: Path) -> None:
        self.mode, self._limit = wandb_mode(os.environ, Path.home()), config.timeouts.wandb_s
        self._run = None
        if self.mode != "disabled":
            self._run = within(self._limit, "wandb.init", lambda: self._start(config, run_dir))

    def _start(self, config: Told, run_dir: Path) -> Any:
        import wandb

        settings = wandb.Settings(
            init_timeout=self._limit / 2,
            finish_timeout=self._limit / 2,
            x_service_wait=self._limit / 2,
            console="off",  # the live view owns the terminal
            silent=True,
            save_code=False,
            disable_git=True,
        )
        run = wandb.init(
            project=config.telemetry.wandb_project,
            name=config.run.name or run_dir.name,
            id=_wandb_id(run_dir / "wandb_id"),
            dir=str(run_dir),
            mode=self.mode,  # type: ignore[arg-type]
            resume=None if self.mode == "offline" else "allow",
            config=redact_all(config.model_dump(mode="json")),
            settings=settings,
        )
        run.define_metric("train/*", step_metric="step")
        run.define_metric("heldout/*", step_metric="iteration")
        run.define_metric("given/*", step_metric="iteration")
        return run

    def log(self, index: int, numbers: Mapping[str, float]) -> None:
        """`index` is the line in metrics.jsonl: it grows over resumes, as wandb demands of a step."""
        if self._run is not None and numbers:
            self._run.log(dict(numbers), step=index)

    def show(self, index: int, figures: Mapping[str, str], table: Sequence[Sequence[Any]]) -> None:
        """A report's figures as HTML, and its sample lists: rows, the header first."""
        import wandb

        if self._run is None:
            return
        header, *rows = table
        shown: dict[str, Any] = {f"report/{name}": wandb.Html(html) for name, html in figures.items()}
        if rows:
            shown["report/sample_lists"] = wandb.Table(columns=list(header), data=redact_all(rows))
        run = self._run
        within(self._limit, "wandb.log of the report", lambda: run.log(shown, step=index))

    def close(self) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            within(self._limit, "wandb.finish", run.finish)


def _wandb_id(path: Path) -> str:
    """The id that the file holds; a new one is written first."""
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()


class RaySink:
    """Every metric in the Ray dashboard, as `larpo_GROUP_NOUN`, tagged with the run's name and the metric's labels."""

    def __init__(self, run_name: str) -> None:
        self._run = run_name
        self._instruments: dict[str, Any] = {}

    def log(self, numbers: Mapping[str, float], fields: Mapping[str, Any]) -> None:
        """`fields` hold the labels. Without an initialised Ray there is no dashboard, and nothing is sent."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            self._instruments.clear()
            return
        for name, value in numbers.items():
            self._send(name, value, fields)

    def _send(self, name: str, value: float, fields: Mapping[str, Any]) -> None:
        from ray.util.metrics import Counter, Gauge

        metric = METRICS[name]
        make = Gauge if metric.kind == "gauge" else Counter
        tags = {"run": self._run, **{label: str(fields[label]) for label in metric.labels}}
        if name not in self._instruments:
            text = f"{metric.description} ({metric.unit})"
            self._instruments[name] = make("larpo_" + name.replace("/", "_"), text, tag_keys=tuple(tags))
        if metric.kind == "gauge":
            self._instruments[name].set(value, tags=tags)
        elif value > 0:  # Ray refuses an increment of zero
            self._instruments[name].inc(value, tags=tags)
