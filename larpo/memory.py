"""Memorization: responses of earlier iterations join the lists of later ones (Jin 2025, 3.2 and Table 4).

What is remembered is what the durable lists hold: nothing else is stored. Three modes tell how far back an
iteration looks: `current` not at all, `current_and_previous` one iteration, `current_and_all_previous` to the
start. The age of a candidate is counted from the iteration that sampled it, however often it was replayed
since.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from larpo.lists import rank
from larpo.types import Candidate, CandidateList, list_id, stable_hash

Mode = Literal["current", "current_and_previous", "current_and_all_previous"]


def is_remembered(candidate: Candidate, mode: Mode, iteration: int, max_age: int | None = None) -> bool:
    """Whether a candidate of an earlier iteration is young enough for a list of `iteration`."""
    reach = {"current": 0, "current_and_previous": 1, "current_and_all_previous": iteration}[mode]
    if max_age is not None:
        reach = min(reach, max_age)
    return iteration - reach <= candidate.iteration < iteration


def remember(
    lists: Iterable[CandidateList], mode: Mode, iteration: int, *, seed: int, max_age: int | None = None
) -> dict[str, CandidateList]:
    """What `iteration` remembers: by prompt id, one list of `iteration` a prompt, ready to be replayed.

    `lists` are the durable lists, in any order, read once; those of `iteration` and later are passed over, so
    that a resumed iteration remembers what it did at first. A candidate in several lists is taken from the
    newest, where its reward and reference log-probability are the newest. Prompts with nothing remembered are
    left out.
    """
    newest: dict[str, CandidateList] = {}
    found: dict[str, dict[str, tuple[int, Candidate]]] = {}
    for entry in lists:
        young = [c for c in entry.candidates if is_remembered(c, mode, iteration, max_age)]
        if entry.iteration >= iteration or not young:
            continue
        prompt = entry.prompt.id
        if prompt not in newest or newest[prompt].iteration < entry.iteration:
            newest[prompt] = entry.replace(candidates=())
        by_id = found.setdefault(prompt, {})
        for candidate in young:
            if candidate.id not in by_id or by_id[candidate.id][0] < entry.iteration:
                by_id[candidate.id] = entry.iteration, candidate
    return {
        prompt: _remembered_list(newest[prompt], [c for _, c in by_id.values()], iteration, seed)
        for prompt, by_id in found.items()
    }


def _remembered_list(newest: CandidateList, candidates: list[Candidate], iteration: int, seed: int) -> CandidateList:
    prompt = newest.prompt.id
    ranked = rank([as_remembered(c) for c in candidates], seed=seed, prompt_id=prompt)
    return newest.replace(id=list_id(iteration, prompt), iteration=iteration, candidates=ranked)


def replays(
    remembered: Mapping[str, CandidateList], drawn: Collection[str], iteration: int, *, seed: int
) -> list[CandidateList]:
    """Of what is remembered (`remember`), the lists of prompts that `iteration` did not draw.

    In the order of a hash of (seed, iteration, prompt id): the same after a restart, another in each
    iteration.
    """
    drawn_ids = set(drawn)
    absent = [prompt for prompt in remembered if prompt not in drawn_ids]
    absent.sort(key=lambda prompt: (stable_hash(seed, iteration, prompt), prompt))
    return [remembered[prompt] for prompt in absent]


def join(current: CandidateList, remembered: Sequence[Candidate]) -> CandidateList:
    """The list joined by what is remembered of its prompt (`remember`), each candidate once, not ranked yet.

    The list's own version of a candidate wins over a remembered one of the same id. Near duplicates stay here
    and are dropped by `larpo.lists.training_list`: this list is durable.
    """
    by_id = {c.id: c for c in [*(as_remembered(c) for c in remembered), *current.candidates]}
    return current.replace(candidates=tuple(by_id.values()))


def with_references(item: CandidateList, references: Mapping[str, tuple[float, str]]) -> CandidateList:
    """The list with the reference log-probabilities that are known by candidate id, each with its fingerprint."""

    def known(candidate: Candidate) -> Candidate:
        value = references.get(candidate.id)
        if value is None:
            return candidate
        return candidate.replace(reference_log_prob=value[0], reference_fingerprint=value[1])

    return item.replace(candidates=tuple(known(candidate) for candidate in item.candidates))


def as_remembered(candidate: Candidate) -> Candidate:
    """A sampled candidate becomes a remembered one; a given one (a reference answer) stays given."""
    return candidate.replace(origin="remembered") if candidate.origin == "sampled" else candidate


def unscored(
    item: CandidateList, fingerprint: str, *, joint: bool = False, rescore: bool = True
) -> tuple[Candidate, ...]:
    """The candidates that must be scored, in the order of their ids; `fingerprint` is the reward model's.

    Those without a reward and, with `rescore`, those whose reward another model gave. A joint model's rewards compare
    within one list only: with `rescore` they are all of a list's or none, so that a list that memory has changed is
    ranked again as a whole. Without `rescore` a remembered candidate keeps the reward of the list it was ranked in,
    and the others are ranked among themselves.
    """
    candidates = sorted(item.candidates, key=lambda c: c.id)
    wanted = reward_fingerprint(candidates, fingerprint, joint=joint)
    open_ = [c for c in candidates if c.reward is None or (rescore and c.reward_fingerprint != wanted)]
    return tuple(candidates if joint and rescore and open_ else open_)


def reward_fingerprint(together: Sequence[Candidate], fingerprint: str, *, joint: bool) -> str:
    """What gives candidates that are scored together their rewards: the model and, where it is joint, their texts."""
    if not joint:
        return fingerprint
    return f"{fingerprint}/{stable_hash(*(c.text for c in together)):016x}"
