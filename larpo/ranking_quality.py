"""How well a policy's own scores rank a list: nDCG, reciprocal rank and Kendall's tau against the rewards.

The gain of a candidate is the dense rank of its reward in the list, 0 for the least: raw rewards can be negative, and
their scale means nothing. Of candidates with equal scores the worse is taken to stand first, so that a policy that
cannot tell candidates apart earns nothing by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from larpo.errors import DataError
from larpo.lists import remove_duplicates, signal_lost
from larpo.types import CandidateList

Floats = NDArray[np.float64]
RankedList = tuple[Sequence[float] | Floats, Sequence[float]]  # scores and rewards of a list's candidates


def ranking_quality(lists: Sequence[RankedList]) -> dict[str, Floats]:
    """`ndcg`, `rr` and `tau` of each of L lists, [L].

    - ndcg: `sum gain / log2(1 + rank)` over its value in the best order (Jarvelin & Kekalainen 2002), over the whole
      list, gains as they are; by ir-measures.
    - rr: 1 / rank of the first candidate with the list's highest reward; its mean is MRR; by ir-measures.
    - tau: Kendall's tau-b of scores and rewards, from -1 to 1, 0 for chance and where all scores are equal; by scipy.

    Raises DataError for a list whose rewards are all equal: there is no order to recover.

    >>> {name: values.round(4).tolist() for name, values in ranking_quality([([3, 2, 1], [0.5, 1.0, -1.0])]).items()}
    {'ndcg': [0.8597], 'rr': [0.5], 'tau': [0.3333]}
    """
    import ir_measures
    from ir_measures import RR, Qrel, ScoredDoc, nDCG
    from scipy.stats import kendalltau

    gains = [dense_ranks(rewards) for _, rewards in lists]
    flat = [number for number, of_list in enumerate(gains) if max(of_list, default=0) == 0]
    if flat:
        raise DataError(f"list {flat[0]} has candidates of one reward only: leave such lists out")
    run, graded, best = [], [], []
    for number, ((scores, _), of_list) in enumerate(zip(lists, gains, strict=True)):
        for place, index in enumerate(_order(scores, of_list)):
            names = str(number), str(index)
            run.append(ScoredDoc(*names, float(-place)))
            graded.append(Qrel(*names, of_list[index]))
            best.append(Qrel(*names, int(of_list[index] == max(of_list))))
    tau = [float(np.nan_to_num(kendalltau(scores, rewards).statistic)) for scores, rewards in lists]
    by_list = {}
    for name, measure, judged in (("ndcg", nDCG, graded), ("rr", RR, best)):
        found = {metric.query_id: metric.value for metric in ir_measures.iter_calc([measure], judged, run)}
        by_list[name] = np.array([found[str(number)] for number in range(len(lists))])
    return {**by_list, "tau": np.array(tau)}


def lists_to_rank(lists: Iterable[CandidateList], temperature: float, size: int) -> list[CandidateList]:
    """Of each list the first `size` distinct responses sampled at that temperature; those of one reward left out."""
    found = []
    for item in lists:
        sampled = [c for c in item.candidates if c.temperature == temperature and c.token_ids]
        candidates = remove_duplicates(sampled, 1.0)[:size]
        if signal_lost(candidates) is None:
            found.append(item.replace(candidates=candidates))
    return found


def dense_ranks(rewards: Sequence[float]) -> list[int]:
    """0 for the least reward, equal rewards alike, without gaps.

    >>> dense_ranks([0.5, -3.0, 0.5, 7.0])
    [1, 0, 1, 2]
    """
    rank = {reward: number for number, reward in enumerate(sorted(set(rewards)))}
    return [rank[reward] for reward in rewards]


def _order(scores: Sequence[float] | Floats, gains: Sequence[int]) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: (-scores[index], gains[index]))
