"""Candidate lists on disk: exact, whole or not there, readable by others."""

import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from larpo.errors import DataError
from larpo.records import list_parts, next_part_number, read_lists, write_part
from larpo.types import Candidate, CandidateList, Message, Prompt, VersionSpan, list_id

BARE = Candidate("c1", "", (), (), "abort", 0.5, "given", 0, ())
FULL = Candidate(
    id="c2",
    text="Zwölf 🎉\n\x00",
    token_ids=(0, 49151, 2**31 - 1),
    log_probs=(-0.1, -1e-300, float("-inf")),
    finish_reason="length",
    temperature=0.7,
    origin="remembered",
    iteration=3,
    versions=(VersionSpan(0, 2, 7), VersionSpan(2, 3, 2**40)),
    reward=1 / 3,
    reward_fingerprint="abc",
    reference_log_prob=-12.3456789012345678,
    reference_fingerprint="ref",
)
KEY = {"task": "gcd", "answer": "1", "metadata": {"empty": {}, "n": [1, 2.5, None, True], "ö": "ü"}}


def entry(iteration=0, prompt="p", *candidates, key=None):
    messages = (Message("system", "Be brief."), Message("user", "2+2?"))
    return CandidateList(
        list_id(iteration, prompt), iteration, Prompt(prompt, messages, "gcd", key or {}), (1, 2, 3), candidates
    )


def test_round_trip_is_exact(tmp_path):
    lists = [entry(0, "p", FULL, BARE, key=KEY), entry(0, "q"), entry(0, "r", BARE)]
    path = write_part(tmp_path, lists, 0, 0)
    assert path == tmp_path / "iteration-0000" / "part-00000.parquet"
    assert list(read_lists(path)) == lists


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
floats = st.floats(allow_nan=False)
spans = st.builds(VersionSpan, st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**60))
candidates = st.builds(
    Candidate,
    id=texts,
    text=texts,
    token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    log_probs=st.lists(floats, max_size=4).map(tuple),
    finish_reason=st.sampled_from(["stop", "length", "abort"]),
    temperature=floats,
    origin=st.sampled_from(["sampled", "remembered", "given"]),
    iteration=st.integers(0, 10**6),
    versions=st.lists(spans, max_size=2).map(tuple),
    reward=st.none() | floats,
    reward_fingerprint=texts,
    reference_log_prob=st.none() | floats,
    reference_fingerprint=texts,
)
json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | floats | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
messages = st.lists(st.builds(Message, texts, texts), max_size=2).map(tuple)
prompts = st.builds(Prompt, texts, messages, texts, st.dictionaries(texts, json_like, max_size=2))
entries = st.builds(
    CandidateList,
    texts,
    st.just(5),
    prompts,
    st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    st.lists(candidates, max_size=3).map(tuple),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(entries, min_size=1, max_size=3))
def test_round_trip_of_anything(tmp_path, lists):
    path = write_part(tmp_path, lists, 5, next_part_number(tmp_path, 5))
    assert list(read_lists(path)) == lists


def test_a_folder_is_read_in_order_and_only_its_parts(tmp_path):
    for iteration, part in [(10, 0), (2, 10), (2, 9), (0, 0)]:
        write_part(tmp_path, [entry(iteration, f"p{part}")], iteration, part)
    for name in (".part-00001.parquet.77.tmp", "part-x.parquet", "notes.txt"):
        (tmp_path / "iteration-0002" / name).write_text("not a part")
    (tmp_path / "iteration-x").mkdir()
    assert [found.id for found in read_lists(tmp_path)] == ["0000/p0", "0002/p9", "0002/p10", "0010/p0"]
    assert [path.name for path in list_parts(tmp_path, 2)] == ["part-00009.parquet", "part-00010.parquet"]
    assert [next_part_number(tmp_path, i) for i in (0, 1, 2)] == [1, 0, 11]
    assert list_parts(tmp_path / "nothing") == []


