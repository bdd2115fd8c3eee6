"""From preferences to candidate lists that the trainer takes: tokens by the policy's own tokenizer and template.

The candidates have the origin `given`: no sampler made them, so they have no log-probabilities of one, and no weight
version. Their reward is the dataset's score.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from larpo.chat import encode_answer, encode_prompt, special_ids
from larpo.errors import DataError
from larpo.preferences import Preference
from larpo.types import Candidate, CandidateList, list_id

FINGERPRINT = "dataset"  # of what gave the rewards
_AMISS = "answers, tokenized behind their prompt, are not as the chat template renders the conversation"


@dataclass(frozen=True)
class GivenList:
    """A preference with the token ids of its prompt and answers, in compact arrays."""

    preference: Preference
    prompt_token_ids: array[int]
    response_token_ids: tuple[array[int], ...]

    @property
    def tokens(self) -> int:
        return len(self.prompt_token_ids) + sum(len(ids) for ids in self.response_token_ids)


@dataclass(frozen=True)
class Encoder:
    """How preferences become token ids: the policy's tokenizer, what ends an answer, and the longest sequence."""

    tokenizer: Any
    end: int  # token that ends an answer
    system: str | None
    require_template: bool
    limit: int  # tokens of a prompt with one answer

    def encode(self, preferences: Sequence[Preference]) -> tuple[tuple[GivenList, ...], Counter[str]]:
        """The lists that can be trained on, in order, and how many were left out, or are worth a note, and why."""
        kept, notes = [], Counter[str]()
        special = special_ids(self.tokenizer)
        for preference in preferences:
            given, as_rendered = self._one(preference)
            longest = len(given.prompt_token_ids) + max(len(ids) for ids in given.response_token_ids)
            if longest > self.limit:
                notes[f"lists left out: a prompt with an answer of more than {self.limit} tokens"] += 1
            elif any(not special.isdisjoint(ids[:-1]) for ids in given.response_token_ids):
                notes["lists left out: an answer that holds special tokens of the policy's tokenizer"] += 1
            else:
                kept.append(given)
                notes[_AMISS] += len(as_rendered) - sum(as_rendered)
        return tuple(kept), +notes

    def _one(self, preference: Preference) -> tuple[GivenList, list[bool]]:
        prompt = preference.prompt
        ids = encode_prompt(self.tokenizer, prompt, system=self.system, require_template=self.require_template)
        answers = [
            encode_answer(self.tokenizer, prompt, ids, text, self.end, system=self.system)
            for text in preference.responses
        ]
        arrays = tuple(array("i", answer) for answer, _ in answers)
        return GivenList(preference, array("i", ids), arrays), [same for _, same in answers]


def candidate_list(given: GivenList) -> CandidateList:
    """The list as every list is: on disk, in the stream, before the trainer."""
    preference, key = given.preference, list_id(0, given.preference.prompt.id)
    answers = zip(preference.responses, preference.rewards, given.response_token_ids, strict=True)
    candidates = tuple(
        Candidate(
            id=f"{key}/{number}",
            text=text,
            token_ids=tuple(ids),
            log_probs=(),
            finish_reason="stop",
            temperature=0.0,
            origin="given",
            iteration=0,
            versions=(),
            reward=reward,
            reward_fingerprint=FINGERPRINT,
        )
        for number, (text, reward, ids) in enumerate(answers)
    )
    return CandidateList(key, 0, preference.prompt, tuple(given.prompt_token_ids), candidates)


def check_some(given: Sequence[GivenList], notes: Counter[str], what: str) -> None:
    """DataError when nothing is left to train on, with what was left out and why."""
    if not given:
        reasons = "; ".join(f"{count} {reason}" for reason, count in notes.items())
        raise DataError(f"no {what} list is left: {reasons}; raise training.row_tokens, or give other answers")
