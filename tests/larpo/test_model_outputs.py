"""The files of other judges: keys and values as their own documentation has them."""

import json

from larpo.model_outputs import is_judged_set, write_outputs
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


def prompt(identity, text, **key):
    return Prompt(identity, (Message("system", "be kind"), Message("user", text)), "", key)


def written(folder, prompts, responses, source):
    alpaca = write_outputs(folder, "tuned", prompts, responses, source)
    lines = (folder / "tuned.mixeval.jsonl").read_text().splitlines()
    return json.loads(alpaca.read_text()), [json.loads(line) for line in lines]


def test_alpaca_eval_outputs_have_the_keys_of_its_own_reference_file(tmp_path):
    prompts = alpaca_eval_prompts()
    alpaca, _ = written(tmp_path, prompts, [f"answer {n}" for n in range(805)], "alpaca_eval")
    assert len(alpaca) == 805
    assert {tuple(sorted(row)) for row in alpaca} == {("dataset", "generator", "instruction", "output")}
    assert {row["dataset"] for row in alpaca} == {"helpful_base", "koala", "oasst", "selfinstruct", "vicuna"}
    assert alpaca[7]["output"] == "answer 7"
    assert alpaca[7]["instruction"] == prompts[7].messages[-1].content
    assert {row["generator"] for row in alpaca} == {"tuned"}


def test_a_mixeval_entry_comes_back_whole_with_its_response(tmp_path):
    prompts = [prompt("12", ENTRY["formated_input"], **ENTRY)]
    _, mixeval = written(tmp_path, prompts, ["It measures\npressure – “gauge”."], "entries.jsonl")
    assert mixeval == [{"id": "12", **ENTRY, "response": "It measures\npressure – “gauge”."}]


def test_prompts_of_other_sets_become_free_form_entries(tmp_path):
    alpaca, mixeval = written(tmp_path, [prompt("a", "3 + 4?", answer=7), prompt("b", "Hi")], ["7", "Ho"], "mine.jsonl")
    assert alpaca[1] == {"instruction": "Hi", "output": "Ho", "generator": "tuned", "dataset": "mine.jsonl"}
    assert [row["target"] for row in mixeval] == [["7"], []]
    assert mixeval[0]["response"] == "7"
    assert mixeval[0]["benchmark_name"] == "mine.jsonl"


def test_which_sets_are_judged():
    assert is_judged_set("alpaca_eval", alpaca_eval_prompts())
    assert is_judged_set("entries.jsonl", [prompt("12", "?", **ENTRY)])
    assert not is_judged_set("mine.jsonl", [prompt("a", "3 + 4?", answer=7)])
