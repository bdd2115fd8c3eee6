"""A run's lists on the terminal and in the forms that other tools read."""

from dataclasses import replace

import datasets
import pytest

from larpo.recipe import config_to_yaml, load_config
from larpo.records import read_lists, write_part
from larpo.types import Message
from scripts.lists import main


@pytest.fixture
def run(tmp_path, make_list):
    """Two iterations; the second holds a list of three and one whose rewards are all equal."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = load_config("quickstart", ["lists.selection.policy=best_vs_worst"])
    (folder / "config.yaml").write_text(config_to_yaml(config))
    write_part(folder / "lists", [make_list(0), make_list(1)], 0, 0)
    second = [make_list(2, (3, 4, 5), (1.0, 0.5, 0.5), iteration=1), make_list(3, (3, 3), (0.0, 0.0), iteration=1)]
    write_part(folder / "lists", second, 1, 0)
    return folder


def load(path):
    kind = "json" if path.suffix == ".jsonl" else "parquet"
    return list(datasets.load_dataset(kind, data_files=str(path), split="train"))


def test_lists_are_shown_prompt_by_prompt(run, capsys):
    assert main([str(run), "--iteration", "2"]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("p2", "p3", "question 2", "answer 2 1", "0.500"))
    assert "p0" not in shown
    assert main([str(run), "--prompt", "p1"]) == 0
    shown = capsys.readouterr().out
    assert "answer 1 0" in shown
    assert "answer 0" not in shown


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_pairs_are_a_preference_dataset_of_trl(run, tmp_path, ending):
    file = tmp_path / f"pairs{ending}"
    assert main([str(run), "--export", "pairs", str(file)]) == 0
    rows = load(file)
    best_against_worst = ["0000/p0/0 > 0000/p0/1", "0000/p1/0 > 0000/p1/1", "0001/p2/0 > 0001/p2/2"]
    assert [row["id"] for row in rows] == best_against_worst
    assert rows[0]["prompt"] == [{"role": "user", "content": "question 0"}]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "answer 0 0"}]
    assert rows[2]["rejected"] == [{"role": "assistant", "content": "answer 2 2"}]
    data_utils = pytest.importorskip("trl.data_utils")
    assert data_utils.is_conversational(rows[0])


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("section", ["prompts", "preferences"])
@pytest.mark.parametrize("trained", [[], ["--trained"]])
def test_the_prompt_of_a_row_is_the_one_that_was_answered(run, tmp_path, capsys, section, trained):
    """With the recipe's system turn; the lists on disk have the prompt as its dataset has it."""
    recipe = "quickstart" if section == "prompts" else "offline-arithmetic"
    config = load_config(recipe, [f"{section}.system={SYSTEM['content']}"])
    (run / "config.yaml").write_text(config_to_yaml(config))
    assert main([str(run), *trained, "--limit", "1"]) == 0
    assert "system Be brief." in capsys.readouterr().out
    for form in ("pairs", "ranked"):
        file = tmp_path / f"{form}.jsonl"
        assert main([str(run), *trained, "--export", form, str(file)]) == 0
        assert load(file)[0]["prompt"] == [SYSTEM, {"role": "user", "content": "question 0"}]
    assert [message.role for message in next(iter(read_lists(run / "lists"))).prompt.messages] == ["user"]


def test_a_prompt_s_own_system_turn_stays(run, tmp_path, make_list):
    item = make_list(4, iteration=2)
    own = (Message("system", "Rhyme."), *item.prompt.messages)
    write_part(run / "lists", [item.replace(prompt=replace(item.prompt, messages=own))], 2, 0)
    config = load_config("quickstart", ["prompts.system=Be brief."])
    (run / "config.yaml").write_text(config_to_yaml(config))
    assert main([str(run), "--iteration", "3", "--export", "pairs", str(tmp_path / "own.jsonl")]) == 0
    (row,) = load(tmp_path / "own.jsonl")
    assert [message["content"] for message in row["prompt"]] == ["Rhyme.", "question 4"]


def test_all_pairs_are_those_whose_rewards_differ(run, tmp_path):
    assert main([str(run), "--iteration", "2", "--export", "all-pairs", str(tmp_path / "all.jsonl")]) == 0
    pairs = [(row["chosen_reward"], row["rejected_reward"]) for row in load(tmp_path / "all.jsonl")]
    assert pairs == [(1.0, 0.5), (1.0, 0.5)]


def test_ranked_lists_keep_their_rewards_and_trained_ones_their_selection(run, tmp_path):
    assert main([str(run), "--export", "ranked", str(tmp_path / "all.parquet")]) == 0
    assert [row["rewards"] for row in load(tmp_path / "all.parquet")][2:] == [[1.0, 0.5, 0.5], [0.0, 0.0]]
    assert main([str(run), "--trained", "--export", "ranked", str(tmp_path / "trained.parquet")]) == 0
    trained = load(tmp_path / "trained.parquet")
    assert [(row["id"], len(row["responses"])) for row in trained] == [("0000/p0", 2), ("0000/p1", 2), ("0001/p2", 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}/lists"], "is no run folder"),
        (["{run}", "--iteration", "7"], "no list of the run"),
        (["{run}", "--export", "triples", "{run}/x.jsonl"], "--export triples: choose one of pairs"),
        (["{run}", "--export", "pairs", "{run}/x.csv"], "has the ending '.csv'"),
        (["{run}", "--export", "pairs", "{run}/config.yaml"], "has the ending '.yaml'"),
        (["{run}", "--prompt", "p3", "--export", "pairs", "{run}/x.jsonl"], "no two responses with different rewards"),
    ],
)
def test_what_cannot_be_done_is_said(run, capsys, arguments, message):
    assert main([argument.format(run=run) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_overwritten(run, tmp_path, capsys):
    file = tmp_path / "mine.jsonl"
    file.write_text("mine")
    assert main([str(run), "--export", "ranked", str(file)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert file.read_text() == "mine"
