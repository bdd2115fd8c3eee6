"""The `gpu` benchmark, whose code is tried on a CPU: what it counts, what it refuses, what it needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from larpo.errors import ConfigError
from scripts.bench import main
from scripts.benchmarks.gpu import Work, agreement, run_gpu
from scripts.benchmarks.gpu_shapes import MODELS, Layout, check_lengths, operations, sized
from scripts.benchmarks.measuring import BenchmarkError

ROOT = Path(__file__).parents[2]
SMALL = "gpu --device cpu --layers 1 --width-divisor 32 --shape 24,8 --sizes 3 --repetitions 1"


def test_a_packed_list_has_its_prompt_once():
    """Two responses of 2 tokens to a prompt of 3: a token sees those before it and itself."""
    packed = Layout.packed(prompt=3, response=2, candidates=2)
    assert (packed.tokens, packed.predicted) == (3 + 2 * 2, 4)
    assert packed.seen == (1 + 2 + 3) + 2 * (4 + 5)
    rows = Layout.rows(prompt=3, response=2, count=2)
    assert (rows.tokens, rows.predicted, rows.seen) == (2 * 5, 4, 2 * (1 + 2 + 3 + 4 + 5))


def test_operations_are_two_for_each_weight_and_token_forward_and_twice_that_backward():
    """Mistral-7B has 7.24e9 parameters: its embedding, which is looked up, apart, each works on each token."""
    fields = sized("Mistral-7B", layers=99, divisor=1)
    weights = 7.24e9 - 32000 * 4096
    assert operations(fields, Layout(tokens=1, seen=0, predicted=1)) == pytest.approx(6 * weights, rel=1e-3)
    seen = operations(fields, Layout(0, 1, 0))
    assert seen == 3 * 4 * 32 * 4096  # a query's product with a key, and with a value, in 32 layers


def test_a_model_made_smaller_keeps_its_kind_of_layers():
    fields = sized("Gemma-2-2b", layers=2, divisor=32)
    assert (fields["hidden_size"], fields["head_dim"], fields["num_hidden_layers"]) == (72, 8, 2)
    assert fields["num_attention_heads"] == MODELS["Gemma-2-2b"]["num_attention_heads"]
    with pytest.raises(ConfigError, match="--width-divisor 3: Mistral-7B takes 1 layer or more and a divisor of 64"):
        sized("Mistral-7B", layers=1, divisor=3)
    with pytest.raises(ConfigError, match="--shape 4000,200: takes"):
        check_lengths(4000, 200, 4)


def test_sides_that_compute_something_else_are_refused():
    assert "losses at most 5.0e-04" in agreement({"a": (2.0, 1.0), "b": (2.001, 1.0)}, 1e-3)
    with pytest.raises(BenchmarkError, match="do not do the same work"):
        agreement({"a": (2.0, 1.0), "b": (2.0, 1.1)}, 1e-3)
    with pytest.raises(BenchmarkError, match="do not do the same work"):
        agreement({"a": (2.0, 1.0), "b": (float("nan"), 1.0)}, 1e-3)


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", "--out", str(tmp_path)]) == 2
    assert "needs a GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_memory_does_not_hold_is_left_out_and_said(monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("scripts.benchmarks.gpu.all_pairs", too_much)
    monkeypatch.setattr("scripts.benchmarks.gpu.full_log_probs", too_much)
    result = run_gpu(Work("cpu", sizes=(3,), shape=(24, 8), layers=1, width_divisor=32, repetitions=1))
    assert {row.other.label for row in result.comparisons} == {
        "a row a response",
        "sdpa with a dense mask",
        "eager with a dense mask",
    }
    assert "Mistral-7B, k = 3: all pairs needs more memory than there is" in result.notes
    assert "Gemma-2-2b: full logits need more memory than there is" in result.notes


@pytest.mark.slow
def test_it_compares_equal_losses_and_needs_torch_and_transformers_alone(tmp_path):
    code = (
        "import sys; from scripts.bench import main; code = main(sys.argv[1:]);"
        "heavy = {'ray', 'vllm', 'deepspeed', 'trl', 'actors', 'larpo.knobs'} & set(sys.modules);"
        "sys.exit(code or (repr(heavy) if heavy else 0))"
    )
    command = [sys.executable, "-c", code, *SMALL.split(), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["settings"]["shape"] == [24, 8]
    told = [row["what"] for row in found["comparisons"]]
    assert len(told) == 2 * (2 * 2 + 1 + 1)
    assert sum("share of the matrix rate" in what for what in told) == 4
    assert all(min(row["ours"]["values"] + row["other"]["values"]) > 0 for row in found["comparisons"])
    assert sum("losses at most" in note for note in found["notes"]) == 4