def test_a_part_is_never_changed(tmp_path):
    path = write_part(tmp_path, [entry(0, "p")], 0, 0)
    before = path.read_bytes()
    with pytest.raises(DataError, match="write number 1"):
        write_part(tmp_path, [entry(0, "q")], 0, 0)
    assert path.read_bytes() == before


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    unwritable = [
        entry(0, "p", key={"n": {1, 2}}),
        entry(0, "p", FULL.replace(text="\ud800")),
        entry(0, "p", FULL.replace(token_ids=(2**31,))),
    ]
    for bad in unwritable:
        with pytest.raises(DataError, match="0000/p"):
            write_part(tmp_path, [bad], 0, 0)
    with pytest.raises(DataError, match="0001/p"):
        write_part(tmp_path, [entry(1, "p")], 0, 0)
    with pytest.raises(DataError, match="got 0"):
        write_part(tmp_path, [], 0, 0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_part(tmp_path, [entry(0, "p")], 0, 0)
    assert list((tmp_path / "iteration-0000").iterdir()) == []


CRASH = """
import os, sys
import larpo.records as records
from larpo.types import CandidateList, Prompt
os.rename = lambda *_: os.kill(os.getpid(), 9)
records.write_part(sys.argv[1], [CandidateList("0000/p", 0, Prompt("p", ()), (), ())], 0, 0)
"""


def test_a_writer_killed_before_the_end_leaves_no_part(tmp_path):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == -9
    assert len(list((tmp_path / "iteration-0000").iterdir())) == 1  # what it had written, under a hidden name
    assert list(read_lists(tmp_path)) == []
    write_part(tmp_path, [entry(0, "p")], 0, 0)
    assert len(list(read_lists(tmp_path))) == 1


def test_a_torn_or_changed_part_is_named(tmp_path):
    path = write_part(tmp_path, [entry(0, "p", FULL.replace(text="secret " * 99))], 0, 0)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 4] ^= 0xFF
    for damaged in (b"", whole[:100], whole[:-1], bytes(changed)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"part-00000\.parquet"):
            list(read_lists(tmp_path))


def test_a_changed_byte_is_noticed_wherever_it_matters(tmp_path):
    path = write_part(tmp_path, [entry(0, "p", FULL, BARE, key=KEY)], 0, 0)
    whole, expected = path.read_bytes(), list(read_lists(path))
    for position in random.Random(0).sample(range(len(whole)), 200):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x80]) + whole[position + 1 :])
        assert read_or_none(path) in (expected, None)


def read_or_none(path):
    """The lists of a part, or None where it is refused by name."""
    try:
        return list(read_lists(path))
    except DataError as error:
        return None if str(path) in str(error) else error


def test_other_files_are_refused(tmp_path):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(DataError, match=r"other.parquet.*\['a'\]"):
        list(read_lists(other))
    with pytest.raises(DataError, match="does not exist"):
        list(read_lists(tmp_path / "nothing"))


def test_datasets_reads_the_parts(tmp_path):
    from datasets import load_dataset

    folder = tmp_path / "lists"
    write_part(folder, [entry(0, "p", FULL.replace(log_probs=(-0.5,)), BARE, key=KEY), entry(0, "q")], 0, 0)
    write_part(folder, [entry(1, "p", BARE)], 1, 0)
    (folder / "iteration-0001" / ".part-00001.parquet.1.tmp").write_text("half a part")
    pattern = str(folder / "**" / "*.parquet")
    rows = load_dataset("parquet", data_files=pattern, cache_dir=str(tmp_path / "cache"), split="train")
    by_id = {row["id"]: row for row in rows}
    assert sorted(by_id) == ["0000/p", "0000/q", "0001/p"]
    assert json.loads(by_id["0000/p"]["prompt"]["answer_key"]) == KEY
    first = by_id["0000/p"]["candidates"][0]
    assert (first["reward"], first["token_ids"], first["log_probs"]) == (1 / 3, [0, 49151, 2**31 - 1], [-0.5])
    assert by_id["0000/p"]["candidates"][1]["reward"] is None


def test_log_probs_of_a_sampler_take_no_more_room_than_float32(tmp_path):
    rng = random.Random(0)
    (drawn,) = [struct.unpack("20000f", struct.pack("20000f", *(rng.gauss(-1, 1) for _ in range(20000))))]
    path = write_part(tmp_path, [entry(0, "p", FULL.replace(log_probs=drawn))], 0, 0)
    assert path.stat().st_size < 20000 * 4 + 6000
