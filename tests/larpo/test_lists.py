"""From ranked responses to training lists, and how hard the losers are."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from larpo.config import Lists, Sampling, Selection
from larpo.errors import DataError
from larpo.hardness import Hardness, hardness, jaccard, score_gap, word_ngrams
from larpo.lists import rank, remove_duplicates, select, signal_lost, training_list, training_rewards
from larpo.types import Candidate, CandidateList, Prompt


def candidate(id, reward=0.0, text=None, finish="stop", tokens=None):
    tokens = tuple(ord(c) for c in id) if tokens is None else tokens
    text = f"text {id}" if text is None else text
    return Candidate(
        id,
        text,
        tokens,
        (0.0,) * len(tokens),
        finish,
        1.0,
        "sampled",
        0,
        (),
        reward=reward,
        reward_fingerprint="f",
    )


def ids(candidates):
    return "".join(c.id for c in candidates)


def ranked_ids(candidates, **options):
    return ids(rank(candidates, **{"seed": 0, "prompt_id": "p", **options}))


# ---- rank


def test_best_first():
    assert ranked_ids([candidate("a", 1.0), candidate("b", -3.0), candidate("c", 2.5)]) == "cab"


def test_ties_do_not_depend_on_position_but_on_seed_and_prompt():
    tied = [candidate(name, 1.0) for name in "abcdefgh"]
    orders = {ranked_ids(random.Random(i).sample(tied, 8)) for i in range(20)}
    assert len(orders) == 1
    assert len({ranked_ids(tied, seed=seed) for seed in range(10)}) > 1
    assert len({ranked_ids(tied, prompt_id=str(prompt)) for prompt in range(10)}) > 1


@pytest.mark.parametrize(("cut_off", "order"), [("as_is", "cabd"), ("last", "bdca"), ("drop", "bd")])
def test_responses_cut_at_the_limit(cut_off, order):
    cut = [candidate("a", 3.0, finish="length"), candidate("c", 4.0, finish="length")]
    assert ranked_ids([*cut, candidate("b", 2.0), candidate("d", 1.0)], cut_off=cut_off) == order


def test_rank_needs_rewards():
    with pytest.raises(DataError, match="'a' has no reward"):
        ranked_ids([candidate("a", None)])


# ---- training_rewards


@pytest.mark.parametrize(
    ("rewards", "cut", "expected"),
    [
        ([1.0, 0.0], [], [1.0, 0.0]),  # nothing cut
        ([1.0, 0.0], [0, 1], [1.0, 0.0]),  # all cut
        ([1.0, 0.0], [1], [1.0, 0.0]),  # already below
        ([1.0, 0.0], [0], [0.0 - (1.0 - 0.0), 0.0]),
        ([0.5, 0.5], [0], [0.5 - 1.0, 0.5]),  # all equal: by 1
        ([4.0, 2.0, 1.0, 3.0], [0, 1], [1.0 - 3.0, 1.0 - 3.0 - 2.0, 1.0, 3.0]),
    ],
)
def test_training_rewards_by_hand(rewards, cut, expected):
    candidates = [
        candidate(str(i), reward, finish="length" if i in cut else "stop") for i, reward in enumerate(rewards)
    ]
    assert training_rewards(candidates, "last") == tuple(expected)
    assert training_rewards(candidates, "as_is") == tuple(rewards)


quarters = st.integers(-40, 40).map(lambda n: n / 4)


@given(st.lists(st.tuples(quarters, st.booleans()), min_size=1, max_size=8))
def test_training_rewards_say_the_same_order_as_rank(drawn):
    candidates = [candidate(str(i), r, finish="length" if cut else "stop") for i, (r, cut) in enumerate(drawn)]
    ranked = rank(candidates, seed=1, prompt_id="p", cut_off="last")
    rewards = training_rewards(ranked, "last")
    assert list(rewards) == sorted(rewards, reverse=True)
    for (a, x), (b, y) in pairwise(zip(ranked, rewards, strict=True)):
        same_side = a.finish_reason == b.finish_reason
        assert (x == y) == (same_side and a.reward == b.reward)


# ---- duplicates


def test_exact_copies_keep_the_first():
    copies = [
        candidate("a", text="yes "),
        candidate("b", text=" yes"),
        candidate("c", text="no"),
        candidate("d", text="other words", tokens=(ord("c"),)),
        candidate("a", text="same id"),
    ]
    assert ids(remove_duplicates(copies, 1.0)) == "ac"


def test_near_copies_by_shared_runs_of_three_words():
    long = "a b c d e f"  # 4 runs of three words
    near = "a b c d e g"  # 3 of them shared, 5 in all
    texts = [candidate("x", text=long), candidate("y", text=near)]
    assert jaccard(word_ngrams(long), word_ngrams(near)) == 3 / 5
    assert ids(remove_duplicates(texts, 3 / 5)) == "x"
    assert ids(remove_duplicates(texts, 0.61)) == "xy"


def test_a_threshold_of_one_drops_exact_copies_only():
    repeated = [candidate("x", text="a a a a"), candidate("y", text="a a a a a")]
    assert ids(remove_duplicates(repeated, 1.0)) == "xy"
    assert ids(remove_duplicates(repeated, 0.99)) == "x"


@pytest.mark.parametrize(("a", "b", "overlap"), [("", "", 1), ("", "a", 0), ("a b", "a b", 1), ("A b", "a b", 0)])
def test_overlap_of_short_texts(a, b, overlap):
    assert jaccard(word_ngrams(a), word_ngrams(b)) == overlap


words = st.lists(st.sampled_from("abc"), max_size=8).map(" ".join)


@given(st.lists(words, max_size=6), st.floats(0.1, 1.0))
def test_what_is_kept_is_distinct_and_what_is_dropped_is_not(texts, threshold):
    candidates = [candidate(str(i), text=text) for i, text in enumerate(texts)]
    kept = remove_duplicates(candidates, threshold)
    assert remove_duplicates(kept, threshold) == kept
    assert kept[:1] == tuple(candidates[:1])
    assert all(len(remove_duplicates([*kept, c], threshold)) == len(kept) for c in candidates)


# ---- select


@pytest.mark.parametrize(
    ("policy", "sizes", "ranked", "chosen"),
    [
        ("best_vs_worst", (2, 2), "abcdef", "af"),
        ("best_vs_rest", (2, 2), "abcdef", "abcdef"),
        ("best_vs_bottom", (2, 3), "abcdef", "adef"),
        ("top_and_bottom", (2, 2), "abcdef", "abef"),
        ("top_and_bottom", (1, 3), "abcdef", "adef"),
        ("all", (2, 2), "abcdef", "abcdef"),
        # too few: winners first, then the bottom of the rest, none twice
        ("best_vs_bottom", (2, 3), "abc", "abc"),
        ("top_and_bottom", (2, 2), "abc", "abc"),
        ("top_and_bottom", (2, 2), "ab", "ab"),
        ("top_and_bottom", (4, 1), "abc", "abc"),
        # fewer than two make no list
        ("best_vs_worst", (2, 2), "a", ""),
        ("all", (2, 2), "a", ""),
        ("top_and_bottom", (2, 2), "", ""),
    ],
)
def test_selection(policy, sizes, ranked, chosen):
    selection = Selection(policy=policy, top=sizes[0], bottom=sizes[1])
    assert ids(select([candidate(name) for name in ranked], selection)) == chosen


@given(st.integers(0, 12), st.integers(1, 5), st.integers(1, 5))
def test_selection_keeps_order_and_takes_none_twice(count, top, bottom):
    ranked = [candidate(chr(97 + i)) for i in range(count)]
    chosen = ids(select(ranked, Selection(top=top, bottom=bottom)))
    assert chosen == "".join(sorted(set(chosen)))
    assert len(chosen) == (0 if count < 2 else min(count, top + bottom))


# ---- signal and the whole way


def test_signal_lost():
    assert signal_lost([]) == "fewer than two distinct candidates"
    assert signal_lost([candidate("a", 0.0)]) == "fewer than two distinct candidates"
    assert signal_lost([candidate("a", 1.0), candidate("b", 1.0)]) == "all rewards equal"
    assert signal_lost([candidate("a", 1.0), candidate("b", 0.0)]) is None


def full_list(*candidates):
    return CandidateList("0000/p", 0, Prompt("p", ()), (1, 2), candidates)


def trained(full, *, lists=None, cut_off="as_is", seed=0):
    return training_list(full, lists or Lists(), Sampling(cut_off=cut_off), seed=seed)


def test_the_whole_way():
    full = full_list(
        candidate("c", 0.2), candidate("a", 0.9), candidate("f", -1.0), candidate("e", 0.0),
        candidate("b", 0.5), candidate("d", 0.1), candidate("g", -2.0, tokens=()),
        candidate("h", 0.85, text=" text a "),
    )  # fmt: skip
    chosen, reason = trained(full)
    assert (ids(chosen.candidates), reason) == ("abef", "")
    assert [c.reward for c in chosen.candidates] == [0.9, 0.5, 0.0, -1.0]
    assert (chosen.id, chosen.prompt_token_ids) == (full.id, full.prompt_token_ids)


def test_training_rewards_replace_those_of_cut_responses_and_the_full_list_keeps_its_own():
    full = full_list(candidate("a", 1.0, finish="length"), candidate("b", 1.0), candidate("c", 0.0))
    chosen, _ = trained(full, cut_off="last")
    assert [(c.id, c.reward) for c in chosen.candidates] == [("b", 1.0), ("c", 0.0), ("a", -1.0)]
    assert full.candidates[0].reward == 1.0


def test_a_reason_where_nothing_is_left_to_learn_from():
    assert trained(full_list(candidate("a", 1.0), candidate("b", 1.0))) == (None, "all rewards equal")
    too_few = (None, "fewer than two distinct candidates")
    assert trained(full_list(candidate("a", 1.0), candidate("b", 0.0, tokens=()))) == too_few
    assert trained(full_list(candidate("a", 1.0), candidate("b", 0.0, finish="length")), cut_off="drop") == too_few
    assert trained(full_list()) == too_few


@given(
    st.permutations(
        [candidate(name, reward) for name, reward in zip("abcdefgh", [0, 1, 1, 0, 0, 1, 0, 0.5], strict=True)]
    )
)
def test_the_order_of_arrival_changes_nothing(shuffled):
    assert trained(full_list(*shuffled)) == trained(full_list(*sorted(shuffled, key=lambda c: c.id)))


# ---- hardness


def test_hardness_by_hand():
    winner, near, far = "a b c d", "a b c e", "x y z"  # 2, 2 and 1 runs of three words; near shares 1 of 3
    found = hardness([candidate("w", 1.0, winner), candidate("n", 0.5, near), candidate("f", -0.5, far)])
    assert found == Hardness(reward_gap=(0.5 + 1.5) / 2, overlap=(1 / 3 + 0) / 2)


def test_score_gap_by_hand():
    assert score_gap([2.0, 1.0, 0.0], [1.0, 0.5, 0.5]) == ((2 - 1) + (2 - 0)) / 2
    assert score_gap([0.0, 3.0], [1.0, 0.0]) == -3.0
    assert score_gap([1.0, 5.0, 2.0], [1.0, 1.0, 0.0]) == ((1 - 2) + (5 - 2)) / 2  # two winners


@given(st.permutations([(2.0, 1.0), (1.0, 0.5), (4.0, 0.5), (0.0, 1.0)]))
def test_gaps_do_not_depend_on_order(pairs):
    scores, rewards = zip(*pairs, strict=True)
    assert score_gap(scores, rewards) == -1.5


def test_hardness_needs_a_loser_and_rewards():
    with pytest.raises(DataError, match="none of 2 rewards"):
        hardness([candidate("a", 1.0), candidate("b", 1.0)])
    with pytest.raises(DataError, match="only 1 of 2"):
        hardness([candidate("a", 1.0), candidate("b", None)])
    with pytest.raises(ValueError, match="1 scores for 2 rewards"):
        score_gap([1.0], [1.0, 0.0])


# ---- objectives that read one response


def test_an_objective_that_reads_the_best_response_alone_needs_no_second():
    def trained(*candidates):
        full = CandidateList("0000/p", 0, Prompt("p", ()), (1,), tuple(candidates))
        chosen, reason = training_list(full, Lists(), Sampling(), seed=0, uses="one")
        return reason if chosen is None else ids(chosen.candidates)

    assert trained(candidate("a", 1.0)) == "a"
    assert trained(candidate("a", 0.0), candidate("b", 1.0)) == "b"
    assert trained(candidate("a", 1.0, tokens=())) == "no candidate"
    single = CandidateList("0000/p", 0, Prompt("p", ()), (1,), (candidate("a", 1.0),))
    assert training_list(single, Lists(), Sampling(), seed=0) == (None, "fewer than two distinct candidates")
