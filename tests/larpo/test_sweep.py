"""Measures of models from their responses, tables and the page."""

import re
from dataclasses import replace

import pytest

from larpo.answers import answer_reader
from larpo.config import Config
from larpo.errors import DataError
from larpo.evaluation import columns
from larpo.reward_config import Reward
from larpo.sweep import ModelAnswers, cutoffs_of, differences, intervals, measures
from larpo.sweep_page import sweep_page
from larpo.sweep_tables import format_results, recall_rows
from larpo.types import Message, Prompt

DRAWN = {"resamples": 200, "seed": 0}


def config_of(**sweep) -> Config:
    return Config.model_validate({"evaluation": {"sweep": {"samples": 2, "cutoffs": [1, 2, 50], **sweep}}})


@pytest.fixture
def answers_of(make_list):
    """`answers_of(name, config, rewards)`: for each prompt the greedy reward, then those of the samples."""

    def make(name, config, *rewards_P):
        temperatures, samples = config.evaluation.sweep.temperatures, config.evaluation.sweep.samples
        order = [0.0, *(t for t in temperatures for _ in range(samples))]
        lists = []
        for number, rewards in enumerate(rewards_P):
            item = make_list(number, lengths=[3 + place for place in range(len(rewards))], rewards=rewards)
            placed = zip(item.candidates, order, strict=True)
            texts = tuple(c.replace(temperature=t, text=f"it is {c.reward:.0f}") for c, t in placed)
            prompt = replace(item.prompt, answer_key={"task": "t", "answer": "1"})
            lists.append(item.replace(prompt=prompt, candidates=texts))
        return ModelAnswers.of(name, lists, config.evaluation.sweep)

    return make


def test_measures_by_hand(answers_of):
    config = config_of(temperatures=[0.7, 1.0], acceptable=0.5)
    found = measures(answers_of("a", config, [1.0, 0.0, 1.0, 0.0, 0.4], [0.0, 0.0, 0.0, 2.0, 1.0]), config)
    assert {name: values.tolist() for name, values in found.items() if name.startswith("greedy")} == {
        "greedy/reward": [1.0, 0.0],
        "greedy/correct": [1.0, 0.0],
        "greedy/tokens": [3.0, 3.0],
        "greedy/cut_off": [0.0, 0.0],
    }
    assert found["T=0.7/reward"].tolist() == [0.5, 0.0]
    assert found["T=0.7/recall@1"].tolist() == [0.5, 0.0]
    assert found["T=0.7/recall@2"].tolist() == [1.0, 0.0]
    assert found["T=1/recall@2"].tolist() == [0.0, 1.0]
    assert found["T=1/best_reward@2"].tolist() == [0.4, 2.0]
    assert found["T=1/tokens"].tolist() == [6.5, 6.5]
    # "it is 0" twice: one answer, wrong; then 2 and 1 tie, both right.
    assert found["T=1/majority@2"].tolist() == [0.0, 1.0]


def test_votes_need_answers():
    assert answer_reader(Reward(name="ifeval")) is None
    assert answer_reader(Reward(kind="http")) is None
    read = answer_reader(Reward(name="gsm8k"))
    assert read is not None
    prompt = Prompt("p", (Message("user", "?"),))
    assert [read(prompt, text) for text in ("so 1,800.0", "= 1800", "none")] == ["1800", "1800", None]


def test_votes_over_answers_that_are_no_numbers_are_over_what_the_scorer_reads():
    read = answer_reader(Reward(name="reasoning_gym"))
    assert read is not None
    words = Prompt("w", (Message("user", "Sort: b, a 1"),), answer_key={"task": "t", "answer": "a 1, b"})
    assert [read(words, text) for text in ("It is 1.\nb, a 1", "<answer>a 1, b</answer> 7", "")] == [
        "b, a 1",
        "a 1, b",
        None,
    ]
    numbers = Prompt("n", (Message("user", "2 + 2?"),), answer_key={"task": "t", "answer": "4"})
    assert [read(numbers, text) for text in ("so 4.0", "<answer>4</answer>", "four")] == ["4", "4", None]


def test_cutoffs_above_the_samples_are_left_out():
    assert cutoffs_of(config_of().evaluation.sweep) == (1, 2)
    assert cutoffs_of(config_of(cutoffs=[50]).evaluation.sweep) == (2,)


def test_intervals_and_paired_differences(answers_of):
    config = config_of()
    first = measures(answers_of("a", config, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]), config)
    other = measures(answers_of("b", config, [0.5, 0.5, 0.5], [1.5, 1.5, 1.5]), config)
    mean, low, high = intervals(first, **DRAWN)["greedy/reward"]
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    assert differences(first, other, **DRAWN)["greedy/reward"] == (0.5, 0.5, 0.5)


