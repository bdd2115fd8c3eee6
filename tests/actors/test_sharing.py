"""What a new run takes of another's first iteration, and what it leaves."""

import pytest

from actors.sharing import what_differs
from larpo.compute_type import settled
from larpo.recipe import load_config


@pytest.mark.parametrize(
    ("overrides", "lists", "evaluation"),
    [
        ([], True, True),
        (["overlap=async"], False, True),
        (["policy.dtype=bfloat16"], False, False),
        (["sampling.k=4"], False, True),
        (["evaluation.samples=2"], True, False),
    ],
)
def test_what_fits_of_a_run_in_float32(overrides, lists, evaluation):
    theirs, ours = (settled(load_config("quickstart", ["policy.dtype=float32", *more])) for more in ([], overrides))
    of_lists, of_evaluation = what_differs(theirs, ours)
    assert (not of_lists, not of_evaluation) == (lists, evaluation)


def test_references_of_later_policies_are_a_runs_own(tmp_path, make_list):
    """Two runs count versions alike, `@1` and so on, of policies that are not the same."""
    from types import SimpleNamespace

    from actors.sharing import _take_lists
    from actors.work import read_references, write_references
    from larpo.config import Config
    from larpo.records import read_lists, write_part

    source, new, item = tmp_path / "source", tmp_path / "new", make_list(0)
    write_part(source / "lists", [item], 0, 0)
    first, second = (candidate.id for candidate in item.candidates[:2])
    write_references(source, {first: (-1.0, "tiny"), second: (-2.0, "tiny@1"), "elsewhere": (-3.0, "tiny")})
    run = SimpleNamespace(folder=new, lists=new / "lists", config=Config(), policy=SimpleNamespace(fingerprint="tiny"))
    progress = SimpleNamespace(log=lambda *given, **more: None, say=lambda text: None)
    _take_lists(run, source, progress)
    assert read_references(new) == {first: (-1.0, "tiny")}
    assert [taken.id for taken in read_lists(new / "lists")] == [item.id]
