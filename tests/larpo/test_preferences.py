"""Preference datasets: what a row may hold, what is left out, and the split."""

import json
from pathlib import Path

import pytest

from larpo.config import PreferenceColumns, Preferences
from larpo.errors import DataError
from larpo.preferences import Preference, load_preferences
from larpo.types import Message, Prompt

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.fixture
def load(tmp_path):
    def read(rows, columns, **knobs):
        path = tmp_path / "preferences.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_preferences(Preferences(source=str(path), columns=PreferenceColumns(**columns), **knobs))

    return read


def asked(preference: Preference) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in preference.prompt.messages]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        pytest.param({"q": "What?", "a": "yes", "b": "no"}, {"prompt": "q", "chosen": "a", "rejected": "b"}, id="text"),
        pytest.param(
            {"q": [user("What?")], "a": [assistant("yes")], "b": [assistant("no")]},
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            id="conversational",
        ),
        pytest.param(
            {"a": [user("What?"), assistant("yes")], "b": [user("What?"), assistant("no")]},
            {"chosen": "a", "rejected": "b"},
            id="conversational, prompt implied",
        ),
        pytest.param(
            {"q": "What?", "a": [user("What?"), assistant("yes")], "b": [user("What?"), assistant("no")]},
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            id="prompt named and repeated",
        ),
        pytest.param(
            {"x": {"turns": [user("What?"), assistant("old")], "a": "yes", "b": "no"}},
            {"messages": "x.turns", "chosen": "x.a", "rejected": "x.b"},
            id="turns, dotted",
        ),
    ],
)
def test_a_pair_in_every_form_that_trl_reads(load, row, columns):
    (pair,) = load([row], columns).train
    assert asked(pair) == [("user", "What?")]
    assert (pair.responses, pair.rewards, pair.margin) == (("yes", "no"), (1.0, 0.0), None)


def test_the_forms_agree_with_trl(load):
    """What TRL takes for the prompt and the answers of conversations without a named prompt."""
    from trl.data_utils import extract_prompt

    turns = [user("a"), assistant("b"), user("c")]
    row = {"chosen": [*turns, assistant("yes")], "rejected": [*turns, assistant("no")]}
    theirs = extract_prompt(row)
    (ours,) = load([row], {"chosen": "chosen", "rejected": "rejected"}).train
    assert asked(ours) == [(turn["role"], turn["content"]) for turn in theirs["prompt"]]
    assert ours.responses == (theirs["chosen"][0]["content"], theirs["rejected"][0]["content"])


def test_a_margin(load):
    rows = [PAIR | {"m": 2}, PAIR | {"m": None}]
    sets = load(rows, {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "margin": "m"})
    assert [pair.margin for pair in sets.train] == [2.0]
    assert sets.notes == ("1 rows left out: 'm' holds no number",)


def test_ranked_answers_in_a_list_of_structs(load):
    """UltraFeedback's form; an answer that nobody rated is left out."""
    answers = [("a", 1.5), ("b", 4.0), ("c", "N/A"), ("d", "3")]
    row = {"instruction": "q", "completions": [{"response": text, "overall_score": score} for text, score in answers]}
    columns = {"prompt": "instruction", "responses": "completions.response", "rewards": "completions.overall_score"}
    (ranked,) = load([row], columns).train
    assert (ranked.responses, ranked.rewards) == (("b", "d", "a"), (4.0, 3.0, 1.5))


def test_ranked_answers_without_scores_are_best_first(load):
    (ranked,) = load([{"q": "q", "r": ["a", "b", "c"]}], {"prompt": "q", "responses": "r"}).train
    assert (ranked.responses, ranked.rewards) == (("a", "b", "c"), (2.0, 1.0, 0.0))


def test_our_own_exports_come_back(load, make_list):
    from larpo.export import preference_rows, ranked_row

    item = make_list(3, (2, 5, 4), rewards=(0.9, 0.5, 0.1))
    (ranked,) = load(
        [ranked_row(item)], {"prompt": "prompt", "responses": "responses", "rewards": "rewards", "id": "id"}
    ).train
    texts = tuple(candidate.text for candidate in item.candidates)
    assert ranked == Preference(Prompt(item.id, item.prompt.messages), texts, (0.9, 0.5, 0.1))
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    (pair,) = load(list(preference_rows(item)), columns).train
    assert pair.responses == (texts[0], texts[2])


def test_a_response_and_a_chat(load):
    (one,) = load([{"q": "q", "a": "yes"}], {"prompt": "q", "response": "a"}).train
    assert (one.responses, one.rewards) == (("yes",), (1.0,))
    chat = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
    first, second = load([{"chat": chat}], {"messages": "chat"}).train
    assert (first.prompt.id, second.prompt.id) == ("row-00000/0", "row-00000/1")
    assert (asked(first)[-1], first.responses) == (("user", "a"), ("b",))
    assert (len(second.prompt.messages), second.responses) == (4, ("d",))


