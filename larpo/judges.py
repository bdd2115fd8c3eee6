"""Other people's evaluations, `alpaca_eval` and `lm_eval`, run as programs where they are installed.

Each function returns one line that says what came of it, and a line of success is kept beside the program's files: who
asks for the same again gets it, for judges cost money and tasks hours. Nothing here raises because a program, a key or
its data is missing: larpo's own numbers do not depend on them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from larpo.config import Judges
from larpo.policy import PreparedPolicy

KEYS = ("OPENAI_API_KEY", "OPENAI_API_KEYS", "OPENAI_CLIENT_CONFIG_PATH", "AZURE_OPENAI_API_KEY")  # one is enough
_KEPT = "larpo.json"  # what was asked, and the line that came of it
_SCORES = ("length_controlled_winrate", "win_rate")  # columns of its leaderboard


def run_alpaca_eval(outputs: Path, folder: Path, judges: Judges) -> str:
    """Win rates of a file of `larpo.model_outputs` by AlpacaEval's judge, which costs money at its provider.

    The judge that it takes by itself is OpenAI's, and nothing is started without a key for it. What another annotator
    needs, a key of its provider's or a model here, alpaca_eval knows, and its last words say what is missing. Its
    leaderboard has a row for each model that it knows: ours is told by a name that no other has.
    """
    asked = {"outputs": hashlib.sha256(outputs.read_bytes()).hexdigest(), "annotator": judges.annotator}
    if known := _kept(folder, asked):
        return known
    program = _program("alpaca_eval")
    if program is None:
        return f"alpaca_eval is not installed (pip install alpaca-eval): {outputs} is there for it"
    if judges.annotator is None and not any(os.environ.get(key) for key in KEYS):
        return (
            f"alpaca_eval's own judge is OpenAI's, and none of {', '.join(KEYS)} is set; set one, or name another judge"
            f" in evaluation.judges.annotator; {outputs} is there for it"
        )
    name = f"larpo-{uuid.uuid4().hex[:12]}"
    command = [program, "evaluate", "--model_outputs", str(outputs), "--output_path", str(folder), "--name", name]
    command += ["--is_overwrite_leaderboard", "True", "--is_cache_leaderboard", "False"]
    if judges.annotator:
        command += ["--annotators_config", judges.annotator]
    if failed := _run(command, judges.timeout_s):
        return f"{failed} (evaluation.judges.annotator = {judges.annotator}; {outputs} is there for it)"
    scores, file = _scores(folder, name)
    if not scores:
        return f"alpaca_eval: done, but {file or f'no leaderboard.csv in {folder}'} has no scores of {name}"
    return _keep(folder, asked, f"alpaca_eval: {scores} ({file})")


def run_lm_eval(model: PreparedPolicy, dtype: str, folder: Path, judges: Judges, *, has_template: bool) -> str:
    """Tasks of the language-model evaluation harness on a model folder; its own files go into `folder`.

    Its prompts are put into the model's chat template where it has one, as larpo's own are.
    """
    tasks = list(judges.lm_eval_tasks)
    asked = {"model": model.fingerprint, "dtype": dtype, "tasks": tasks, "chat_template": has_template}
    if known := _kept(folder, asked):
        return known
    program = _program("lm_eval")
    if program is None:
        return "lm_eval is not installed (pip install lm-eval): none of its tasks ran"
    trusted = ",trust_remote_code=True" if model.knobs.trust_remote_code else ""  # the model's code, no data set's
    command = [program, "--model", "hf", "--model_args", f"pretrained={model.path},dtype={dtype}{trusted}"]
    command += ["--tasks", ",".join(tasks), "--output_path", str(folder)]
    command += ["--apply_chat_template"] if has_template else []
    if failed := _run(command, judges.timeout_s):
        return failed
    form = "the model's chat template" if has_template else "plain text, for the model has no chat template"
    return _keep(folder, asked, f"lm_eval: {', '.join(tasks)} done in {form}, results in {folder}")


def _kept(folder: Path, asked: Mapping[str, Any]) -> str | None:
    """The line that came of the same before."""
    file = folder / _KEPT
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return f"{kept['line']} (from before)" if kept.get("asked") == asked else None


def _keep(folder: Path, asked: Mapping[str, Any], line: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{_KEPT}.partial"
    partial.write_text(json.dumps({"asked": asked, "line": line}, indent=1), encoding="utf-8")
    partial.rename(folder / _KEPT)
    return line


def _program(name: str) -> str | None:
    """Where it is: beside this Python, or on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _run(command: Sequence[str], limit_s: float) -> str:
    """Empty when the program ended well, else why it did not, with its last words."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"{name} was stopped after {limit_s:g} s (evaluation.judges.timeout_s)"
    except OSError as error:
        return f"{name} could not be started: {error}"
    if done.returncode == 0:
        return ""
    words = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return f"{name} ended with exit code {done.returncode}: {' | '.join(words[-3:]) or 'it said nothing'}"


def _scores(folder: Path, name: str) -> tuple[str, Path | None]:
    """Those of our model in the newest leaderboard that the program wrote below the folder, and that file."""
    files = sorted(folder.rglob("leaderboard.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        return "", None
    with files[-1].open(newline="", encoding="utf-8") as file:
        own = next((row for row in csv.DictReader(file) if name in row.values()), {})
    return ", ".join(f"{column} {own[column]}" for column in _SCORES if own.get(column)), files[-1]
