"""What an engine does on the edge, without DeepSpeed: real full disks and steps are in test_trainer.py."""

from types import SimpleNamespace

import pytest
import torch.distributed

from actors.trainer_engine import TrainerEngine
from actors.zero_engine import ZeroEngine
from larpo.errors import CheckpointError


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), CheckpointError),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), CheckpointError),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), CheckpointError),
        (RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer"), RuntimeError),
    ],
)
def test_a_rank_that_is_gone_is_no_full_disk(tmp_path, monkeypatch, error, raised):
    """The one ends the run, which would meet it again; the other is mended by a new start of the group."""

    def save_checkpoint(*arguments, **options):
        assert not torch.serialization.get_crc32_options()
        raise error

    engine = ZeroEngine.__new__(ZeroEngine)
    engine._engine, engine._lora = SimpleNamespace(save_checkpoint=save_checkpoint), False
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(ZeroEngine, "barrier", lambda self: None)
    with pytest.raises(raised) as caught:
        engine.save(tmp_path)
    assert isinstance(caught.value, CheckpointError) is (raised is CheckpointError)
    assert torch.serialization.get_crc32_options()


def test_where_no_rank_has_two_lists_the_divergence_of_the_batch_before_counts(monkeypatch, make_list):
    """As in a short last batch: 0 would be a step of KTO without it."""
    engine = TrainerEngine.__new__(TrainerEngine)
    engine.device, engine._newest_divergence = torch.device("cpu"), torch.tensor(0.5, dtype=torch.float64)
    ratios = iter([0.3, 0.1])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: None)
    monkeypatch.setattr(TrainerEngine, "maximum", lambda self, values: values)
    monkeypatch.setattr(TrainerEngine, "_reference_log_probs", lambda self, rows: torch.zeros(1))
    monkeypatch.setattr(TrainerEngine, "_score", None)
    monkeypatch.setattr("actors.trainer_engine.list_log_probs", lambda score, rows: torch.tensor([next(ratios)]))
    assert engine._divergence([make_list(0)]).item() == 0.5
    assert engine._divergence([make_list(0), make_list(1)]).item() == pytest.approx(0.2)
    assert engine._divergence([make_list(2)]).item() == pytest.approx(0.2)


@pytest.fixture
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_passes_take_idle_cores_and_make_room_again(threads_as_before):
    asked = iter([2, 3, 1])
    engine = ZeroEngine.__new__(ZeroEngine)
    engine._idle_cores, engine.device = SimpleNamespace(threads=lambda: next(asked)), torch.device("cpu")
    engine._engine = torch.get_num_threads
    assert [engine.forward() for _ in range(3)] == [2, 3, 1]
