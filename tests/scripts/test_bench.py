"""Benchmarks: what is measured is measured on both sides alike, and told as it is."""

import json
import os

import pytest

from scripts.bench import main, parser
from scripts.benchmarks.lists import random_list
from scripts.benchmarks.measuring import (
    BenchmarkError,
    Comparison,
    Result,
    Series,
    in_own_process,
    in_turns,
    peak_beyond_gib,
    table,
)


def fine(settings):
    return {"pid": os.getpid(), **settings}


def failing(settings):
    raise ValueError("a stone")


def leaving(settings):
    os._exit(7)


@pytest.mark.parametrize(
    ("ours", "other", "target", "ratio", "met"),
    [
        ((2.0, 9.0, 4.0), (2.0, 2.0, 2.0), ">= 1.8", 2.0, True),
        ((1.0,), (2.0,), ">= 0.97", 0.5, False),
        ((1.0,), (2.0,), "<= 0.5", 0.5, True),
        ((3.0,), (2.0,), "<= 1.05", 1.5, False),
        ((3.0,), (2.0,), "", 1.5, None),
    ],
)
def test_a_ratio_is_one_of_medians_and_meets_its_target_or_does_not(ours, other, target, ratio, met):
    row = Comparison("x", "s", Series("larpo", ours), Series("bare", other), target)
    assert (row.ratio, row.met) == (ratio, met)
    (told,) = table(Result("x", {}, (row,)))
    assert told[0] == "x"
    assert ("met" in told[-1], "missed" in told[-1]) == (met is True, met is False)


def test_sides_take_turns_and_warm_ups_do_not_count():
    order, numbers = [], iter(range(100))

    def side(name):
        def run():
            order.append(name)
            return float(next(numbers))

        return run

    found = in_turns({"a": side("a"), "b": side("b")}, repetitions=2, warm_ups=1)
    assert order == ["a", "b"] * 3
    assert found["a"].values == (2.0, 4.0)
    assert found["b"].values == (3.0, 5.0)


def test_a_side_runs_in_a_process_of_its_own_and_its_failure_is_told():
    found = in_own_process(fine, {"k": 2})
    assert found["k"] == 2
    assert found["pid"] != os.getpid()
    with pytest.raises(BenchmarkError, match=r"(?s)failing failed: .*ValueError: a stone"):
        in_own_process(failing, {})
    with pytest.raises(BenchmarkError, match="leaving ended with exit code 7 and no result"):
        in_own_process(leaving, {})


def grows_by_96_mib(settings):
    held = bytearray(64 * 2**20)
    held[:: 2**12] = b"x" * (len(held) // 2**12)

    def work():
        more = bytearray(96 * 2**20)
        more[:: 2**12] = b"x" * (len(more) // 2**12)
        return len(more)

    return peak_beyond_gib(work)


def test_memory_is_counted_beyond_what_was_held_before():
    # In a process of its own, as a benchmark is: one that ran long may have such a piece free, and grows by nothing.
    peak, size = in_own_process(grows_by_96_mib, {})
    assert size == 96 * 2**20
    assert 90 / 1024 < peak < 120 / 1024


def test_lists_of_the_same_number_are_the_same():
    one = random_list(3, 4, 50, prompt_tokens=5, response_tokens=7)
    assert one == random_list(3, 4, 50, prompt_tokens=5, response_tokens=7)
    assert one != random_list(4, 4, 50, prompt_tokens=5, response_tokens=7)
    assert [len(c.token_ids) for c in one.candidates] == [7] * 4
    assert [c.reward for c in one.candidates] == [4.0, 3.0, 2.0, 1.0]


def test_results_are_told_as_the_readme_has_them(tmp_path, capsys):
    assert main(["table", "--out", str(tmp_path)]) != 0
    assert "holds no result" in capsys.readouterr().err
    rows = Comparison("a step", "lists/s", Series("larpo", (4.0, 6.0)), Series("TRL", (2.0,)), ">= 3")
    for name in ("memory", "trainer"):
        (tmp_path / f"{name}.json").write_text(Result(name, {}, (rows,)).to_json())
    assert main(["table", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("| benchmark | compared | larpo |")
    row = "| a step | 5 lists/s (4 to 6) | TRL: 2 lists/s (2 to 2) | 2.5 | >= 3 (missed) |"
    assert told[2:4] == [f"| `trainer` {row}", f"| `memory` {row}"]
    assert told[5].startswith("`trainer`, `memory`: ")
    assert len(told) == 6


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["fastest"])
    assert caught.value.code == 2
    assert "trainer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--shape 1,2,3", "'1,2,3' are 3 numbers; give two"),
        ("--sizes 2,x", "'x' is no count"),
        ("--repetitions 0", "'0' is no count; give 1 or more"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused(words, told, capsys):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["trainer", *words.split()])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_steps_of_both_trainers_minimise_the_same_function(tiny_policy, tmp_path):
    """In float32, where `both_sides` refuses losses that are apart; the note has what each side's were."""
    command = f"trainer memory --policy {tiny_policy} --sizes 4 --shape 40,20 --logit-tokens 2048"
    command += f" --dtype float32 --repetitions 1 --out {tmp_path}"  # bfloat16 takes the sides' steps apart
    assert main(command.split()) == 0
    speed, memory = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("trainer", "memory"))
    step, passes = speed["comparisons"]
    assert (step["unit"], len(step["ours"]["values"]), len(step["other"]["values"])) == ("lists/s", 1, 1)
    assert min(step["ours"]["values"] + step["other"]["values"] + passes["ours"]["values"]) > 0
    told = speed["notes"][0].removeprefix("k = 4: losses of the steps in float32: ").split("; TRL's: ")
    ours, theirs = ([float(loss) for loss in side.split(", ")] for side in told)
    assert ours == pytest.approx(theirs, rel=0.01)  # told in three digits
    assert 0.2 < memory["comparisons"][0]["ours"]["values"][0] < 20
    assert memory["comparisons"][1]["what"] == "peak of log-probabilities, 2048 response tokens, vocabulary 260"
    assert memory["settings"]["repetitions"] == len(memory["comparisons"][0]["other"]["values"]) == 1
    assert memory["machine"]
    assert memory["commit"]


@pytest.mark.slow
def test_lists_that_share_rows_take_the_steps_of_those_that_do_not(tiny_policy, tmp_path):
    assert main(f"rows --policy {tiny_policy} --repetitions 2 --out {tmp_path}".split()) == 0
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [row["what"].rpartition(", ")[2] for row in found["comparisons"]] == ["rows of 1024", "rows of 2048"]
    assert all(len(row[side]["values"]) == 2 for row in found["comparisons"] for side in ("ours", "other"))
    assert "apart" in found["notes"][0]


def test_what_float32_weights_learn_is_seen_in_bfloat16(tiny_policy, tmp_path):
    assert main(f"rounding --policy {tiny_policy} --repetitions 2 --out {tmp_path}".split()) == 0
    (row,) = json.loads((tmp_path / "rounding.json").read_text())["comparisons"]
    assert row["ours"]["values"] == [pytest.approx(1, abs=0.3)] * 2
    assert row["other"]["values"][0] < 0.6
