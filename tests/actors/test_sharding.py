"""How DeepSpeed is started, in a process of its own: it is told what it cannot be told again."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

STEP = """
import sys
import torch
from actors.sharding import start_deepspeed, zero_config

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
model = torch.nn.Linear(2, 1)
engine = start_deepspeed(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters(), lr=0.1),
    config=zero_config(dtype="float32", stage=2, clip_norm=1.0, ranks=1),
)
before = model.weight.detach().clone()
engine.backward(engine(torch.ones(1, 2)).sum())
engine.step()
print("moved", bool((model.weight != before).all()))
"""


def test_nothing_is_compiled_when_a_trainer_starts_on_a_cpu(tmp_path):
    """Though DeepSpeed finds no extension from before, and a compiler if there is one."""
    extensions = tmp_path / "extensions"
    environment = os.environ | {
        "TORCH_EXTENSIONS_DIR": str(extensions),
        "DS_ACCELERATOR": "cpu",
        "LOCAL_RANK": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", STEP, str(tmp_path / "rendezvous")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert "moved True" in done.stdout, done.stderr
    assert list(extensions.rglob("*")) == []
