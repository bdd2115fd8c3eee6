"""Losers that come from other prompts: the easy end of hard negatives (Jin 2025, section 3.2 and Fig. 4a).

By rising hardness: a response to an unrelated prompt (`random`), a response to another prompt of the same task
(`related`), a wrong response to the prompt itself at a high temperature, and one at a low temperature. The last two are
what `sampled` is, at the temperatures of `sampling.temperatures`.
"""

from __future__ import annotations

from collections.abc import Sequence

from larpo.config import Negatives
from larpo.types import Candidate, CandidateList, stable_hash


def with_borrowed(
    lists: Sequence[CandidateList],
    negatives: Negatives,
    *,
    count: int,
    seed: int,
    recent: Sequence[CandidateList] = (),
) -> list[CandidateList]:
    """Each list joined by up to `count` freshly sampled responses of the others and of `recent` lists.

    `sampled` changes nothing.

    Borrowed candidates are `given`: no sampler gave them to this prompt, so they carry no log-probabilities, and no
    reward until the reward model has seen them with it. Which ones is decided by a hash of (seed, list, candidate).
    `larpo.lists.training_list` then leaves the prompt's own losers out; the durable list keeps them.
    """
    if negatives == "sampled":
        return list(lists)
    pool = [*recent, *lists]
    return [
        item.replace(candidates=(*item.candidates, *_borrowed(item, pool, negatives, count, seed))) for item in lists
    ]


def _borrowed(
    item: CandidateList, lists: Sequence[CandidateList], negatives: Negatives, count: int, seed: int
) -> list[Candidate]:
    """Of prompts of the same task, or of every other; one candidate a prompt before a second of any."""
    others = [
        other
        for other in lists
        if other.prompt.id != item.prompt.id and (negatives == "random" or other.prompt.task == item.prompt.task)
    ]
    drawn = []
    for other in others:
        fresh = [candidate for candidate in other.candidates if candidate.origin == "sampled"]
        fresh.sort(key=lambda candidate: stable_hash(seed, item.id, candidate.id))
        drawn += [(turn, stable_hash(seed, item.id, other.id, turn), c) for turn, c in enumerate(fresh)]
    drawn.sort(key=lambda entry: entry[:2])
    return [_as_given(candidate, item) for _, _, candidate in drawn[:count]]


def _as_given(candidate: Candidate, item: CandidateList) -> Candidate:
    return candidate.replace(
        id=f"{item.id}/from/{candidate.id}",
        origin="given",
        log_probs=(),
        versions=(),
        reward=None,
        reward_fingerprint="",
        reference_log_prob=None,
        reference_fingerprint="",
    )
