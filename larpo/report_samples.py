"""The sample lists of a report: a few of each iteration's first part, drawn by a hash of their ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from larpo.errors import DataError
from larpo.records import list_parts, read_lists
from larpo.report_page import details, heading, missing, note, quote, table
from larpo.types import Candidate, CandidateList, stable_hash

_MAX_TEXT = 2000  # characters of a response or a turn that are shown


def sample_lists(folder: Path, samples: int) -> list[str]:
    """As parts of a page."""
    iterations = _iterations(folder)
    if not iterations:
        return [missing("No candidate lists are on disk (lists/iteration-*/part-*.parquet).")]
    parts = [note(f"Up to {samples} lists from the first part of each iteration, candidates best first.")]
    for iteration in iterations:
        try:
            chosen = _chosen(folder, iteration, samples)
        except DataError as error:
            parts.append(missing(str(error)))
            continue
        inner = "\n".join(_one_list(entry) for entry in chosen)
        parts.append(details(f"Iteration {iteration + 1}", inner, opened=iteration == iterations[-1]))
    return parts


def sample_table(folder: Path, samples: int) -> list[list[Any]]:
    """As rows, one a candidate, the header first; parts that are damaged are left out, as the report says."""
    rows: list[list[Any]] = [["iteration", "prompt", "text", "place", "reward", "response", "where from", "tokens"]]
    for iteration in _iterations(folder):
        try:
            chosen = _chosen(folder, iteration, samples)
        except DataError:
            continue
        for entry in chosen:
            asked = "\n".join(_cut(message.content) for message in entry.prompt.messages)
            rows += [
                [iteration + 1, entry.prompt.id, asked, place, c.reward, _cut(c.text), _how(c), len(c.token_ids)]
                for place, c in enumerate(entry.candidates, start=1)
            ]
    return rows


def _iterations(folder: Path) -> list[int]:
    return sorted({int(path.parent.name.removeprefix("iteration-")) for path in list_parts(folder)})


def _chosen(folder: Path, iteration: int, samples: int) -> list[CandidateList]:
    first = list_parts(folder, iteration)[0]
    return sorted(read_lists(first), key=lambda entry: stable_hash(entry.id))[:samples]


def _one_list(entry: CandidateList) -> str:
    turns = "\n".join(quote(message.role, _cut(message.content)) for message in entry.prompt.messages)
    rows = [
        [_number(candidate.reward), _cut(candidate.text), _how(candidate), str(len(candidate.token_ids))]
        for candidate in entry.candidates
    ]
    task = f" ({entry.prompt.task})" if entry.prompt.task else ""
    return (
        heading(f"Prompt {entry.prompt.id}{task}")
        + turns
        + table(["reward", "response", "where from", "tokens"], rows, (1, 2))
    )


def _number(reward: float | None) -> str:
    return "-" if reward is None else format(reward, ".3f")


def _how(candidate: Candidate) -> str:
    """`iteration 2, T=1` and what is unusual about the candidate."""
    if candidate.origin == "given" and not candidate.log_probs:
        return "given"
    notes: list[str] = [] if candidate.origin == "sampled" else [candidate.origin]
    notes += ["cut off"] if candidate.finish_reason == "length" else []
    return ", ".join([f"iteration {candidate.iteration + 1}", f"T={candidate.temperature:g}", *notes])


def _cut(text: str) -> str:
    rest = len(text) - _MAX_TEXT
    return text if rest <= 0 else f"{text[:_MAX_TEXT]} [... {rest:,} more characters]"
