"""A ZeRO engine that goes on with another number of ranks than before, in processes of its own, without Ray.

Each process does all its cases one after another: starting DeepSpeed takes longest. A global batch is dealt to the
ranks, and its loss divided by its own size, so that steps are the same by however many ranks. The one rank also leaves
its device and comes back before each step, which on a CPU moves nothing, and must change nothing.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actors.resharding import TAG, is_for_others, reshard_once

ROOT = Path(__file__).parents[2]
SAVED, STEPS = 3, 6
CASES = [(stage, dtype) for dtype in ("float32", "bfloat16") for stage in (0, 2, 3)]
FLOAT32, BFLOAT16 = 1e-5, 0.1  # largest difference of any weight, over the largest change since the start

WORKER = """
import sys
from pathlib import Path
import torch
from actors.zero_engine import ZeroEngine
from larpo.config import Optimizer
from actors.resharding import TAG
from tests.actors.test_resharding import BATCHES, SAVED, STEPS, model

folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
meeting = f"file://{folder}/meeting-{ranks}"
torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
for stage, dtype in ((int(case[0]), case[2:]) for case in sys.argv[4:]):
    settings = Optimizer(learning_rate=1e-2, eps=1e-4, weight_decay=0.1, clip_norm=0.5)
    engine = ZeroEngine(model(dtype), optimizer=settings, dtype=dtype, zero_stage=stage, ranks=ranks)
    checkpoint = folder / f"{stage}-{dtype}"
    goes_on = checkpoint.exists()
    if goes_on:
        engine.load(checkpoint)
    for step in range(SAVED if goes_on else 0, STEPS):
        if step == SAVED and not goes_on:
            if rank == 0:  # as a save by more ranks leaves it, when it is cut off
                (checkpoint / TAG).mkdir(parents=True)
                (checkpoint / TAG / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt").touch()
            engine.save(checkpoint)
        if ranks == 1 and stage in (0, 2):  # as between the turns on a GPU
            engine.leave()
            engine.come_back()
        engine.set_rate(1e-2 / (1 + step))
        mine = BATCHES[step].to(getattr(torch, dtype))[rank::ranks]
        engine.backward(engine.forward(input=mine).float().square().sum() / len(BATCHES[step]) * ranks, last=True)
        norm, applied = engine.apply()
        assert applied, (stage, dtype, step)
    for weight in engine.model.parameters() if stage < 3 else ():
        first = weight.detach().clone()
        torch.distributed.broadcast(first, 0)
        assert torch.equal(first, weight), f"rank {rank} has other weights than rank 0"
    engine.write(folder / f"{stage}-{dtype}-{ranks}", bucket_mib=1, rank=rank, base="none")
"""

BATCHES = torch.randn(STEPS, 6, 32, generator=torch.Generator().manual_seed(1))


def model(dtype: str = "float32") -> torch.nn.Module:
    """Matrices of 0.3M parameters, which ZeRO-3 keeps in pieces, and a bias whose length no number of ranks divides."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(32, 8193), torch.nn.Tanh(), torch.nn.Linear(8193, 7)
    return torch.nn.Sequential(*layers).to(getattr(torch, dtype))


def run(folder: Path, ranks: int, cases=CASES) -> None:
    """Cases by so many ranks: from the start, or from the checkpoint where there is one."""
    names = [f"{stage}-{dtype}" for stage, dtype in cases]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(rank), str(ranks), *names],
            env=environment | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    errors = [worker.communicate(timeout=600)[1] for worker in workers]
    assert not any(worker.returncode for worker in workers), errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two ranks to the end; then one, and then three, each from the checkpoint that the two wrote on the way."""
    folder = tmp_path_factory.mktemp("resharding")
    for ranks in (2, 1, 3):
        run(folder, ranks)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(("stage", "dtype"), CASES)
def test_steps_go_on_by_another_number_of_ranks_as_if_it_had_stayed(folder, stage, dtype, ranks):
    from actors.published import published_tensors

    stayed, found = (dict(published_tensors(folder / f"{stage}-{dtype}-{count}")) for count in (2, ranks))
    start = model(dtype).state_dict()
    moved = max(float((stayed[name].float() - start[name].float()).abs().max()) for name in stayed)
    apart = max(float((stayed[name].float() - found[name].float()).abs().max()) for name in stayed)
    print(f"ZeRO {stage}, {dtype}, {ranks} ranks: {apart / moved:.2e} apart")
    assert moved > 0.01
    assert apart / moved < (FLOAT32 if dtype == "float32" else BFLOAT16)
    assert not list(folder.glob("resharded-*"))


def test_ranks_that_hold_whole_weights_hold_the_same_ones(tmp_path):
    """In bfloat16, whose float32 weights begin at random places; the workers compare."""
    run(tmp_path, 2, [(0, "bfloat16"), (2, "bfloat16")])


def test_a_lone_rank_in_bfloat16_goes_on_as_if_it_had_never_ended(tmp_path):
    """By stage 1, which such a rank has on a CPU, and from which no other number of ranks can go on."""
    from actors.published import published_tensors

    found = []
    for _ in range(2):
        run(tmp_path, 1, [(1, "bfloat16")])
        found.append(dict(published_tensors(tmp_path / "1-bfloat16-1")))
        (tmp_path / "meeting-1").unlink(missing_ok=True)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["0.weight"], model("bfloat16").state_dict()["0.weight"])


@pytest.mark.parametrize(("pieces", "ranks", "others"), [(0, 3, False), (2, 2, False), (2, 1, True), (2, 3, True)])
def test_pieces_tell_how_many_ranks_wrote_them(tmp_path, pieces, ranks, others):
    """Without ZeRO there are none, and the checkpoint serves all."""
    (tmp_path / TAG).mkdir()
    for rank in range(pieces):
        (tmp_path / TAG / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    assert is_for_others(tmp_path, ranks) is others


@pytest.mark.parametrize("own_disk", [False, True])
def test_what_a_start_left_half_made_is_not_taken_for_whole(tmp_path, monkeypatch, own_disk):
    """By the first rank of another node, which sees rank 0's disk or has its own."""
    made = []
    monkeypatch.setattr("actors.resharding.reshard", lambda checkpoint, target: made.append(target) or target.mkdir())
    monkeypatch.setenv("LOCAL_RANK", "0")
    left = tmp_path / "resharded-checkpoint-0007" / TAG
    left.mkdir(parents=True)
    others = tmp_path / "resharded-checkpoint-0007"

    def barrier():
        if not own_disk and not others.exists():
            others.mkdir()  # by rank 0

    found = reshard_once(tmp_path / "checkpoint-0007", 3, barrier)
    assert found == others
    assert not left.exists()
    assert made == ([found] if own_disk else [])