def test_turns_of_a_chat_stay_on_one_side_of_the_split(load):
    rows = [{"chat": [user(f"q{n}"), assistant("a"), user("more"), assistant("b")]} for n in range(6)]
    sets = load(rows, {"messages": "chat"}, heldout_count=2)
    ids = [{preference.prompt.id.split("/")[0] for preference in side} for side in (sets.train, sets.heldout)]
    assert [len(side) for side in (sets.train, sets.heldout)] == [8, 4]
    assert not ids[0] & ids[1]


def test_a_held_out_prompt_is_not_trained_on(load):
    rows = [PAIR | {"prompt": f"q{n % 4}", "chosen": f"good {n}"} for n in range(8)]
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    sets = load(rows, columns, heldout_count=2)
    assert (len(sets.train), len(sets.heldout)) == (4, 2)
    assert not {asked(p)[0] for p in sets.train} & {asked(p)[0] for p in sets.heldout}
    assert sets.notes == ("2 rows with a held-out prompt left out of training",)
    shuffled = load(list(reversed(rows)), columns, heldout_count=2)
    assert {asked(p)[0] for p in shuffled.heldout} == {asked(p)[0] for p in sets.heldout}
    assert len(load(rows, columns, heldout_count=2, train_count=3).train) == 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "x"}, "no column 'rejected'"),
        (PAIR | {"prompt": " "}, "no text in the prompt"),
        (PAIR | {"chosen": " bad"}, "chosen and rejected say the same"),
        (PAIR | {"chosen": ""}, "an empty answer"),
        (PAIR | {"chosen": 3}, "'chosen' holds int, neither text nor turns of role and content"),
        (
            PAIR | {"chosen": [assistant("a"), user("b"), assistant("c")]},
            "'chosen' holds not one turn of the assistant",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_counted(load, row, reason):
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    sets = load([PAIR, row, row], columns)
    assert len(sets.train) == 1
    (note,) = sets.notes
    assert note.startswith(f"2 rows left out: {reason}")
    with pytest.raises(DataError, match=r"none of its 1 rows .*Its columns are .*; set preferences.columns"):
        load([row], columns)


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [([1, 1], "no two different answers with different scores"), ([1], "'r' holds not one score an answer")],
)
def test_ranked_rows_without_an_order(load, rewards, reason):
    columns = {"prompt": "q", "responses": "a", "rewards": "r"}
    sets = load([{"q": "q", "a": ["x", "y"], "r": [1, 0]}, {"q": "q", "a": ["x", "y"], "r": rewards}], columns)
    assert sets.notes == (f"1 rows left out: {reason}",)


def test_text_without_a_prompt_is_refused_with_the_columns_there(load):
    with pytest.raises(DataError, match=r"set preferences.columns.prompt.*Its columns are question, chosen, rejected"):
        load([{"question": "q", "chosen": "a", "rejected": "b"}], {"chosen": "chosen", "rejected": "rejected"})


def test_too_few_rows_and_ids_that_come_twice(load):
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    with pytest.raises(DataError, match=r"holds 2 usable rows, 1 of different prompts; .*heldout_count = 1"):
        load([PAIR, PAIR], columns, heldout_count=1)
    with pytest.raises(DataError, match="ids are used more than once, the first '7'"):
        load([PAIR | {"id": 7}, PAIR | {"id": 7}], columns | {"id": "id"})


def test_gold_answers_against_those_of_other_questions():
    tasks = {"gcd": {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 20}, "chain_sum": {}}
    section = Preferences(source="reasoning_gym", tasks=tasks, train_count=20, heldout_count=12, wrong_answers=2)
    sets = load_preferences(section)
    assert (len(sets.train), len(sets.heldout)) == (20, 12)
    assert sets == load_preferences(section)
    for preference in (*sets.train, *sets.heldout):
        assert preference.responses[0] == preference.prompt.answer_key["answer"]
        assert len(set(preference.responses)) == 3
        assert preference.rewards == (1.0, 0.0, 0.0)
    with pytest.raises(DataError, match=r"have only \d+ other answers"):
        load_preferences(Preferences(source="reasoning_gym", tasks=tasks, train_count=20, wrong_answers=40))


def test_a_hub_data_set_without_a_network(monkeypatch):
    import datasets

    def offline(*_, **__):
        raise ConnectionError("Couldn't reach 'someone/pairs' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"preferences.source = 'someone/pairs': split 'train'.*reasoning_gym$"):
        load_preferences(Preferences(source="someone/pairs", columns=PreferenceColumns(prompt="q", response="a")))


def test_parquet(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "p.parquet"
    rows = [{"q": f"q{n}", "c": [{"t": "a", "s": 1.0}, {"t": "b", "s": 2.0}]} for n in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    columns = PreferenceColumns(prompt="q", responses="c.t", rewards="c.s")
    sets = load_preferences(Preferences(source=str(path), columns=columns))
    assert [p.responses for p in sets.train] == [("b", "a")] * 3
    assert sets.train[0].prompt.messages[0] == Message("user", sets.train[0].prompt.messages[0].content)
