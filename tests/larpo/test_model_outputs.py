"""The files of other judges: keys and values as their own documentation has them."""

import json

import pytest

from larpo.model_outputs import is_judged_set, mixeval_benchmark, write_outputs
from larpo.prompt_sets import alpaca_eval_prompts
from larpo.types import Message, Prompt

ENTRY = {
    "problem_type": "free-form",
    "context": None,
    "prompt": "What does a manometer measure?",
    "target": ["Pressure"],
    "benchmark_name": "TriviaQA",
    "formated_input": "Question: What does a manometer measure?\nAnswer the question shortly.",
}
CHOICE = {
    "problem_type": "multiple-choice",
    "context": "postpone",
    "prompt": "What do late people have to do?",
    "options": ["eat", "hasten"],
    "target": [1],
    "benchmark_name": "CommonsenseQA",
    "formated_input": "postpone\nWhat do late people have to do?\nA. eat\nB. hasten\nAnswer with the option letter.",
}


def prompt(identity, text, **key):
    return Prompt(identity, (Message("system", "be kind"), Message("user", text)), "", key)


def written(folder, prompts, responses, source):
    """AlpacaEval's rows, and MixEval's by file below its `--model_response_dir`."""
    alpaca = write_outputs(folder, "tuned", prompts, responses, source)
    mixeval = folder / "tuned" / "mixeval"
    rows = {
        str(file.relative_to(mixeval)): [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]
        for file in mixeval.rglob("*.jsonl")
    }
    return json.loads(alpaca.read_text()), rows


def test_alpaca_eval_outputs_have_the_keys_of_its_own_reference_file(tmp_path):
    prompts = alpaca_eval_prompts()
    alpaca, _ = written(tmp_path, prompts, [f"answer {n}" for n in range(805)], "alpaca_eval")
    assert len(alpaca) == 805
    assert {tuple(sorted(row)) for row in alpaca} == {("dataset", "generator", "instruction", "output")}
    assert {row["dataset"] for row in alpaca} == {"helpful_base", "koala", "oasst", "selfinstruct", "vicuna"}
    assert alpaca[7]["output"] == "answer 7"
    assert alpaca[7]["instruction"] == prompts[7].messages[-1].content
    assert {row["generator"] for row in alpaca} == {"tuned"}


def test_mixeval_entries_come_back_whole_with_their_responses_each_kind_in_a_file_of_its_own(tmp_path):
    prompts = [prompt("m3", CHOICE["formated_input"], **CHOICE), prompt("f12", ENTRY["formated_input"], **ENTRY)]
    said = ["B. hasten", "It measures\npressure – “gauge”."]
    _, mixeval = written(tmp_path, prompts, said, "data/mixeval_hard-2024-08-11.jsonl")
    assert mixeval == {
        "local_chat/mixeval_hard/2024-08-11/local_chat_close_freeform_hard.jsonl": [
            {"id": "f12", **ENTRY, "response": said[1]}
        ],
        "local_chat/mixeval_hard/2024-08-11/local_chat_close_multichoice_hard.jsonl": [
            {"id": "m3", **CHOICE, "response": said[0]}
        ],
    }


def test_an_entry_is_free_form_where_a_table_of_both_kinds_has_no_options_for_it(tmp_path):
    _, mixeval = written(tmp_path, [prompt("a", "?", **ENTRY, options=None)], ["Pressure"], "mixeval-2024-08-11.jsonl")
    assert list(mixeval) == ["local_chat/mixeval/2024-08-11/local_chat_close_freeform.jsonl"]


@pytest.mark.parametrize("benchmark", ["mixeval", "mixeval_hard"])
def test_a_reader_that_takes_fields_by_name_as_mixeval_does_can_score_both_files(tmp_path, benchmark):
    prompts = [prompt(f"{n}", entry["formated_input"], **entry) for n, entry in enumerate((ENTRY, CHOICE, CHOICE))]
    write_outputs(tmp_path, "tuned", prompts, ["pressure", "B", "A"], f"{benchmark}-2024-06-01.jsonl")
    place = tmp_path / "tuned" / "mixeval" / "local_chat" / benchmark / "2024-06-01"
    end = "_hard" if benchmark == "mixeval_hard" else ""

    def lines(split):
        with (place / f"local_chat_{split}{end}.jsonl").open() as file:
            return [json.loads(line) for line in file]

    free_form = [
        row["response"].lower() in map(str.lower, row["target"]) and bool(row["prompt"]) and row["benchmark_name"]
        for row in lines("close_freeform")
    ]
    letters = ["AB"[: len(row["options"])][row["target"][0]] for row in lines("close_multichoice")]
    chosen = [row["response"] for row in lines("close_multichoice") if row["prompt"] and row["benchmark_name"]]
    assert free_form == ["TriviaQA"]
    assert [letter == choice for letter, choice in zip(letters, chosen, strict=True)] == [True, False]


def test_benchmark_and_version_are_what_the_file_of_prompts_is_called():
    assert mixeval_benchmark("mixeval-2024-08-11.jsonl") == ("mixeval", "2024-08-11")
    assert mixeval_benchmark("s3://bucket/mixeval_hard-2024-06-01.parquet") == ("mixeval_hard", "2024-06-01")
    assert mixeval_benchmark("mixeval.jsonl") == ("mixeval", "mixeval")
    assert mixeval_benchmark("my-prompts.jsonl") == ("mixeval", "my-prompts")


def test_prompts_of_other_sets_become_free_form_entries(tmp_path):
    alpaca, mixeval = written(tmp_path, [prompt("a", "3 + 4?", answer=7), prompt("b", "Hi")], ["7", "Ho"], "mine.jsonl")
    assert alpaca[1] == {"instruction": "Hi", "output": "Ho", "generator": "tuned", "dataset": "mine.jsonl"}
    rows = mixeval["local_chat/mixeval/mine/local_chat_close_freeform.jsonl"]
    assert [row["target"] for row in rows] == [["7"], []]
    assert rows[0]["response"] == "7"
    assert rows[0]["benchmark_name"] == "mine.jsonl"


def test_which_sets_are_judged():
    assert is_judged_set("alpaca_eval", alpaca_eval_prompts())
    assert is_judged_set("entries.jsonl", [prompt("12", "?", **ENTRY)])
    assert not is_judged_set("mine.jsonl", [prompt("a", "3 + 4?", answer=7)])
