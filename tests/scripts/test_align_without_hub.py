"""A recipe with models and datasets of the hub, planned where the hub cannot be reached."""

import pytest

from larpo.recipe import arms, bundled_recipes
from scripts import sft
from scripts.align import main

PAPER = [name for name in bundled_recipes() if name.startswith("paper-") and arms(name)]


@pytest.mark.parametrize("name", PAPER)
def test_every_experiment_of_the_paper_passes_a_dry_run(name, capsys):
    for arm in arms(name):
        assert main([f"{name}:{arm}", "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert f"plan of {name}-{arm}" in said
        assert "GPU that the recipe is meant for" in said
        assert "not checked   what the hub has:" in said


def test_a_run_needs_the_hub(capsys):
    assert main(["paper-table-3:listmle.gemma-2-2b"]) == 2
    assert "FsfairX-LLaMA3-RM-v0.1': cannot be had from the hub" in capsys.readouterr().err


def test_a_plan_that_its_own_cluster_cannot_hold_is_refused(capsys):
    assert main(["paper-table-3:listmle.gemma-2-2b", "--dry-run", "cluster={CPU: 160, GPU: 8}"]) == 2
    assert "16 GPU needed, 8 there" in capsys.readouterr().err


def test_the_first_stage_of_table_6_passes_a_dry_run(capsys):
    assert sft.main(["paper-table-6-sft", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "meta-math/MetaMathQA" in said
    assert "samplers  " not in said.split("plan of", 1)[1]
