"""What a recipe must not hold, of whatever kind it is: secrets, and paths that climb out; and what it may, but told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from larpo.knobs import Section
from larpo.masking import redact

PATHS = ("run.output_dir", "prompts.source", "preferences.source")
TRUST = "trust_remote_code"


def safety_problems(config: Section) -> list[str]:
    """One line a problem; a secret itself is never repeated."""
    knobs = dict(_leaves(config.model_dump(mode="json")))
    problems = [
        f"{key} = {redact(value)!r}: holds a secret; secrets come from the environment (HF_TOKEN, WANDB_API_KEY,"
        " LARPO_REWARD_TOKEN), never from a recipe, which is written into the run folder; take it out"
        for key, value in knobs.items()
        if isinstance(value, str) and redact(value) != value
    ]
    return problems + [
        f"{key} = {value!r}: climbs out with `..` of the folder that the run is started in, and in a submitted job out"
        " of Ray's copy of it; give an absolute path, or one below"
        for key in PATHS
        if isinstance(value := knobs.get(key), str) and ".." in PurePosixPath(value).parts
    ]


def code_notes(config: Section) -> tuple[str, ...]:
    """What has to be printed before it happens: sections whose models may bring Python code that is run."""
    return tuple(
        f"{key} = True: Python code in that model's folder is run, and may do whatever this user may"
        for key, value in _leaves(config.model_dump(mode="json"))
        if value is True and key.rpartition(".")[2] == TRUST
    )


def _leaves(values: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted key, those of lists by their number."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _leaves(value, f"{above}.{key}" if above else str(key))
    else:
        yield above, values
