"""Programs of others, in the place of which a script stands on the path."""

import pytest

from larpo import judges
from larpo.config import Judges, Policy
from larpo.judges import KEYS, run_alpaca_eval, run_lm_eval
from larpo.policy import PreparedPolicy


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """`on_path(name, script)`: a program of that name; none other is found, and no key is set."""
    (tmp_path / "outputs.json").write_text("[]")
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setattr(judges.sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)

    def put(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return put


def model_in(folder, fingerprint="aa", **knobs):
    return PreparedPolicy(folder, fingerprint, Policy(**knobs))


def lm_eval(*arguments, has_template=True):
    return run_lm_eval(*arguments, has_template=has_template)


def test_what_is_not_installed_is_said(on_path, tmp_path):
    said = run_alpaca_eval(tmp_path / "outputs.json", tmp_path, Judges())
    assert "not installed" in said
    assert str(tmp_path / "outputs.json") in said
    assert "not installed" in lm_eval(model_in(tmp_path), "bfloat16", tmp_path, Judges(lm_eval_tasks=("gsm8k",)))


def test_without_a_key_no_judge_is_started(on_path, tmp_path):
    on_path("alpaca_eval", f"touch {tmp_path}/started")
    assert "OPENAI_API_KEY" in run_alpaca_eval(tmp_path / "outputs.json", tmp_path, Judges())
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("annotator", ["claude", "weighted_alpaca_eval_vllm_llama3_70b", "my_judge/configs.yaml"])
def test_another_annotator_than_its_own_choice_is_started_without_a_key_of_openais(on_path, tmp_path, annotator):
    on_path("alpaca_eval", r'mkdir -p "$5"; printf ",win_rate\n$7,12.5\n" > "$5/leaderboard.csv"')
    said = run_alpaca_eval(tmp_path / "outputs.json", tmp_path / "out", Judges(annotator=annotator))
    assert said.startswith("alpaca_eval: win_rate 12.5")


def test_what_an_annotator_lacks_is_told_in_the_words_of_alpaca_eval(on_path, tmp_path):
    on_path("alpaca_eval", "echo 'ANTHROPIC_API_KEY is not set' >&2; exit 1")
    outputs = tmp_path / "outputs.json"
    assert run_alpaca_eval(outputs, tmp_path / "out", Judges(annotator="claude")) == (
        "alpaca_eval ended with exit code 1: ANTHROPIC_API_KEY is not set"
        f" (evaluation.judges.annotator = claude; {outputs} is there for it)"
    )


def test_win_rates_come_from_the_leaderboard_that_it_writes(on_path, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    on_path(
        "alpaca_eval",
        f'echo "$@" > {tmp_path}/called; mkdir -p "$5/judge"\n'
        r'printf ",win_rate,length_controlled_winrate\nbest known,97.5,96.5\n$7,12.5,14.25\nours,1,2\n"'
        ' > "$5/judge/leaderboard.csv"',
    )
    out = tmp_path / "out"
    said = run_alpaca_eval(tmp_path / "outputs.json", out, Judges(annotator="gpt4"))
    called = (tmp_path / "called").read_text().split()
    assert called[:6] == f"evaluate --model_outputs {tmp_path}/outputs.json --output_path {out} --name".split()
    given = "--is_overwrite_leaderboard True --is_cache_leaderboard False --annotators_config gpt4"
    assert called[7:] == given.split()
    assert "length_controlled_winrate 14.25, win_rate 12.5" in said
    assert "secret-key" not in said
    run_alpaca_eval(tmp_path / "outputs.json", out, Judges())
    assert (tmp_path / "called").read_text().split()[6] != called[6]


def test_a_leaderboard_without_our_model_gives_no_scores(on_path, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    on_path("alpaca_eval", r'mkdir -p "$5"; printf ",win_rate\nbest known,97.5\n" > "$5/leaderboard.csv"')
    assert "no scores of larpo-" in run_alpaca_eval(tmp_path / "outputs.json", tmp_path / "out", Judges())


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "echo first >&2; echo 'the hub cannot be reached' >&2; exit 3",
            "exit code 3: first | the hub cannot be reached",
        ),
        ("exit 1", "exit code 1: it said nothing"),
        ("exec sleep 30", "stopped after 0.2 s"),
        ("exit 0", "gsm8k, ifeval done in the model's chat template"),
    ],
)
def test_how_a_program_ended_is_told(on_path, tmp_path, script, expected):
    on_path("lm_eval", script)
    asked = Judges(lm_eval_tasks=("gsm8k", "ifeval"), timeout_s=0.2 if "sleep" in script else 20.0)
    assert expected in lm_eval(model_in(tmp_path / "model"), "bfloat16", tmp_path, asked)


