"""What a checkpoint that could not be written is taken for: real full disks are in test_trainer.py."""

from types import SimpleNamespace

import pytest
import torch.distributed

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
        raise error

    engine = ZeroEngine.__new__(ZeroEngine)
    engine._engine, engine._lora = SimpleNamespace(save_checkpoint=save_checkpoint), False
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(ZeroEngine, "barrier", lambda self: None)
    with pytest.raises(raised) as caught:
        engine.save(tmp_path)
    assert isinstance(caught.value, CheckpointError) is (raised is CheckpointError)
