"""Storage that cannot be used is one clear error, exit code 2, before anything starts or is written."""

import pytest

from scripts import align, compare, evaluate, experiment, lists, train_reward
from tests.s3_server import BUCKET, KEY, SECRET, S3Server, free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp("s3") / "log.txt")
    yield server
    server.close()


@pytest.fixture(autouse=True)
def machine(server, tmp_path, monkeypatch):
    for name, value in (server.environment() | {"LARPO_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield
    assert not list((tmp_path / "cache").rglob("config.yaml"))
    assert not server.keys()


def refused(main, *arguments: str, capsys, says: tuple[str, ...]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    for text in says:
        assert text in told
    assert SECRET not in told
    assert KEY not in told


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("s3://no-such-bucket/runs", ("s3://no-such-bucket/runs/toy", "there is no such bucket: make it")),
        (f"s3://{KEY}:{SECRET}@bucket/runs", ("s3://[login]@", "come from the environment")),
        ("ftp://host/runs", ("run.output_dir = ftp://host/runs", "is not supported", "s3://")),
        (f"s3://{BUCKET}/../other", ("run.output_dir = ", "`..`")),
    ],
)
@pytest.mark.parametrize(("main", "recipe"), [(align.main, "quickstart"), (train_reward.main, "minilm-reward")])
def test_a_home_that_cannot_be_used_is_refused(main, recipe, output, says, capsys):
    refused(main, recipe, f"run.output_dir={output}", "run.name=toy", "--dry-run", capsys=capsys, says=says)


def test_a_server_that_does_not_answer_is_named(capsys, monkeypatch):
    monkeypatch.setattr("larpo.home_sessions.CHECK_S", 2.0)
    port = free_port()
    output = f"run.output_dir=s3://{BUCKET}/runs?endpoint_override=127.0.0.1:{port}&scheme=http"
    says = ("could not be listed within 2 s", f"127.0.0.1:{port}", "Check the network")
    refused(align.main, "quickstart", output, "run.name=toy", capsys=capsys, says=says)


@pytest.mark.parametrize("name", ["a/../../b", "..", "a?b", "a#b"])
def test_a_name_that_climbs_out_or_hides_in_the_options_is_refused(name, capsys):
    output = f"run.output_dir=s3://{BUCKET}/runs"
    refused(align.main, "quickstart", output, f"run.name='{name}'", "--dry-run", capsys=capsys, says=("run.name = ",))


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (align.main, ["--resume"]),
        (train_reward.main, ["--resume"]),
        (lists.main, []),
        (compare.main, []),
        (evaluate.main, ["--run"]),
    ],
    ids=["align", "train_reward", "lists", "compare", "evaluate"],
)
def test_a_uri_without_a_run_is_refused(main, arguments, capsys):
    uri = f"s3://{BUCKET}/nothing/here"
    refused(main, *arguments, uri, capsys=capsys, says=(f"{uri} is not a run folder: it has no config.yaml",))


def test_what_writes_to_folders_alone_says_so(capsys):
    uri = f"s3://{BUCKET}/x"
    refused(experiment.main, "small-objectives", f"run.output_dir={uri}", capsys=capsys, says=("needs a folder",))
    refused(evaluate.main, "quickstart", "--out", uri, capsys=capsys, says=("results go to a folder",))
