"""The benchmark of the control plane: every list is consumed once, and what it measured is told."""

import asyncio
import json
import re

import pytest

from larpo.records import read_lists
from scripts.bench import main
from scripts.benchmarks.control import profile
from scripts.benchmarks.simulated import CANDIDATES, Size, iteration_seconds


@pytest.mark.parametrize(("samplers", "ranks"), [(1, 1), (8, 3)])
def test_a_simulated_iteration_consumes_every_list(tmp_path, samplers, ranks):
    assert asyncio.run(iteration_seconds(tmp_path, Size(samplers, ranks, 40))) > 0
    lists = list(read_lists(tmp_path / "lists"))
    assert sorted(item.prompt.id for item in lists) == sorted(f"p{number}" for number in range(40))
    assert {len(item.candidates) for item in lists} == {CANDIDATES}


def test_without_writing_nothing_is_on_disk(tmp_path):
    assert asyncio.run(iteration_seconds(tmp_path, Size(2, 1, 40, on_disk=False))) > 0
    assert not (tmp_path / "lists").exists()


def test_a_profile_names_functions_and_their_shares():
    lines = profile(Size(2, 1, 40))
    assert all("%" in line and "calls" in line for line in lines)


def test_the_benchmark_tells_rates_costs_and_flatness_and_draws_them(tmp_path):
    command = f"control --samplers 2,4 --ranks 1,2 --lists 64 --repetitions 2 --out {tmp_path}"
    assert main(command.split()) == 0
    found = json.loads((tmp_path / "control.json").read_text())
    rates = [row for row in found["comparisons"] if row["other"]["label"] == "target"]
    assert [row["what"] for row in rates] == [f"{s} samplers, {r}" for r in ("1 rank", "2 ranks") for s in (2, 4)]
    assert all(len(rate["ours"]["values"]) == 2 and min(rate["ours"]["values"]) > 0 for rate in rates)
    assert [row["what"] for row in found["comparisons"][-2:]] == [
        "4 samplers, 1 rank: flat",
        "4 samplers, 2 ranks: flat",
    ]
    assert re.fullmatch(
        r"a list costs \d+ to \d+ us, of which writing it to disk is -?\d+% to -?\d+%", found["notes"][0]
    )
    assert (tmp_path / "control.png").read_bytes().startswith(b"\x89PNG")
