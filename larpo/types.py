"""The types that everything speaks: prompts, candidates and candidate lists.

Frozen, standard library only. `larpo.records` gives each its Arrow schema, so that a list on disk is the same record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Origin = Literal["sampled", "remembered", "given"]
FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what its verifier needs.

    `id` is unique within a run; `task` names the verifier's task; `answer_key` is JSON-like data that only the
    verifier reads (a gold answer, a constraint list).
    """

    id: str
    messages: tuple[Message, ...]
    task: str = ""
    answer_key: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VersionSpan:
    """Tokens [start, end) of a response were sampled under weight version `version`."""

    start: int
    end: int
    version: int


@dataclass(frozen=True)
class Candidate:
    """One response to a prompt.

    `token_ids` are the sampled ids, the end-of-turn token included where it was emitted; `log_probs` are the sampler's
    raw log-probabilities of them, before temperature. `reward` and `reference_log_prob` carry the fingerprint of what
    gave them, so that a remembered candidate is scored again only when that changed.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason
    temperature: float
    origin: Origin
    iteration: int
    versions: tuple[VersionSpan, ...]
    reward: float | None = None
    reward_fingerprint: str = ""
    reference_log_prob: float | None = None
    reference_fingerprint: str = ""

    def replace(self, **changes: Any) -> Candidate:
        """As `dataclasses.replace`, which takes twice the time: it is done for every candidate, several times."""
        return Candidate(**{**vars(self), **changes})


@dataclass(frozen=True)
class CandidateList:
    """A prompt's candidates in one iteration, best first; `prompt_token_ids` are what the sampler was given.

    `publication`: how often new weights had been published within the iteration when the prompt was asked for; negative
    for one that was asked for before (`larpo.staleness`).
    """

    id: str
    iteration: int
    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    publication: int = 0

    @property
    def is_fresh(self) -> bool:
        """Whether a candidate of it was sampled in its own iteration, and is not remembered."""
        return any(candidate.origin == "sampled" for candidate in self.candidates)

    def replace(self, **changes: Any) -> CandidateList:
        return CandidateList(**{**vars(self), **changes})


def list_id(iteration: int, prompt_id: str) -> str:
    """Id of the one list that a prompt has in an iteration."""
    return f"{iteration:04d}/{prompt_id}"


def stable_hash(*parts: object) -> int:
    """A hash that is the same in every process and on every machine (Python's own is salted)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
