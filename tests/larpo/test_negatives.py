"""Losers from other prompts."""

import pytest

from larpo.config import Lists, Sampling
from larpo.lists import training_list
from larpo.negatives import with_borrowed
from larpo.types import Message, Prompt


@pytest.fixture
def lists(make_list):
    """Prompts 0 to 5, of two tasks by turns, three responses each: one best, two losers."""

    def of_task(number):
        item = make_list(number, (4, 3, 5), rewards=(1.0, 0.0, 0.0))
        return item.replace(prompt=type(item.prompt)(item.prompt.id, item.prompt.messages, "ab"[number % 2]))

    return [of_task(number) for number in range(6)]


def sources(item):
    """Numbers of the prompts that a list has borrowed from."""
    return [int(c.id.split("/from/0000/p")[1].split("/")[0]) for c in item.candidates if c.origin == "given"]


def test_responses_of_other_prompts_join_without_what_a_sampler_or_a_reward_model_gave(lists):
    mixed = with_borrowed(lists, "random", count=4, seed=0)
    for before, after in zip(lists, mixed, strict=True):
        assert after.candidates[:3] == before.candidates
        borrowed = after.candidates[3:]
        assert len({c.id for c in borrowed}) == len(set(sources(after))) == 4
        assert int(before.prompt.id[1:]) not in sources(after)
        for c in borrowed:
            assert (c.origin, c.log_probs, c.versions, c.reward, c.reference_log_prob) == ("given", (), (), None, None)
            assert c.token_ids


def test_related_ones_come_from_the_same_task_and_twice_from_a_prompt_when_there_are_too_few(lists):
    for number, item in enumerate(with_borrowed(lists, "related", count=5, seed=0)):
        found = sources(item)
        assert {other % 2 for other in found} == {number % 2}
        assert sorted(found.count(other) for other in set(found)) == [2, 3]


def test_prompts_without_a_task_are_related_to_those_nearest_in_words(make_list):
    """Two subjects among eight prompts, with words that all of them share."""
    subjects = ("how do ships sail the sea", "how do bakers bake the bread")
    lists = []
    for number in range(8):
        item = make_list(number, (4, 3), rewards=(1.0, 0.0))
        messages = (Message("user", f"{subjects[number % 2]} number {number}"),)
        lists.append(item.replace(prompt=Prompt(item.prompt.id, messages)))
    for number, item in enumerate(with_borrowed(lists, "related", count=2, seed=0)):
        found = set(sources(item))
        assert len(found) == 2
        assert {other % 2 for other in found} == {number % 2}
    assert {other % 2 for other in sources(with_borrowed(lists, "random", count=7, seed=0)[0])} == {0, 1}


def test_prompts_without_a_common_word_are_borrowed_from_by_the_seed(make_list):
    lists = []
    for number in range(16):
        item = make_list(number, (4, 3), rewards=(1.0, 0.0))
        lists.append(item.replace(prompt=Prompt(item.prompt.id, (Message("user", f"question{number}"),))))
    first, second = ([sources(item) for item in with_borrowed(lists, "related", count=2, seed=seed)] for seed in (0, 1))
    assert first != second
    assert len({number for found in first for number in found}) > 8


def test_a_prompt_with_a_task_is_related_to_none_without(lists):
    plain = [item.replace(prompt=Prompt(item.prompt.id, item.prompt.messages)) for item in lists[:5]]
    *_, last = with_borrowed([*plain, lists[5]], "related", count=2, seed=0)
    assert sources(last) == []


def test_the_seed_decides_and_the_order_of_the_part_does_not(lists):
    def ids(lists, seed):
        return {
            item.id: [c.id for c in item.candidates[3:]] for item in with_borrowed(lists, "random", count=3, seed=seed)
        }

    assert ids(lists, 1) == ids(lists[::-1], 1)
    assert ids(lists, 1) != ids(lists, 2)


def test_sampled_is_what_was_sampled(lists):
    assert with_borrowed(lists, "sampled", count=4, seed=0) == lists


def test_the_prompts_own_losers_are_not_trained_on(lists):
    (item, *_) = with_borrowed(lists, "random", count=2, seed=0)
    scored = item.replace(candidates=tuple(c.replace(reward=c.reward or 0.0) for c in item.candidates))
    chosen, _ = training_list(scored, Lists(negatives="random"), Sampling(), seed=0)
    assert [c.origin for c in chosen.candidates] == ["sampled", "given", "given"]
    own, _ = training_list(lists[0], Lists(negatives="random"), Sampling(), seed=0)
    assert own is None  # nothing was borrowed: the best alone teaches nothing
