"""Losers that come from other prompts: the easy end of hard negatives (Jin 2025, section 3.2 and Fig. 4a).

By rising hardness: a response to an unrelated prompt (`random`), a response to another prompt of the same task
(`related`), a wrong response to the prompt itself at a high temperature, and one at a low temperature. The last two are
what `sampled` is, at the temperatures of `sampling.temperatures`. Prompts of most datasets name no task: `related` to
one of these are the prompts without a task that are nearest to it in words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from larpo.config import Negatives
from larpo.types import Candidate, CandidateList, stable_hash

NEAREST_SHARE = 4  # the nearest quarter of the prompts without a task is related


def with_borrowed(
    lists: Sequence[CandidateList],
    negatives: Negatives,
    *,
    count: int,
    seed: int,
    recent: Sequence[CandidateList] = (),
) -> list[CandidateList]:
    """Each list joined by up to `count` freshly sampled responses of the others and of `recent` lists.

    `sampled` changes nothing. The nearest prompts are those of these lists, not of the whole dataset.

    Borrowed candidates are `given`: no sampler gave them to this prompt, so they carry no log-probabilities, and no
    reward until the reward model has seen them with it. Which ones is decided by a hash of (seed, list, candidate).
    `larpo.lists.training_list` then leaves the prompt's own losers out; the durable list keeps them.
    """
    if negatives == "sampled":
        return list(lists)
    pool = [*recent, *lists]
    words = {item.prompt.id: _words(item) for item in pool} if negatives == "related" else {}
    rarity = _rarity(words)
    mixed = []
    for item in lists:
        others = [other for other in pool if other.prompt.id != item.prompt.id]
        if negatives == "related":
            others = [other for other in others if other.prompt.task == item.prompt.task]
            if not item.prompt.task:
                others = _nearest(item, others, words, rarity, seed)
        mixed.append(item.replace(candidates=(*item.candidates, *_borrowed(item, others, count, seed))))
    return mixed


def _words(item: CandidateList) -> frozenset[str]:
    return frozenset(word for message in item.prompt.messages for word in re.findall(r"\w+", message.content.lower()))


def _rarity(words: Mapping[str, frozenset[str]]) -> dict[str, float]:
    """Inverse document frequency of each word among the prompts (Spaerck Jones 1972): 0 for one that all have."""
    counts = Counter(word for of_prompt in words.values() for word in of_prompt)
    return {word: math.log(len(words) / count) for word, count in counts.items()}


def _nearest(
    item: CandidateList,
    others: Sequence[CandidateList],
    words: Mapping[str, frozenset[str]],
    rarity: Mapping[str, float],
    seed: int,
) -> list[CandidateList]:
    """The quarter of the others, one at least, that share most of their words' rarity with the prompt."""
    own = words[item.prompt.id]

    def distance(other: CandidateList) -> tuple[float, int]:
        theirs = words[other.prompt.id]
        shared, whole = (math.fsum(rarity[word] for word in found) for found in (own & theirs, own | theirs))
        return -shared / whole if whole else 0.0, stable_hash(seed, item.id, other.id)

    return sorted(others, key=distance)[: math.ceil(len(others) / NEAREST_SHARE)]


def _borrowed(item: CandidateList, others: Sequence[CandidateList], count: int, seed: int) -> list[Candidate]:
    """One candidate a prompt before a second of any."""
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