def test_other_responses_than_asked_for_are_refused(make_list):
    greedy, *sampled = make_list(0, lengths=(3, 4, 5)).candidates
    item = make_list(0).replace(candidates=(greedy.replace(temperature=0.0), *sampled))
    assert len(ModelAnswers.of("a", [item], config_of().evaluation.sweep).greedy_P) == 1
    unranked = item.replace(candidates=(*item.candidates[:2], item.candidates[2].replace(reward=None)))
    for lists, samples in (([item], 3), ([item.replace(candidates=item.candidates[1:])], 2), ([unranked], 2)):
        with pytest.raises(DataError, match=f"not one greedy and {samples} samples"):
            ModelAnswers.of("a", lists, config_of(samples=samples).evaluation.sweep)


@pytest.fixture
def results(answers_of):
    """Of two models, by hand where no sampling is needed."""
    config = config_of(temperatures=[0.7, 1.0])
    answers = [
        answers_of("<base>", config, [0.0, 0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0, 1.0]),
        answers_of("tuned", config, [1.0, 0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0, 1.0]),
    ]
    values = {of_model.name: measures(of_model, config) for of_model in answers}
    third = [0.5, 0.25, 0.75]
    quality = {"ndcg": third, "rr": third, "tau": third}
    return (
        {
            "prompts": 2,
            "reward": "toy",
            "models": {name: {"measures": intervals(of, **DRAWN)} for name, of in values.items()},
            "differences": {"tuned": differences(values["<base>"], values["tuned"], **DRAWN)},
            "win_rates": {"tuned": {"raw": third, "length_controlled": third, "length_weight": 0.1}},
            "ranking": {"models": {"<base>": {"log_pi": quality}, "tuned": {"log_pi": quality, "gamma": quality}}},
            "notes": ["something was left out"],
            "judges": ["tuned: no judge"],
        },
        answers,
        config.evaluation.sweep,
    )


def test_the_tables_have_a_row_a_model_and_temperature(results):
    text = format_results(results[0], results[2])
    assert len(re.findall(r"^tuned +(?:0\.7|1)  0.*\[.*\]", text, flags=re.MULTILINE)) == 2
    assert re.search(r"^tuned - <base> +0\.7 .*\+0\.", text, flags=re.MULTILINE)
    assert re.search(r"^tuned +<base> +50\.0% \[25\.0%, 75\.0%\]", text, flags=re.MULTILINE)
    assert re.search(r"^tuned +gamma +0\.500 \[0\.250, 0\.750\]", text, flags=re.MULTILINE)
    assert "something was left out" in text


def test_recall_best_of_n_and_votes_have_intervals_and_n_goes_down_the_rows(results):
    found, _, sweep = results
    header, *rows = recall_rows(found, sweep)
    assert header == ("model", "T", "N", "Recall@N", "best reward of N", "majority vote right")
    assert [row[:3] for row in rows[:4]] == [("<base>", t, n) for t in ("0.7", "1") for n in ("1", "2")]
    # At T = 0.7 the base policy's samples are worth 0, 1 and 0, 0: Recall@1 is 1/4, Recall@2 1/2.
    assert [row[3] for row in rows[:2]] == ["0.250 [0.000, 0.500]", "0.500 [0.000, 1.000]"]
    assert all(re.fullmatch(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", cell) for row in rows for cell in row[3:])


def test_the_table_of_many_cutoffs_and_every_pick_fits_a_wide_terminal():
    kinds, cutoffs = ("recall", "best_reward", "reranked", "majority"), (1, 2, 5, 10, 20, 50, 100)
    sweep = config_of(samples=100, cutoffs=cutoffs, temperatures=[0.7]).evaluation.sweep
    measures = {f"T=0.7/{kind}@{n}": [0.5, 0.25, 0.75] for kind in kinds for n in cutoffs}
    rows = recall_rows({"models": {"instruct": {"measures": measures}}}, sweep)
    assert rows[0][3:] == ("Recall@N", "best reward of N", "reranked best right", "majority vote right")
    assert len(rows) == 1 + len(cutoffs)
    assert max(map(len, columns(rows))) <= 120


def test_the_page_is_whole_and_escapes_what_models_say(results):
    found, answers, sweep = results
    questions = {name: f"<script>{name}" for name in (prompt.id for prompt in answers[0].prompts)}
    page = sweep_page(found, answers, questions, "a: 1", sweep)
    assert page.count("<img") == 1 + 2 + 1 + 2  # by model, by temperature, reward, picking
    assert "<script>" not in page
    assert "&lt;base&gt;" in page
    for text in ("something was left out", "tuned: no judge", "Kendall tau", "length-controlled"):
        assert text in page
