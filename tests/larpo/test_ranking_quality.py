"""nDCG, reciprocal rank and tau by hand."""

from itertools import permutations
from math import log2

import pytest

from larpo.errors import DataError
from larpo.ranking_quality import dense_ranks, lists_to_rank, ranking_quality


def test_a_list_by_hand():
    # By score the candidates stand as rewards 0.2, 0.9, -1.0, 0.2: gains 1, 2, 0, 1.
    found = ranking_quality([([5.0, 4.0, 3.0, 2.0], [0.2, 0.9, -1.0, 0.2])])
    earned = 1 / log2(2) + 2 / log2(3) + 0 / log2(4) + 1 / log2(5)
    best = 2 / log2(2) + 1 / log2(3) + 1 / log2(4) + 0 / log2(5)
    assert found["ndcg"] == pytest.approx([earned / best], abs=1e-6)
    assert found["rr"] == pytest.approx([1 / 2])
    # Of 6 pairs one is tied in reward; (1,3) (2,3) (2,4) agree, (1,2) (3,4) disagree.
    assert found["tau"] == pytest.approx([(3 - 2) / (6 * 5) ** 0.5])


def test_the_best_and_the_worst_order():
    rewards = [3.0, 2.0, 1.0, 0.0]
    found = ranking_quality([([4, 3, 2, 1], rewards), ([1, 2, 3, 4], rewards)])
    assert found["ndcg"][0] == pytest.approx(1.0)
    assert found["rr"].tolist() == [1.0, 1 / 4]
    assert found["tau"].tolist() == pytest.approx([1.0, -1.0])


def test_the_order_of_candidates_and_the_scale_of_scores_change_nothing():
    scores, rewards = [-1000.25, -1000.5, -7.0, -900.0], [0.5, -3.0, 0.5, 9.0]
    expected = ranking_quality([(scores, rewards)])
    for order in permutations(range(4)):
        moved = ranking_quality([([1e-6 * scores[i] for i in order], [rewards[i] for i in order])])
        for name, values in expected.items():
            assert moved[name] == pytest.approx(values)


def test_equal_scores_earn_nothing():
    found = ranking_quality([([1.0, 1.0, 1.0], [1.0, 0.0, 0.5])])
    assert found["tau"].tolist() == [0.0]
    assert found["rr"].tolist() == pytest.approx([1 / 3])
    assert found["ndcg"] == ranking_quality([([1.0, 3.0, 2.0], [1.0, 0.0, 0.5])])["ndcg"]


def test_many_lists_keep_their_places():
    lists = [([2.0, 1.0], [float(number % 2), 0.5]) for number in range(30)]
    assert ranking_quality(lists)["rr"].tolist() == [0.5, 1.0] * 15


def test_a_list_of_one_reward_has_no_order():
    with pytest.raises(DataError, match="list 1 has candidates of one reward only"):
        ranking_quality([([1.0, 2.0], [0.0, 1.0]), ([1.0, 2.0], [0.5, 0.5])])


def test_dense_ranks():
    assert dense_ranks([-1.0, 7.5, -1.0, 0.0]) == [0, 2, 0, 1]


def test_lists_to_rank_are_distinct_samples_of_one_temperature_with_two_rewards(make_list):
    full = make_list(0, lengths=(5, 4, 3, 2), rewards=(1.0, 0.0, 0.0, 1.0))
    best, same, low, warm = full.candidates
    copy = same.replace(token_ids=best.token_ids, text=best.text)
    greedy = low.replace(id="greedy", temperature=0.0)
    item = full.replace(candidates=(greedy, best, copy, low, warm.replace(temperature=1.5)))
    flat = full.replace(candidates=(best, warm))
    (found,) = lists_to_rank([item, flat], 1.0, 3)
    assert [c.id for c in found.candidates] == [best.id, low.id]
    assert lists_to_rank([item], 1.0, 1) == []
