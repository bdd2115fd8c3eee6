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

GRADIENTS = """
import sys
import torch
from actors.zero_engine import ZeroEngine
from larpo.config import Optimizer

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
torch.manual_seed(0)
model = torch.nn.Linear(64, 32, bias=False).bfloat16()
engine = ZeroEngine(model, optimizer=Optimizer(), dtype="bfloat16", zero_stage=1, ranks=1)
batches, total = torch.randn(2, 3, 64).bfloat16(), 0.0
for batch, last in zip(batches, (False, True)):
    [own] = torch.autograd.grad(engine.model(batch).float().square().sum(), [engine.model.weight])
    total = total + own.float()
    engine.backward(engine.forward(input=batch).float().square().sum(), last=last)
    assert engine.model.weight.grad is None, "kept beside its sum"
[summed] = engine._engine.optimizer.fp32_groups_gradients_flat
is_rounded = torch.equal(total.bfloat16().float(), total)
print("as in float32", torch.equal(summed.view_as(total), total), "rounded", is_rounded)
"""


def run_alone(script, folder):
    """What it prints, in a process of its own, which is a group of one rank."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(folder / "rendezvous")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout + done.stderr


def test_a_lone_rank_sums_the_gradients_of_bfloat16_weights_in_float32(tmp_path):
    """DeepSpeed would send that sum to nobody, in bfloat16."""
    assert "as in float32 True rounded False" in run_alone(GRADIENTS, tmp_path)


def test_nothing_is_compiled_when_a_trainer_starts_on_a_cpu(tmp_path, monkeypatch):
    """Though DeepSpeed finds no extension from before, and a compiler if there is one."""
    extensions = tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    assert "moved True" in run_alone(STEP, tmp_path)
    assert list(extensions.rglob("*")) == []
