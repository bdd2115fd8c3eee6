"""The verifiers on real tasks and real IFEval prompts, with responses made by hand."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from larpo.errors import ConfigError, DataError
from larpo.types import Message, Prompt
from larpo.verifiers import (
    check_answers,
    check_verifier_name,
    get_verifier,
    gsm8k,
    ifeval,
    last_boxed,
    last_number,
    math,
    reasoning_gym,
    verifier_version,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("none at all", None),
        ("The answer is 12.", "12"),
        ("12 or 13", "13"),
        ("1,234,567 in all", "1234567"),
        ("1,2,3", "3"),
        ("12,34", "34"),
        ("1,0000", "0000"),
        ("3.50", "3.50"),
        ("+1,234.00.", "1234"),
        ("x = -5", "-5"),
        ("**-5**", "-5"),
        ("\\boxed{-7}", "-7"),
        ("−5", "-5"),
        ("7-3", "3"),
        ("(7)-3", "3"),
        ("7 - 3 = 4", "4"),
        ("1/3", "3"),
        ("1e5", "5"),
        (".5", "5"),
        ("100", "100"),
        ("٣", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@given(st.integers(-(10**15), 10**15), st.text(alphabet="abc .,:\n", max_size=20))
def test_last_number_reads_every_integer(number, before):
    assert last_number(f"{before} {number}") == str(number)
    assert last_number(f"{before} {number:,}") == str(number)


def arithmetic(task, answer, metadata=None):
    key = {"task": task, "answer": answer, "metadata": metadata or {}}
    return Prompt("p", (Message("user", "?"),), task, key)


@pytest.mark.parametrize(
    ("task", "gold", "response", "reward"),
    [
        ("chain_sum", "-4", "9 - 13 = -4", 1.0),
        ("chain_sum", "1234", "It is 1,234.00.", 1.0),
        ("chain_sum", "4", "four", 0.0),
        ("chain_sum", "4", "", 0.0),
        ("chain_sum", "4", "4 is not 5", 0.0),
        ("gcd", "12", "12.0", 1.0),
        ("gcd", "12", "+12", 1.0),
        ("gcd", "12", "7", 0.0),
        ("products", "56", "7 * 8 = 56", 1.0),
        ("products", "56", "54", 0.0),
        # the tasks' own partial credit: a wrong number that contains the right digits
        ("chain_sum", "12", "312", 2 / 3),
        ("gcd", "12", "312", 2 / 3),
        ("products", "12", "312", 2 / 3),
    ],
)
def test_reasoning_gym_by_hand(task, gold, response, reward):
    assert reasoning_gym(arithmetic(task, gold), response) == reward


@pytest.mark.parametrize("task", ["chain_sum", "gcd", "products", "lcm", "basic_arithmetic", "gsm_symbolic"])
def test_reasoning_gym_gives_one_to_every_gold_answer(task):
    from reasoning_gym import create_dataset

    for entry in create_dataset(task, size=10, seed=7):
        prompt = arithmetic(task, entry["answer"], entry["metadata"])
        assert reasoning_gym(prompt, f"So the answer is {entry['answer']}.") == 1.0


@pytest.mark.parametrize("task", ["number_sorting", "spell_backward", "countdown", "time_intervals", "letter_counting"])
def test_reasoning_gym_reads_answers_that_are_no_numbers(task):
    """Lists, words, expressions and times of day, on the last line or marked; the last number of one is no answer."""
    from reasoning_gym import create_dataset

    for entry in create_dataset(task, size=10, seed=7):
        prompt = arithmetic(task, entry["answer"], entry["metadata"])
        assert reasoning_gym(prompt, f"I think that it is\n{entry['answer']}\n") == 1.0
        assert reasoning_gym(prompt, f"1, or <answer>{entry['answer']}</answer>, is my guess.") == 1.0
        assert reasoning_gym(prompt, "") == 0.0
        check_answers([prompt])


def test_a_task_whose_own_answer_earns_less_than_one_is_refused():
    prompts = [arithmetic("gcd", "4"), Prompt("odd", (), "number_sorting", {"task": "number_sorting", "answer": "1 2"})]
    prompts[1].answer_key["metadata"] = {"sorted_numbers": ["1", "2"], "direction": "ascending"}
    with pytest.raises(DataError, match=r"'number_sorting'.*own answer '1 2' of prompt 'odd'"):
        check_answers(prompts)


def test_reasoning_gym_refuses_what_it_cannot_verify():
    with pytest.raises(DataError, match=r"no task 'nope'.*chain_sum"):
        reasoning_gym(arithmetic("nope", "1"), "1")
    with pytest.raises(DataError, match="'metadata'"):
        reasoning_gym(Prompt("p", (), "gcd", {"task": "gcd", "answer": "1"}), "1")


@pytest.fixture(scope="module")
def ifeval_prompts():
    """IFEval's real prompts by key, read in place from an installed package that is not imported."""
    found = importlib.util.find_spec("eval_framework")
    folder = Path(found.submodule_search_locations[0])
    lines = (folder / "tasks/ifeval/data/input_data.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    names = ("key", "instruction_id_list", "kwargs")
    return {
        row["key"]: Prompt(str(row["key"]), (Message("user", row["prompt"]),), "ifeval", {n: row[n] for n in names})
        for row in rows
    }


HIGHLIGHTS = "*one* and *two* and *three* "


@pytest.mark.parametrize(
    ("key", "response", "met"),
    [
        # 1000: no comma; at least 3 highlighted sections; at least 300 words
        (1000, HIGHLIGHTS + "word " * 300, 3 / 3),
        (1000, HIGHLIGHTS + "word, " * 300, 2 / 3),
        (1000, HIGHLIGHTS + "word", 2 / 3),
        (1000, "word, word", 0 / 3),
        (1000, "", 0 / 3),
        (1000, "<think>" + HIGHLIGHTS, 0 / 3),
        # 1001: no comma
        (1001, "Hark! A journey unto Edo.", 1.0),
        (1001, "Hark, a journey.", 0.0),
        # 1005: at least 12 placeholders
        (1005, "[name] " * 12, 1.0),
        (1005, "[name] " * 11, 0.0),
    ],
)
def test_ifeval_by_hand(ifeval_prompts, key, response, met):
    assert ifeval(ifeval_prompts[key], response) == pytest.approx(met)


def constrained(name, **arguments):
    key = {"key": 1, "instruction_id_list": [name], "kwargs": [{**arguments, "unused": None}]}
    return Prompt("p", (Message("user", "?"),), "ifeval", key)


@pytest.mark.parametrize(
    ("name", "arguments", "response", "met"),
    [
        (
            "length_constraints:number_sentences",
            {"relation": "less than", "num_sentences": 3},
            "It rained. It poured.",
            1.0,
        ),
        (
            "length_constraints:number_sentences",
            {"relation": "less than", "num_sentences": 3},
            "It rained. It poured. It froze.",
            0.0,
        ),
        (
            "change_case:capital_word_frequency",
            {"capital_relation": "at least", "capital_frequency": 2},
            "AB CD",
            1,
        ),
        (
            "change_case:capital_word_frequency",
            {"capital_relation": "at least", "capital_frequency": 2},
            "AB cd",
            0,
        ),
    ],
)
def test_ifeval_needs_no_download_for_sentences_and_words(name, arguments, response, met):
    assert ifeval(constrained(name, **arguments), response) == met


def test_ifeval_verifies_every_real_prompt(ifeval_prompts):
    assert len(ifeval_prompts) == 541
    rewards = [ifeval(prompt, "Hello there. This is an ANSWER.\n\nP.S. Bye!") for prompt in ifeval_prompts.values()]
    assert all(0 <= reward <= 1 for reward in rewards)
    assert 0 < sum(rewards) < 541


def test_ifeval_does_not_depend_on_chance():
    prompt = constrained("language:response_language", language="en")
    assert len({ifeval(prompt, "no va bien der Tag is the one") for _ in range(20)}) == 1


def test_ifeval_refuses_constraints_it_cannot_check():
    with pytest.raises(DataError, match="made:up"):
        ifeval(constrained("made:up"), "x")
    with pytest.raises(DataError, match="0 constraints"):
        ifeval(Prompt("p", (), "ifeval", {"instruction_id_list": [], "kwargs": []}), "x")


def test_get_verifier_by_name_and_by_path(tmp_path, monkeypatch):
    (tmp_path / "my_verifier_a.py").write_text("limit = 3\ndef half(prompt, response):\n    return 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert get_verifier("reasoning_gym") is reasoning_gym
    assert get_verifier("my_verifier_a:half")(arithmetic("gcd", "1"), "") == 0.5
    with pytest.raises(ConfigError, match="not a function"):
        get_verifier("my_verifier_a:limit")
    with pytest.raises(ConfigError, match="PYTHONPATH"):
        get_verifier("my_verifier_a:missing")
    with pytest.raises(ConfigError, match="PYTHONPATH"):
        get_verifier("no_such_module_here:f")


@pytest.mark.parametrize("name", ["", "maths", "os.system", "a:b:c", "a b:c", "a:b()", "-c:x"])
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(ConfigError, match="ifeval, math, reasoning_gym"):
        check_verifier_name(name)


def test_version_follows_the_code_that_verifies(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "my_verifier_b.py"
    module.write_text("def f(prompt, response): return 0.0\n")
    before = verifier_version("my_verifier_b:f")
    module.write_text("def f(prompt, response): return 1.0\n")
    assert verifier_version("my_verifier_b:f") != before
    assert verifier_version("reasoning_gym").startswith("reasoning-gym==")
    with pytest.raises(ConfigError, match="no_such_module_here"):
        verifier_version("no_such_module_here:f")


@pytest.mark.parametrize(
    ("answer", "response", "reward"),
    [
        ("She sells 16 - 3 = <<16-3=13>>13.\n#### 1,800", "So it is $1,800.00.", 1.0),
        ("#### 18", "18.0", 1.0),
        ("18", "18 apples, of 20", 0.0),
        (18, "I do not know", 0.0),
        ("#### -3", "x = -3", 1.0),
        ("#### 13\nnote: #### 18", "18", 1.0),
    ],
)
def test_gsm8k_compares_the_last_number_with_what_follows_the_last_hashes(answer, response, reward):
    assert gsm8k(Prompt("p", (), "", {"answer": answer}), response) == reward


def test_gsm8k_without_a_gold_number_is_refused():
    with pytest.raises(DataError, match="'#### none' holds no number"):
        gsm8k(Prompt("p", (), "", {"answer": "#### none"}), "1")
    assert verifier_version("gsm8k").startswith("larpo==")


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{3}, no: \boxed{7}", "7"),
        (r"\boxed{7} and \boxed{", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"It is $\boxed 42$.", "42"),
        (r"\fbox{9}", "9"),
        (r"\boxed {5}", "5"),
        ("42", None),
        (r"\boxed{", None),
    ],
)
def test_last_boxed(text, held):
    assert last_boxed(text) == held


RIGHT, WRONG = 1.0, 0.0


@pytest.mark.parametrize(
    ("answer", "response", "reward"),
    [
        (r"Half of it: $\boxed{\frac{1}{2}}$.", r"So it is $\frac{2}{4}$.", RIGHT),
        (r"\frac12", r"\boxed{0.5}", RIGHT),
        (r"\dfrac{9}{19}", "The final answer is 9/19", RIGHT),
        (r"\frac12", r"\boxed{\frac13}", WRONG),
        (12, "The answer is 12.", RIGHT),
        ("12", "It is 13", WRONG),
        ("12", "", WRONG),
        ("1,234", r"\boxed{1234}", RIGHT),
        (r"\$18.90", r"\boxed{18.9}", RIGHT),
        (r"11\text{ cm}", r"\boxed{11}", RIGHT),
        ("11", r"\boxed{11\text{ cm}^2}", RIGHT),
        (r"90^\circ", r"\boxed{90}", RIGHT),
        (r"10\%", r"\boxed{10}", RIGHT),
        ("[2,5)", r"\boxed{[2, 5)}", RIGHT),
        ("[2,5)", r"\boxed{(2, 5)}", WRONG),
        (r"(-\infty, 3)", r"\boxed{(-\infty,3)}", RIGHT),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", RIGHT),
        ("1,2", r"\boxed{2 \text{ and } 1}", RIGHT),
        ("1,2", r"\boxed{1}", WRONG),
        ("(3,4)", r"\boxed{(4,3)}", WRONG),
        (r"2\sqrt{2}", r"\boxed{\sqrt{8}}", RIGHT),
        ("(x+1)^2", r"\boxed{x^2+2x+1}", RIGHT),
        ("(x+1)^2", r"\boxed{x^2+1}", WRONG),
        ("6+9i", r"\boxed{9i+6}", RIGHT),
        ("x=5", r"\boxed{5}", RIGHT),
        ("y=2x+3", r"\boxed{3+2x = y}", RIGHT),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", RIGHT),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix} 2 \\ 1 \end{pmatrix}}", WRONG),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", RIGHT),
        (r"\text{(C)}", r"\boxed{D}", WRONG),
        ("7", r"\boxed{3}? No: \boxed{7}", RIGHT),
        ("7", r"\boxed{7}? No: \boxed{3}", WRONG),
    ],
)
def test_math_by_hand(answer, response, reward):
    assert math(Prompt("p", (), "", {"answer": answer}), response) == reward


def test_math_without_a_gold_answer_is_refused():
    with pytest.raises(DataError, match="reads no answer in ''"):
        math(Prompt("p", (), "", {"answer": ""}), "1")
    assert verifier_version("math").startswith("math-verify==0.9")
