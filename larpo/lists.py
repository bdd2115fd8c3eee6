"""Candidate lists: from ranked responses to what is trained on (Jin 2025, section 3.2 and Appendix H).

`training_list` is the whole way, as a pure function of a durable list: leave out what cannot be trained on,
rank, drop duplicates, select, and say so when nothing is left to learn from. A tie is broken by a hash of
(seed, prompt id, candidate id), never by position, so the order in which candidates arrive changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from larpo.config import Lists, Sampling, Selection
from larpo.errors import DataError
from larpo.hardness import Ngrams, jaccard, word_ngrams
from larpo.objective_table import Uses
from larpo.types import Candidate, CandidateList, stable_hash

CutOff = Literal["as_is", "last", "drop"]


def rank(
    candidates: Sequence[Candidate], *, seed: int, prompt_id: str, cut_off: CutOff = "as_is"
) -> tuple[Candidate, ...]:
    """Best first by reward.

    A response cut at the length limit is ranked as it is, ranked below all others ("last"; among themselves
    by reward) or left out ("drop"). Raises DataError when a candidate has no reward.
    """

    def place(candidate: Candidate) -> tuple[bool, float]:
        return cut_off == "last" and is_cut(candidate), -_reward(candidate)

    def tied(candidate: Candidate) -> tuple[tuple[bool, float], int, str]:
        return place(candidate), stable_hash(seed, prompt_id, candidate.id), candidate.id

    kept = [c for c in candidates if not (cut_off == "drop" and is_cut(c))]
    distinct = len({place(candidate) for candidate in kept}) == len(kept)
    return tuple(sorted(kept, key=place if distinct else tied))


def is_cut(candidate: Candidate) -> bool:
    """Whether the response stopped at the length limit."""
    return candidate.finish_reason == "length"


def _reward(candidate: Candidate) -> float:
    if candidate.reward is None:
        raise DataError(f"candidate {candidate.id!r} has no reward; let the reward model score it before it is ranked")
    return candidate.reward


def training_rewards(candidates: Sequence[Candidate], cut_off: CutOff = "as_is") -> tuple[float, ...]:
    """The rewards that the objectives see, one a candidate, in the order given.

    Objectives know an order by rewards alone. So with "last", where a cut response's reward is not already
    below every other's, all cut responses are lowered by one amount: the best of them comes to lie below the
    least other reward by the list's whole spread of rewards (by 1 where all are equal). Otherwise these are
    the rewards themselves.
    """
    rewards = [_reward(candidate) for candidate in candidates]
    cut = [is_cut(candidate) for candidate in candidates]
    if cut_off != "last" or all(cut) or not any(cut):
        return tuple(rewards)
    least_other = min(r for r, c in zip(rewards, cut, strict=True) if not c)
    best_cut = max(r for r, c in zip(rewards, cut, strict=True) if c)
    if best_cut < least_other:
        return tuple(rewards)
    spread = (max(rewards) - min(rewards)) or 1.0
    return tuple(least_other - spread - (best_cut - r) if c else r for r, c in zip(rewards, cut, strict=True))


def remove_duplicates(candidates: Sequence[Candidate], threshold: float) -> tuple[Candidate, ...]:
    """Keeps the first of candidates that say the same; give them best first.

    The same are: equal ids, equal token ids, equal text but for white space around it, and, with a threshold
    below 1, an overlap (Jaccard of the sets of 3 words in a row) that reaches the threshold. Long responses
    that differ in one number can overlap that much: raise the threshold where that matters.
    """
    kept: list[Candidate] = []
    ids, texts, tokens = set[str](), set[str](), set[tuple[int, ...]]()
    seen: list[Ngrams] = []
    for candidate in candidates:
        text = candidate.text.strip()
        if candidate.id in ids or text in texts or candidate.token_ids in tokens:
            continue
        if threshold < 1.0:
            grams = word_ngrams(candidate.text)
            if any(jaccard(grams, other) >= threshold for other in seen):
                continue
            seen.append(grams)
        ids.add(candidate.id)
        texts.add(text)
        if candidate.token_ids:
            tokens.add(candidate.token_ids)
        kept.append(candidate)
    return tuple(kept)


def select(ranked: Sequence[Candidate], selection: Selection) -> tuple[Candidate, ...]:
    """Those of the ranked candidates that are trained on, best first (Jin 2025, Appendix H).

    Where there are fewer than the policy asks for, winners are taken first, then losers from the bottom of
    what is left: what there is, never a candidate twice. Fewer than two candidates make no list: the result
    is empty.
    """
    if len(ranked) < 2:
        return ()
    if selection.policy in ("best_vs_rest", "all"):
        return tuple(ranked)
    winners, losers = {
        "best_vs_worst": (1, 1),
        "best_vs_bottom": (1, selection.bottom),
        "top_and_bottom": (selection.top, selection.bottom),
    }[selection.policy]
    rest = ranked[winners:]
    return tuple(ranked[:winners]) + tuple(rest[max(0, len(rest) - losers) :])


def signal_lost(distinct: Sequence[Candidate]) -> str | None:
    """Why nothing can be learned from candidates of which no two say the same, or None."""
    if len(distinct) < 2:
        return "fewer than two distinct candidates"
    if len({_reward(candidate) for candidate in distinct}) < 2:
        return "all rewards equal"
    return None


@dataclass(frozen=True)
class Chosen:
    """What is trained on of a durable list, best first, or None and why not; `duplicates` were left out on the way."""

    item: CandidateList | None
    lost: str
    duplicates: int


def training_list(
    full: CandidateList, lists: Lists, sampling: Sampling, *, seed: int, uses: Uses = "order"
) -> tuple[CandidateList | None, str]:
    """What is trained on of a durable list, best first, or (None, why not); see `choose`."""
    chosen = choose(full, lists, sampling, seed=seed, uses=uses)
    return chosen.item, chosen.lost


def choose(full: CandidateList, lists: Lists, sampling: Sampling, *, seed: int, uses: Uses = "order") -> Chosen:
    """The whole way from a durable list to what is trained on.

    `uses` is what the objective reads of a list (`ObjectiveSpec`): one that reads the best response alone gets it,
    and has no need of a second.

    Candidates without token ids are left out: there is nothing to take a log-probability of. With negatives from other
    prompts, so are the prompt's own below the highest reward. The candidates
    returned carry their training reward (`training_rewards`); the durable list keeps the reward model's own.
    """
    ranked = _trainable(full, sampling, seed)
    distinct = remove_duplicates(ranked, lists.near_duplicate)
    duplicates = len(ranked) - len(distinct)
    if lists.negatives != "sampled":
        distinct = tuple(c for c in distinct if c.origin == "given" or c.reward == distinct[0].reward)
    rewards = training_rewards(distinct, sampling.cut_off)
    rewarded = [c if c.reward == r else c.replace(reward=r) for c, r in zip(distinct, rewards, strict=True)]
    if uses == "one":
        best = full.replace(candidates=tuple(rewarded[:1])) if rewarded else None
        return Chosen(best, "" if best else "no candidate", duplicates)
    selected = select(rewarded, lists.selection)
    lost = signal_lost(selected)
    return Chosen(None if lost else full.replace(candidates=selected), lost or "", duplicates)


def _trainable(full: CandidateList, sampling: Sampling, seed: int) -> tuple[Candidate, ...]:
    """What has a log-probability, best first."""
    candidates = [candidate for candidate in full.candidates if candidate.token_ids]
    return rank(candidates, seed=seed, prompt_id=full.prompt.id, cut_off=sampling.cut_off)