def test_lm_eval_gets_the_model_and_the_tasks(on_path, tmp_path):
    on_path("lm_eval", f'echo "$@" > {tmp_path}/called')
    lm_eval(model_in(tmp_path / "model"), "float32", tmp_path / "out", Judges(lm_eval_tasks=("gsm8k", "ifeval")))
    model = f"--model hf --model_args pretrained={tmp_path}/model,dtype=float32"
    rest = f"--tasks gsm8k,ifeval --output_path {tmp_path}/out --apply_chat_template"
    assert (tmp_path / "called").read_text() == f"{model} {rest}\n"


def test_lm_eval_is_given_the_chat_template_that_there_is_and_the_trust_that_the_user_gave(on_path, tmp_path):
    on_path("lm_eval", f'echo "$@" > {tmp_path}/called')
    judges, model = Judges(lm_eval_tasks=("gsm8k",)), model_in(tmp_path / "model", trust_remote_code=True)
    said = lm_eval(model, "float32", tmp_path / "out", judges, has_template=False)
    assert "done in plain text, for the model has no chat template" in said
    called = (tmp_path / "called").read_text().split()
    assert f"pretrained={tmp_path}/model,dtype=float32,trust_remote_code=True" in called
    assert not {"--apply_chat_template", "--trust_remote_code"} & set(called)  # the latter: code of data sets too
    assert "from before" not in lm_eval(model, "float32", tmp_path / "out", judges, has_template=True)


def test_who_asks_for_the_same_again_gets_what_came_of_it_before(on_path, tmp_path):
    """Not so a failure, other tasks, or other weights in the same folder."""
    on_path("lm_eval", f"echo called >> {tmp_path}/calls; exit 3")
    tasks = Judges(lm_eval_tasks=("gsm8k",))

    def calls(fingerprint="aa", judges=tasks):
        said = lm_eval(model_in(tmp_path / "model", fingerprint), "float32", tmp_path / "out", judges)
        return said, len((tmp_path / "calls").read_text().split())

    assert "exit code 3" in calls()[0]
    on_path("lm_eval", f"echo called >> {tmp_path}/calls")
    said, count = calls()
    assert (said.startswith("lm_eval: gsm8k done"), count) == (True, 2)
    assert calls() == (f"{said} (from before)", 2)
    assert calls(fingerprint="bb")[1] == 3
    assert calls(fingerprint="bb", judges=Judges(lm_eval_tasks=("ifeval",)))[1] == 4


def test_a_judge_is_paid_once_for_the_same_outputs(on_path, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    script = r'mkdir -p "$5"; printf ",win_rate\n$7,12.5\n" > "$5/leaderboard.csv"; echo called >> '
    on_path("alpaca_eval", f"{script} {tmp_path}/calls")
    outputs, out = tmp_path / "outputs.json", tmp_path / "out"
    said = run_alpaca_eval(outputs, out, Judges())
    assert "win_rate 12.5" in said
    assert run_alpaca_eval(outputs, out, Judges()) == f"{said} (from before)"
    outputs.write_text("[1]")
    assert "from before" not in run_alpaca_eval(outputs, out, Judges())
    assert (tmp_path / "calls").read_text().split() == ["called"] * 2
