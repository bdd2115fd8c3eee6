"""Candidate lists as other tools read them: preference pairs and ranked lists, in the conversational form of TRL.

A row has the prompt that its list has: `scripts.lists` puts the recipe's system turn before it, under which the policy
answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from larpo.errors import DataError
from larpo.types import Candidate, CandidateList

Row = dict[str, Any]


def preference_rows(item: CandidateList, *, all_pairs: bool = False) -> Iterator[Row]:
    """`prompt`, `chosen` and `rejected` as lists of messages, and both rewards.

    The best against the worst, or every pair whose rewards differ; nothing from a list whose rewards are all equal.
    The candidates stand best first, as in every list on disk.
    """
    ranked = item.candidates
    pairs = [(a, b) for n, a in enumerate(ranked) for b in ranked[n + 1 :]] if all_pairs else [(ranked[0], ranked[-1])]
    for winner, loser in pairs:
        if _reward(winner) > _reward(loser):
            yield {
                "prompt": _messages(item),
                "chosen": [_answer(winner)],
                "rejected": [_answer(loser)],
                "chosen_reward": _reward(winner),
                "rejected_reward": _reward(loser),
                "id": f"{winner.id} > {loser.id}",
            }


def ranked_row(item: CandidateList) -> Row:
    """`prompt` as messages, `responses` best first, and their `rewards`."""
    return {
        "prompt": _messages(item),
        "responses": [candidate.text for candidate in item.candidates],
        "rewards": [_reward(candidate) for candidate in item.candidates],
        "id": item.id,
    }


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """As JSON lines or Parquet, by the ending of the name.

    Raises:
        DataError: nothing to write, another ending, or a file that is there already.
    """
    import datasets

    if path.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"{path} has the ending {path.suffix!r}; choose .jsonl or .parquet")
    if path.exists():
        raise DataError(f"{path} exists already; remove it, or give another name")
    if not rows:
        raise DataError(f"no row for {path}: the lists chosen hold no two responses with different rewards")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(list(rows))
    if path.suffix == ".jsonl":
        table.to_json(path)
    else:
        table.to_parquet(path)


def _messages(item: CandidateList) -> list[Row]:
    return [{"role": message.role, "content": message.content} for message in item.prompt.messages]


def _answer(candidate: Candidate) -> Row:
    return {"role": "assistant", "content": candidate.text}


def _reward(candidate: Candidate) -> float:
    if candidate.reward is None:
        raise DataError(f"candidate {candidate.id!r} has no reward: only ranked lists can be exported")
    return candidate.reward
