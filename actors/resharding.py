"""Checkpoints made loadable by another number of ranks than wrote them: DeepSpeed's universal checkpoint.

Without ZeRO every rank has the whole optimizer state, and what rank 0 wrote serves any number of them. From stage 1 on
each rank writes its piece, and DeepSpeed refuses to load the pieces of another number of ranks: they are put together
by parameter first, and each rank takes its new pieces from that.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from larpo.errors import CheckpointError
from larpo.home import MANIFEST, manifest_files

TAG = "engine"  # the folder within a checkpoint that DeepSpeed writes


def is_for_others(checkpoint: Path, ranks: int) -> bool:
    """Whether a checkpoint holds pieces of another number of ranks. `checkpoint` has been found whole."""
    manifest = checkpoint / MANIFEST  # names those too that lie on other nodes
    names = manifest_files(checkpoint) if manifest.is_file() else [path.name for path in (checkpoint / TAG).glob("*")]
    return sum(name.endswith("_optim_states.pt") for name in names) not in (0, ranks)


def reshard(checkpoint: Path, target: Path) -> None:
    """Write to `target` what any number of ranks can load; CheckpointError when there is no room for it.

    It needs the disk space of the checkpoint once more, twice while it is made. In one process: forked ones would
    inherit the threads of a Ray worker.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    options = {
        "input_folder": str(checkpoint / TAG),
        "output_folder": str(target / TAG),
        "num_extract_workers": 1,
        "num_merge_workers": 1,
        "keep_temp_folder": False,
        "strict": True,
        "inject_missing_state": True,  # nothing of ours is split by tensor or pipeline
    }
    try:
        (target / TAG).mkdir(parents=True)
        main(SimpleNamespace(**options))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"could not make {checkpoint} loadable by another number of workers: {error}. Free disk space beside it, or"
            " resume with as many training.workers as wrote it"
        ) from error


def reshard_once(checkpoint: Path, rank: int, barrier: Callable[[], None]) -> Path:
    """The same by one rank for all that see its disk, or else by the first of each node; every rank calls it."""
    target, is_first_of_node = checkpoint.parent / f"resharded-{checkpoint.name}", os.environ.get("LOCAL_RANK") == "0"
    if rank == 0 or is_first_of_node:
        for left in target.parent.glob("resharded-*"):  # of a start that was cut off, whatever it started from
            shutil.rmtree(left, ignore_errors=True)
    barrier()
    if rank == 0:
        reshard(checkpoint, target)
    barrier()
    if not target.exists() and is_first_of_node:
        reshard(checkpoint, target)
    barrier()
    return target
