"""Lists that reward models learn from: degenerate answers, what is left out, and the constructed set."""

import pytest

from larpo.constructed_lists import alpaca_answers, constructed_lists, drifting, shortened
from larpo.conversations import Conversation
from larpo.degenerate import degenerate_answers, prompt_copy, repeated_sentence
from larpo.errors import DataError
from larpo.preferences import Preference, PreferenceSets
from larpo.reward_data import labelled_sets, reward_preferences
from larpo.reward_training_config import RewardTraining
from larpo.types import Message, Prompt


def preference(number, answers, rewards, margin=None):
    return Preference(Prompt(f"p{number}", (Message("user", f"Ask {number}."),)), answers, rewards, margin)


def encode(prompt, response):
    """One id a letter, so that a conversation can be read back."""
    text = f"{prompt.id}|{response}"
    return Conversation(tuple(map(ord, text)), (0,) * len(text))


def texts(item):
    return ["".join(map(chr, conversation.ids)).partition("|")[2] for conversation in item.conversations]


GOOD = preference(1, ("Yes. Surely so.", "No."), (3.0, 1.5), margin=0.5)


def test_degenerate_answers_are_the_worst_and_equal_among_themselves():
    sets = labelled_sets(PreferenceSets((GOOD,), (GOOD,)), encode, limit=100, degenerate=True)
    (item,) = sets.train
    assert texts(item) == ["Yes. Surely so.", "No.", "Ask 1.", "Yes. Yes. Yes."]
    assert item.labels == (3.0, 1.5, 0.5, 0.5)
    assert (item.attacks, item.own, item.margin) == (("prompt_copy", "repeated_sentence"), 2, 0.5)


def test_without_them_only_held_out_lists_have_them():
    sets = labelled_sets(PreferenceSets((GOOD,), (GOOD,)), encode, limit=100, degenerate=False)
    assert texts(sets.train[0]) == ["Yes. Surely so.", "No."]
    assert len(sets.heldout[0].attacks) == 2


def test_what_cannot_be_learned_from_is_left_out_and_counted():
    long, equal, single = (
        preference(2, ("a" * 200, "b"), (1.0, 0.0)),
        preference(3, ("a", "b"), (1.0, 1.0)),
        preference(4, ("a",), (1.0,)),
    )
    sets = labelled_sets(
        PreferenceSets((GOOD, long, equal, single), (GOOD,), ("a note",)), encode, limit=100, degenerate=False
    )
    assert [item.prompt_id for item in sets.train] == ["p1"]
    assert sets.notes[0] == "a note"
    assert sets.notes[1].startswith("1 lists have a conversation of more than 100 tokens")
    assert sets.notes[2].startswith("2 lists have fewer than two answers")
    with pytest.raises(DataError, match="no training lists are left: 1 lists"):
        labelled_sets(PreferenceSets((long,), (GOOD,)), encode, limit=100, degenerate=False)


def test_a_degenerate_answer_that_the_list_holds_is_not_added():
    prompt = Prompt("p", (Message("user", "Say it."), Message("assistant", "It."), Message("user", "Again.")))
    assert prompt_copy(prompt) == "Again."
    assert degenerate_answers(prompt, ["Again.", "No."]) == {"repeated_sentence": "Again. Again."}
    assert degenerate_answers(prompt, ["", "No."]) == {"prompt_copy": "Again."}
    assert (
        repeated_sentence("One two three. Four five six seven eight nine.") == "One two three. " * 2 + "One two three."
    )


def test_shortened_answers_end_with_a_sentence_where_they_can():
    assert shortened("One two. Three four five. Six.", 5) == "One two. Three four five."
    assert shortened("One two three four.", 2) == "One two"
    assert drifting("a b c d", "v w x y z") == "a b x y z"


def test_the_bundled_set_is_made_of_good_answers_and_keeps_the_sides_apart():
    config = RewardTraining.model_validate(
        {
            "preferences": {"source": "alpaca_eval_constructed", "train_count": 40, "heldout_count": 10},
            "answer_words": 20,
        }
    )
    sets = reward_preferences(config)
    good = {item.prompt.id: shortened(item.responses[0], 20) for item in alpaca_answers()}
    assert (len(sets.train), len(sets.heldout), len(good)) == (40, 10, 805)
    for side in (sets.train, sets.heldout):
        answers = {good[item.prompt.id] for item in side}
        for item in side:
            own, drifted, mismatched = item.responses
            assert own == good[item.prompt.id]
            assert mismatched in answers - {own}
            assert drifted == drifting(own, mismatched)
            assert item.rewards == (2.0, 1.0, 0.0)
    assert sets == reward_preferences(config)


def test_one_prompt_cannot_be_mismatched():
    with pytest.raises(DataError, match="too few to mismatch"):
        constructed_lists(alpaca_answers()[:1], words=20, seed=0)
