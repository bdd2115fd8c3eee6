"""Other people's evaluations, `alpaca_eval` and `lm_eval`, run as programs where they are installed.

Each function returns one line that says what came of it. Nothing here raises because a program, a key or its data is
missing: larpo's own numbers do not depend on them.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from larpo.config import Judges

KEYS = ("OPENAI_API_KEY", "OPENAI_CLIENT_CONFIG_PATH", "AZURE_OPENAI_API_KEY")  # one of these: alpaca_eval has a judge
_SCORES = ("length_controlled_winrate", "win_rate")  # columns of its leaderboard


def run_alpaca_eval(outputs: Path, folder: Path, judges: Judges) -> str:
    """Win rates of a file of `larpo.model_outputs` by AlpacaEval's judge, which costs money at its provider.

    Its leaderboard has a row for each model that it knows: ours is told by a name that no other has.
    """
    program = _program("alpaca_eval")
    if program is None:
        return f"alpaca_eval is not installed (pip install alpaca-eval): {outputs} is there for it"
    if not any(os.environ.get(key) for key in KEYS):
        return f"alpaca_eval has no judge: none of {', '.join(KEYS)} is set; {outputs} is there for it"
    name = f"larpo-{uuid.uuid4().hex[:12]}"
    command = [program, "evaluate", "--model_outputs", str(outputs), "--output_path", str(folder), "--name", name]
    command += ["--is_overwrite_leaderboard", "True", "--is_cache_leaderboard", "False"]
    if judges.annotator:
        command += ["--annotators_config", judges.annotator]
    failed = _run(command, judges.timeout_s)
    return failed or f"alpaca_eval: {_scores(folder, name)}"


def run_lm_eval(model: Path, dtype: str, folder: Path, judges: Judges) -> str:
    """Tasks of the language-model evaluation harness on a model folder; its own files go into `folder`."""
    program = _program("lm_eval")
    if program is None:
        return "lm_eval is not installed (pip install lm-eval): none of its tasks ran"
    command = [program, "--model", "hf", "--model_args", f"pretrained={model},dtype={dtype}"]
    command += ["--tasks", ",".join(judges.lm_eval_tasks), "--output_path", str(folder)]
    return _run(command, judges.timeout_s) or f"lm_eval: {', '.join(judges.lm_eval_tasks)} done, results in {folder}"


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


def _scores(folder: Path, name: str) -> str:
    """Those of our model in the newest leaderboard that the program wrote below the folder."""
    files = sorted(folder.rglob("leaderboard.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        return f"done, but no leaderboard.csv is in {folder}"
    with files[-1].open(newline="", encoding="utf-8") as file:
        own = next((row for row in csv.DictReader(file) if name in row.values()), {})
    scores = [f"{column} {own[column]}" for column in _SCORES if own.get(column)]
    return f"{', '.join(scores) or f'no scores of {name}'} ({files[-1]})"
