"""How hard the losers of a list are (ours; Jin 2025, section 3.2 and Fig. 4a, goes by temperature only).

A loser is hard when its reward or its score is close to the winner's, or its words are. A winner is a
candidate of the highest reward, a loser one of strictly lower reward; every number is a mean over all pairs
of a winner and a loser, so it depends neither on the order of the candidates nor on how a tie was broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

from larpo.errors import DataError
from larpo.types import Candidate

Ngrams = frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class Hardness:
    """Means: `reward_gap`, winner's reward minus a loser's; `overlap`, of their words' 3-grams, in [0, 1]."""

    reward_gap: float
    overlap: float


@lru_cache(256)  # a list asks for its responses several times; not more, for a long one has many
def word_ngrams(text: str, n: int = 3) -> Ngrams:
    """The distinct runs of n words, split at white space, case kept; a shorter text is one run."""
    words = text.split()
    if len(words) < n:
        return frozenset([tuple(words)] if words else [])
    return frozenset(zip(*(words[start:] for start in range(n)), strict=False))


def jaccard(a: Ngrams, b: Ngrams) -> float:
    """Shared n-grams over all n-grams, in [0, 1]; two empty texts are the same text, 1.

    Jaccard and not containment: a short answer that a long response quotes is another response.
    """
    if not a and not b:
        return 1.0
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def hardness(candidates: Sequence[Candidate]) -> Hardness:
    """Reward gap and overlap between winners and losers of one list.

    Raises DataError when all rewards are equal (there is no loser) or a candidate has none.
    """
    rewards = [candidate.reward for candidate in candidates if candidate.reward is not None]
    if len(rewards) < len(candidates):
        raise DataError(f"only {len(rewards)} of {len(candidates)} candidates have a reward; score the list first")
    winners, losers = _sides(rewards)
    grams = [word_ngrams(candidate.text) for candidate in candidates]
    overlaps = [jaccard(grams[w], grams[loser]) for w in winners for loser in losers]
    return Hardness(score_gap(rewards, rewards), fmean(overlaps))


def score_gap(scores: Sequence[float], rewards: Sequence[float]) -> float:
    """Mean over pairs of a winner's score minus a loser's: scores [M], rewards [M] -> one number.

    In the scores' unit. Positive: the policy already prefers the winner. Raises DataError when all rewards
    are equal.

    >>> score_gap([2.0, 1.0, 0.0], [1.0, 0.5, 0.5])
    1.5
    """
    if len(scores) != len(rewards):
        raise ValueError(f"{len(scores)} scores for {len(rewards)} rewards; give one score a candidate")
    winners, losers = _sides(rewards)
    return fmean(scores[i] for i in winners) - fmean(scores[i] for i in losers)


def _sides(rewards: Sequence[float]) -> tuple[list[int], list[int]]:
    """Positions of the winners and of the losers."""
    best = max(rewards, default=0.0)
    winners = [i for i, reward in enumerate(rewards) if reward == best]
    losers = [i for i, reward in enumerate(rewards) if reward < best]
    if not losers:
        raise DataError(f"none of {len(rewards)} rewards is below the best one; drop lists without signal first")
    return winners, losers
