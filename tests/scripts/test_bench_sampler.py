"""Benchmarks of real samplers and of a real start, on a policy that is small enough for it."""

import json

import pytest

from larpo.errors import ConfigError
from scripts.bench import main
from scripts.benchmarks.measuring import BenchmarkError
from scripts.benchmarks.sampler import Sampling, _rates
from scripts.benchmarks.sampler_pool import random_prompts
from scripts.benchmarks.startup import (
    FIRST_LIST,
    FIRST_STEP,
    FIRST_TOKEN,
    PHASES,
    SMALLER,
    moments,
    one_start,
    read_records,
    run_startup,
)
from scripts.benchmarks.weights import copy_seconds, layers_for, write_larger
from tests.toy_runs import write_toy


def test_prompts_of_the_same_seed_are_the_same_and_of_others_not():
    one = random_prompts(3, 5, 50, seed=1)
    assert one == random_prompts(3, 5, 50, seed=1)
    assert one != random_prompts(3, 5, 50, seed=2)
    assert [len(ids) for ids in one] == [5] * 3


def test_a_side_that_gives_fewer_tokens_than_asked_for_is_refused():
    work = Sampling("folder", "float32", prompts=2, repetitions=2, prompt_tokens=4, response_tokens=5, responses=3)
    assert work.tokens == 2 * 3 * 5
    assert _rates("larpo", work, [(9.0, 30), (2.0, 30), (3.0, 30)], True).values == (30 / 2, 30 / 3)
    assert _rates("larpo", work, [(9.0, 30), (2.0, 29), (3.0, 28)], False).values == (29 / 2, 28 / 3)
    with pytest.raises(BenchmarkError, match=r"larpo gave \[29\] tokens in a repetition, where 30 were asked for"):
        _rates("larpo", work, [(9.0, 30), (2.0, 29), (3.0, 30)], True)


def test_a_larger_model_has_as_many_layers_as_come_nearest():
    assert [layers_for(wanted, one=30, two=40) for wanted in (20, 30, 44, 46, 100)] == [1, 1, 2, 3, 8]
    with pytest.raises(ConfigError, match="less than one layer"):
        layers_for(10, one=30, two=40)


def test_a_larger_model_is_written_near_the_size_asked_for(tiny_policy, tmp_path):
    target = tmp_path / "larger"
    write_larger({"source": str(tiny_policy), "target": str(target), "dtype": "float32", "gib": 0.03})
    size = sum(file.stat().st_size for file in target.glob("*.safetensors")) / 2**30
    assert size == pytest.approx(0.03, rel=0.2)
    assert json.loads((target / "config.json").read_text())["hidden_size"] == 4 * 128
    assert copy_seconds(target) > 0


def test_moments_of_a_start_are_the_first_of_each_and_none_until_all_are_there():
    def span(actor, kind, start, end):
        return {"event": "span", "time": end + 1, "actor": actor, "kind": kind, "start": start, "end": end}

    records = [
        {"event": "start", "time": 101.0},
        {"event": "prompts", "time": 102.0},
        span("sampler-0", "start", 103.0, 110.0),
        span("trainer-0", "start", 103.0, 112.0),
        span("sampler-0", "sample", 111.0, 115.0),
        {"event": "sampler", "time": 111.5, "sampler/first_token_seconds": 0.0},
        {"event": "sampler", "time": 113.0, "sampler/first_token_seconds": 0.5},
        {"event": "lists", "time": 114.0},
        {"event": "lists", "time": 116.0},
        {"event": "step", "time": 118.5, "train/step_seconds": 2.0},
        {"event": "step", "time": 119.5, "train/step_seconds": 1.0},
        span("trainer-0", "train", 116.0, 119.0),  # both steps, told as one
    ]
    assert moments(records[:-1], 100.0) == {}
    assert tuple(moments(records, 100.0)) == PHASES
    assert tuple(moments(records, 100.0).values()) == (2.0, 10.0, 12.0, 11.5, 14.0, 18.0)


def test_the_first_start_fills_the_caches_and_does_not_count(monkeypatch):
    starts = iter([{name: base + place for place, name in enumerate(PHASES)} for base in (90.0, 10.0, 12.0)])
    asked = []
    monkeypatch.setattr(
        "scripts.benchmarks.startup.one_start", lambda arguments: asked.append(arguments) or next(starts)
    )
    found = run_startup("some/recipe.yaml", "folder/policy", 2)
    assert [row.ours.values for row in found.comparisons] == [(13.0, 15.0), (14.0, 16.0), (15.0, 17.0)]
    assert [note.split(maxsplit=1)[1] for note in found.notes[1:]] == list(PHASES)
    assert asked == [["some/recipe.yaml", "policy.model=folder/policy", *SMALLER]] * 3


def test_a_record_that_is_still_being_written_is_not_read(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_records(file) == []
    file.write_text('{"event": "start", "time": 1.0}\n{"event": "pro')
    assert read_records(file) == [{"event": "start", "time": 1.0}]


def test_a_start_that_cannot_be_is_told_with_its_log():
    with pytest.raises(BenchmarkError, match=r"(?s)no optimizer step came of .*no-such-recipe"):
        one_start(["no-such-recipe"])


def results(folder, name):
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["machine"]
    return found["comparisons"], found["notes"]


@pytest.mark.slow
def test_the_pool_and_bare_vllm_give_as_many_tokens(tiny_policy, tmp_path):
    command = f"sampler --policy {tiny_policy} --prompts 12 --shape 40,20 --repetitions 2 --out {tmp_path}"
    assert main(command.split()) == 0
    rows, _ = results(tmp_path, "sampler")
    assert [row["what"].split(" prompts")[0] for row in rows] == ["12", "36"]
    for row in rows:
        assert (row["unit"], row["target"], row["other"]["label"]) == ("tokens/s", ">= 0.97", "vLLM")
        assert [len(row[side]["values"]) for side in ("ours", "other")] == [2, 2]
        assert min(row["ours"]["values"] + row["other"]["values"]) > 0


@pytest.mark.slow
def test_publications_reach_samplers_that_are_at_work(tiny_policy, tmp_path):
    command = f"weights --policy {tiny_policy} --gib 0 --repetitions 2 --out {tmp_path}"
    assert main(command.split()) == 0
    rows, notes = results(tmp_path, "weights")
    assert [row["unit"] for row in rows] == ["s", "bytes/s a sampler", "bytes/s a sampler"]
    assert [row["other"]["label"] for row in rows] == ["target", "target", "plain copy"]
    assert all(len(row["ours"]["values"]) == 2 and min(row["ours"]["values"]) > 0 for row in rows)
    assert [note.split(":")[0] for note in notes] == ["1 MB"]


@pytest.mark.slow
def test_a_start_is_told_in_its_order(tiny_policy, tmp_path, monkeypatch):
    write_toy(tmp_path, tiny_policy)
    monkeypatch.setenv("PYTHONPATH", f".:{tmp_path}")
    found = one_start([str(tmp_path / "recipe.yaml"), f"policy.model={tiny_policy}", *SMALLER])
    assert tuple(found) == PHASES
    assert 0 < found[FIRST_TOKEN] < found[FIRST_LIST] < found[FIRST_STEP]
