"""Training on a dataset's answers: supervised fine-tuning, and any objective on given preferences.

The conductor of one phase. The lists are written and offered to the stream as ranked ones are, and the trainer takes
them as it takes those: epochs, packed rows, ranks, references and resuming are the same. No sampler and no reward
model is started.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from functools import partial

from actors.cast import TrainingCast
from actors.given_evaluation import heldout_folder, result_file
from actors.offline_preparation import OfflineRun
from actors.progress import STARTING, TRAINING, Progress
from actors.results import Results, write_model
from actors.session import conduct
from larpo.given_lists import GivenList, candidate_list
from larpo.home_sessions import push_rest
from larpo.list_evaluation import ListResult, format_list_table, list_done_record, list_summary
from larpo.list_metrics import list_metrics
from larpo.records import list_parts, write_part
from larpo.types import stable_hash


async def train_offline(run: OfflineRun) -> Results:
    """A whole run on the Ray cluster that is started: lists, trainer, model folder, report."""
    return await conduct(run, TrainingCast, partial(_train, run), _finish)


async def _train(run: OfflineRun, cast: TrainingCast, progress: Progress) -> None:
    progress.begin(STARTING, 0, 0)
    await asyncio.to_thread(write_heldout, run)
    await asyncio.to_thread(push_rest, run.home)
    cast.start_trainer()
    progress.begin(TRAINING, 0, len(run.given))
    await _offer(run, cast, progress)
    await cast.wait_trained(0)
    for iteration in (0, 1):
        if run.given_heldout and run.home.elsewhere:  # a rank on another node may have written it
            await asyncio.to_thread(run.home.pull, result_file(run.folder, iteration))
        result = _result(run, iteration)
        if result is not None:
            progress.log("evaluation", list_summary(result), label=result.label, iteration=iteration)
    progress.end_iteration(0)


def write_heldout(run: OfflineRun) -> None:
    """The held-out lists as parts of their own, for the ranks to read; once a run."""
    folder = heldout_folder(run.folder)
    if run.given_heldout and not list_parts(folder):
        write_part(folder, [candidate_list(item) for item in run.given_heldout], 0, 0)


async def _offer(run: OfflineRun, cast: TrainingCast, progress: Progress) -> None:
    """The lists in the order of the seed, part by part; those on disk from before a restart are there already."""
    recorded = set(await cast.call(cast.stream.open_iteration, 0))
    todo = [item for item in in_order(run) if item.preference.prompt.id not in recorded]
    progress.ranked = len(recorded)
    size = run.config.stream.lists_per_part
    for start in range(0, len(todo), size):
        lists = [candidate_list(item) for item in todo[start : start + size]]
        progress.log("lists", list_metrics(lists, run.config), iteration=0)
        await cast.call(cast.stream.offer, lists, limit_s=math.inf)  # the stream has its own
        progress.ranked += len(lists)
    await cast.call(cast.stream.close_iteration, 0)


def in_order(run: OfflineRun) -> Sequence[GivenList]:
    """The training lists as the first epoch takes them."""
    order = list(run.given)
    random.Random(stable_hash("list order", run.config.run.seed)).shuffle(order)
    return order


def _result(run: OfflineRun, iteration: int) -> ListResult | None:
    file = result_file(run.folder, iteration)
    return ListResult.from_json(file.read_text()) if file.exists() else None


def _finish(run: OfflineRun, _: None) -> Results:
    """The model folder, and what the trained policy makes of the held-out lists against the base policy."""
    before, after = _result(run, 0), _result(run, 1)
    metrics: dict[str, float] = {}
    table = "no held-out rows (preferences.heldout_count, less what was left out): nothing to compare"
    if before is not None and after is not None:
        resamples, seed = run.config.evaluation.bootstrap, run.config.run.seed
        metrics = list_done_record(before, after, resamples=resamples, seed=seed)
        table = format_list_table(metrics)
    write_model(run, metrics)
    return Results(run.folder, metrics, table)
