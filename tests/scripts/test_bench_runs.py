"""The benchmarks of whole runs: what is counted of a run, and real runs of a tiny policy on both sides."""

import json
from pathlib import Path

import pytest

from larpo.busy import Span
from larpo.config import Config
from larpo.errors import ConfigError
from larpo.recipe import load_config
from larpo.run_log import make_run_log
from scripts.bench import main
from scripts.benchmarks.job import Told, check_recipe
from scripts.benchmarks.overlap import ONE_CORE_EACH, overlapping_modes, phases_alone
from scripts.benchmarks.runs import QUIET, by_kind, from_first_to_last, sampled_tokens, worked
from tests.toy_runs import write_toy

SPANS = [
    Span("sampler-0", "start", 0.0, 30.0),
    Span("sampler-0", "sample", 30.0, 40.0),
    Span("reward-0", "rank", 38.0, 42.0),
    Span("trainer-0", "wait", 30.0, 42.0),
    Span("trainer-0", "train", 42.0, 50.0),
    Span("trainer-0", "publish", 50.0, 51.0),
]


def test_phases_alone_leave_out_starting_and_waiting():
    records = [{"time": 0.0, "event": "span", **vars(span)} for span in SPANS]
    assert phases_alone(make_run_log(records)) == (12.0, 9.0)
    assert from_first_to_last(SPANS) == 51.0 - 30.0
    assert worked(SPANS, "nobody") == from_first_to_last(SPANS[:1]) == 0
    assert by_kind(SPANS[1:3]) == "reward rank 4.0 s, sampler sample 10.0 s"


def test_the_modes_are_those_of_the_configuration():
    assert overlapping_modes() == ("stream", "async")


def test_the_knobs_that_are_set_for_a_run_are_knobs():
    config = load_config("quickstart", [*ONE_CORE_EACH, *QUIET])
    assert (config.samplers.cpu_cores, config.training.threads, config.prompts.heldout_count) == ("0", 1, 0)


def test_tokens_of_the_memory_do_not_count(tmp_path, make_list):
    from larpo.memory import as_remembered
    from larpo.records import write_part

    item = make_list(0, lengths=(7, 3))
    kept, old = item.candidates
    write_part(tmp_path, [item.replace(candidates=(kept, as_remembered(old)))], 0, 0)
    assert sampled_tokens(tmp_path) == 7


def test_responses_are_dealt_over_the_temperatures():
    several = Config.model_validate({"sampling": {"k": 8, "temperatures": [0.5, 1.0, 1.5]}}).sampling
    assert several.counts(0) == several.counts(1) == ((0.5, 3), (1.0, 3), (1.5, 2))
    planned = Config.model_validate({"sampling": {"k": 8, "temperature_by_iteration": [0.5, 1.0]}}).sampling
    assert [planned.counts(iteration) for iteration in (0, 1)] == [((0.5, 8),), ((1.0, 8),)]


def test_what_the_scripts_cannot_do_is_refused():
    check_recipe(Config())
    with pytest.raises(ConfigError, match=r"job: .* policy.lora.rank"):
        check_recipe(Config.model_validate({"policy": {"lora": {"rank": 4}}}))
    with pytest.raises(ConfigError, match=r"job: .* objective.name"):
        check_recipe(Config.model_validate({"objective": {"name": "kto"}}))


def test_a_plain_step_minimises_what_the_trainer_minimises(tiny_policy, make_list, tmp_path):
    """Responses of different lengths, padded, against the packed list; then what is written loads again."""
    import torch

    from larpo.log_probs import packed_log_probs
    from larpo.objectives import lambdarank
    from larpo.packing import pack_list
    from larpo.policy import load_policy
    from scripts.benchmarks.plain_trainer import PlainTrainer

    config = Config.model_validate({"policy": {"model": str(tiny_policy), "dtype": "float32"}})
    trainer = PlainTrainer(config, tiny_policy, tiny_policy)
    lists = [make_list(number, lengths=(7, 3, 5)) for number in range(2)]
    first, second = (trainer.step(lists, share=1.0) for _ in range(2))
    assert first == pytest.approx(3 * torch.tensor(2.0).log().item())  # three pairs whose scores are 0
    assert second < first
    trainer.write(tmp_path / "model")
    before, after = (load_policy(path, dtype="float32") for path in (tiny_policy, tmp_path / "model"))
    losses = []
    for item in lists:
        row = pack_list(item.prompt_token_ids, [c.token_ids for c in item.candidates])
        scores_M = 0.1 * (packed_log_probs(after, row).log_probs_M - packed_log_probs(before, row).log_probs_M)
        losses.append(lambdarank(scores_M[None], torch.tensor([[c.reward for c in item.candidates]])).item())
    third = trainer.step(lists, share=1.0)
    assert sum(losses) / 2 == pytest.approx(third, rel=1e-4)


def test_a_note_has_every_repetition():
    assert Told([10, 12], [3, 3], "sampling 1.0 s").note("larpo") == (
        "larpo: tokens sampled [10, 12], optimizer steps [3, 3]; the newest: sampling 1.0 s"
    )


@pytest.fixture
def toy(tiny_policy, tmp_path, monkeypatch) -> Path:
    """A recipe with its own reward function."""
    write_toy(tmp_path, tiny_policy)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "recipe.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_job_does_the_same_work_on_both_sides(toy, tmp_path):
    smaller = ["--set", "training.epochs=1", "--set", "training.iterations=1", "--repetitions", "1"]
    command = ["job", "--recipe", str(toy), *smaller, "--out", str(tmp_path)]
    assert main(command) == 0
    found = json.loads((tmp_path / "job.json").read_text())
    whole, speed = found["comparisons"]
    assert (whole["unit"], whole["target"]) == ("jobs/h", ">= 2.5")
    assert min(speed["ours"]["values"] + speed["other"]["values"]) > 0
    streamed, phased = found["notes"]
    for part in ("sampler sample", "trainer train", "trainer publish"):
        assert part in streamed
    for part in ("engine start", "sampling", "ranking", "training", "writing the model", "starting and ending"):
        assert part in phased
    steps = [note.partition("optimizer steps [")[2].partition("]")[0] for note in (streamed, phased)]
    assert abs(int(steps[0]) - int(steps[1])) <= 1  # a list whose samples all earn the same is dropped
    print(*found["notes"], whole["ratio"], sep="\n")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_overlapping_runs_beside_their_phases_alone(toy, tmp_path, monkeypatch):
    """Of one mode alone: each is a whole run."""
    monkeypatch.setattr("scripts.benchmarks.overlap.overlapping_modes", lambda: ("async",))
    smaller = ["--set", "training.iterations=1", "--repetitions", "1"]
    command = ["overlap", "--recipe", str(toy), *smaller, "--out", str(tmp_path)]
    assert main(command) == 0
    found = json.loads((tmp_path / "overlap.json").read_text())
    [row] = found["comparisons"]
    assert (row["ours"]["label"], row["target"]) == ("async", "<= 1.10")
    assert min(row["ours"]["values"] + row["other"]["values"]) > 0
    assert "busy/trainer" in found["notes"][1]
    print(*found["notes"], row["ratio"], sep="\n")
