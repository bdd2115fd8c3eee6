"""The command that trains reward models: what it says before it starts anything."""

import json

from scripts.train_reward import main


def test_a_dry_run_of_the_bundled_recipe_starts_nothing(capsys, tmp_path):
    assert main(["minilm-reward", "--dry-run", f"run.output_dir={tmp_path}", "training.lists_per_step=10"]) == 0
    out = capsys.readouterr().out
    assert "83 held out" in out  # of 100: the others are too long
    assert "lists_per_step: 10" in out
    assert not list(tmp_path.iterdir())


def test_mistakes_end_it_with_the_knob_and_the_next_step(capsys, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Q", "chosen": "a", "rejected": "b"}) + "\n")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"preferences: {{source: {rows}, heldout_count: 1, "
        "columns: {prompt: prompt, chosen: chosen, rejected: rejected}}\n"
    )

    def error(*arguments):
        assert main([*arguments, f"run.output_dir={tmp_path / 'runs'}"]) == 2
        return capsys.readouterr().err

    assert "preferences.heldout_count = 1 cannot be had" in error(str(recipe))
    assert "there is no such folder" in error(str(recipe), "base.model=./nowhere")
    assert "did you mean training.epochs?" in error("minilm-reward", "training.epoch=2")
    assert "no recipe is called" in error("minilm-rewards")
    assert main([]) == 2
    assert main(["--resume", str(tmp_path)]) == 2
    assert "it has no config.yaml" in capsys.readouterr().err
