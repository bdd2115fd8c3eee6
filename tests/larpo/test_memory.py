"""What an iteration remembers (Jin 2025, Table 4)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from larpo.memory import is_remembered, join, remember, replays, reward_fingerprint, unscored
from larpo.types import Candidate, CandidateList, Prompt, list_id

MODES = ("current", "current_and_previous", "current_and_all_previous")


def candidate(id, reward=0.0, iteration=0, origin="sampled", fingerprint="f"):
    return Candidate(
        id,
        f"text {id}",
        (1,),
        (0.0,),
        "stop",
        1.0,
        origin,
        iteration,
        (),
        reward=reward,
        reward_fingerprint=fingerprint,
    )


def entry(iteration, prompt, *candidates):
    return CandidateList(list_id(iteration, prompt), iteration, Prompt(prompt, ()), (iteration,), candidates)


def ids(candidates):
    return "".join(sorted(c.id for c in candidates))


def by_prompt(remembered):
    return {prompt: ids(found.candidates) for prompt, found in remembered.items()}


THREE = [
    entry(0, "p", candidate("a", 1.0, 0), candidate("b", 0.0, 0)),
    entry(0, "q", candidate("c", 1.0, 0), candidate("d", 0.0, 0)),
    entry(1, "p", candidate("e", 2.0, 1), candidate("f", 0.5, 1), candidate("a", 1.0, 0), candidate("b", 0.0, 0)),
    entry(1, "r", candidate("g", 1.0, 1), candidate("h", 0.0, 1)),
    entry(2, "p", candidate("z", 9.0, 2)),
]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("current", {}),
        ("current_and_previous", {"p": "ef", "r": "gh"}),
        ("current_and_all_previous", {"p": "abef", "q": "cd", "r": "gh"}),
    ],
)
def test_what_iteration_2_remembers(mode, expected):
    assert by_prompt(remember(THREE, mode, 2, seed=0)) == expected


@given(st.permutations(THREE), st.sampled_from(MODES))
def test_remembering_does_not_depend_on_order(shuffled, mode):
    assert remember(shuffled, mode, 2, seed=0) == remember(THREE, mode, 2, seed=0)


@pytest.mark.parametrize(
    ("mode", "ages"),
    [("current", []), ("current_and_previous", [1]), ("current_and_all_previous", [1, 2, 3])],
)
def test_ages_that_iteration_3_remembers(mode, ages):
    assert [3 - i for i in (2, 1, 0, 3, 4) if is_remembered(candidate("a", iteration=i), mode, 3)] == ages


def test_the_first_iteration_remembers_nothing():
    assert all(remember(THREE, mode, 0, seed=0) == {} for mode in MODES)


def test_a_replay_does_not_make_a_candidate_younger():
    replayed = entry(1, "q", *(c.replace(origin="remembered") for c in THREE[1].candidates))
    assert "q" not in remember([*THREE, replayed], "current_and_previous", 2, seed=0)
    assert "q" in remember([*THREE, replayed], "current_and_all_previous", 2, seed=0)


def test_a_candidate_is_taken_from_the_newest_list():
    scored_again = candidate("a", 7.0, 0, fingerprint="g")
    lists = [entry(1, "p", scored_again), entry(0, "p", candidate("a", 1.0, 0))]
    (found,) = remember(lists, "current_and_all_previous", 2, seed=0)["p"].candidates
    assert (found.reward, found.reward_fingerprint) == (7.0, "g")


def test_remembered_lists_are_lists_of_the_iteration_best_first():
    found = remember(THREE, "current_and_all_previous", 2, seed=0)["p"]
    assert (found.id, found.iteration, found.prompt_token_ids) == ("0002/p", 2, (1,))
    assert [c.id for c in found.candidates] == ["e", "a", "f", "b"]
    assert {c.origin for c in found.candidates} == {"remembered"}
    assert [c.iteration for c in found.candidates] == [1, 0, 1, 0]


def test_a_given_candidate_stays_given():
    lists = [entry(0, "p", candidate("a", origin="given"), candidate("b"))]
    found = remember(lists, "current_and_all_previous", 1, seed=0)["p"].candidates
    assert {c.id: c.origin for c in found} == {"a": "given", "b": "remembered"}


def test_join_takes_none_twice():
    current = entry(2, "p", candidate("x", None, 2), candidate("a", 0.1, 2))
    old = [candidate("a", 1.0, 0), candidate("e", 2.0, 1)]
    joined = join(current, old)
    assert [(c.id, c.origin, c.reward) for c in sorted(joined.candidates, key=lambda c: c.id)] == [
        ("a", "sampled", 0.1), ("e", "remembered", 2.0), ("x", "sampled", None),
    ]  # fmt: skip
    assert joined.replace(candidates=()) == current.replace(candidates=())
    assert join(current, []) == current
    assert set(join(joined, old).candidates) == set(joined.candidates)


def test_replays_are_of_prompts_that_were_not_drawn():
    remembered = remember(THREE, "current_and_all_previous", 2, seed=0)
    found = replays(remembered, ["p"], 2, seed=0)
    assert {replay.id: ids(replay.candidates) for replay in found} == {"0002/q": "cd", "0002/r": "gh"}
    assert replays(remembered, ["p", "q", "r"], 2, seed=0) == []


def test_replays_come_in_an_order_of_the_seed_and_the_iteration():
    remembered = {str(i): entry(1, str(i)) for i in range(10)}
    order = [r.prompt.id for r in replays(remembered, [], 1, seed=0)]
    backwards = dict(reversed(remembered.items()))
    assert [r.prompt.id for r in replays(backwards, [], 1, seed=0)] == order
    assert [r.prompt.id for r in replays(remembered, [], 2, seed=0)] != order
    assert [r.prompt.id for r in replays(remembered, [], 1, seed=1)] != order


def test_an_age_limit_shortens_what_the_mode_reaches():
    def remembered(iteration, mode, max_age):
        return by_prompt(remember(THREE, mode, iteration, seed=0, max_age=max_age))

    assert remembered(2, "current_and_all_previous", 1) == {"p": "ef", "r": "gh"}
    assert remembered(3, "current_and_all_previous", 2) == {"p": "efz", "r": "gh"}
    assert remembered(3, "current_and_previous", 2) == {"p": "z"}
    assert remembered(3, "current", 2) == {}


@pytest.mark.parametrize(
    ("rescore", "joint", "expected"),
    [(True, False, "bc"), (False, False, "c"), (True, True, "abc"), (False, True, "c")],
)
def test_unscored_are_those_without_a_reward_of_this_model(rescore, joint, expected):
    item = entry(1, "p", candidate("c", None), candidate("a", 1.0, fingerprint="f"), candidate("b", 1.0))
    item = item.replace(candidates=(*item.candidates[:2], item.candidates[2].replace(reward_fingerprint="g")))
    assert "".join(c.id for c in unscored(item, "f", joint=joint, rescore=rescore)) == expected


def scored(item, fingerprint="f", joint=True):
    """The list after its unscored candidates got rewards."""
    group = unscored(item, fingerprint, joint=joint)
    given = {c.id: c.replace(reward_fingerprint=reward_fingerprint(group, fingerprint, joint=joint)) for c in group}
    return item.replace(candidates=tuple(given.get(c.id, c) for c in item.candidates))


def test_a_joint_list_is_ranked_again_as_a_whole_whenever_it_changed_and_only_then():
    done = scored(entry(1, "p", candidate("a"), candidate("b")))
    assert unscored(done, "f", joint=True) == ()
    assert unscored(done.replace(candidates=done.candidates[::-1]), "f", joint=True) == ()
    assert ids(unscored(done, "g", joint=True)) == "ab"
    assert ids(unscored(join(done, [candidate("c", 5.0)]), "f", joint=True)) == "abc"
    assert ids(unscored(done.replace(candidates=done.candidates[:1]), "f", joint=True)) == "a"
    assert unscored(join(done, [candidate("c", 5.0)]), "f", joint=True, rescore=False) == ()
