"""`weights`: from the publication of a version until every sampler generates with it, while the samplers are at work.

The trainer's part, gathering its shards and writing the folder, lies before: a version is published from its folder, as
after each iteration, in the type that the policy is computed in. The bytes are those of the policy and, with `--gib`,
of random weights of the same kind of model made wider and deeper. A plain copy of as many bytes within shared memory,
made while the samplers are at work too, is the physical limit beside it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from larpo.compute_type import settled
from larpo.config import Config
from larpo.errors import ConfigError
from larpo.policy import prepare_policy
from scripts.benchmarks.measuring import BenchmarkError, Comparison, Result, Series, in_own_process, seconds
from scripts.benchmarks.sampler_pool import random_prompts, ray_for, running_pool

PAUSE_S, BYTES_A_SECOND = 0.1, 1e9  # targets: at most, at least
WIDER = 4  # times as wide is the larger model
RESPONSES, RESPONSE_TOKENS, PROMPT_TOKENS = 4, 64, 16  # of each request that is under way during an update


@dataclass(frozen=True)
class Publications:
    """Versions of the model in `policy`, published one after the other, for `samplers` samplers."""

    policy: str  # folder
    dtype: str
    samplers: int
    repetitions: int
    warm_ups: int = 1

    @property
    def config(self) -> Config:
        samplers: dict[str, Any] = {
            "count": self.samplers,
            "max_model_len": 128,
            "max_num_seqs": 8,
            "enforce_eager": True,
        }
        samplers |= {"resources": {"CPU": 1.0 / self.samplers}}  # so that one machine holds any number
        policy = {"model": self.policy, "dtype": self.dtype}
        weights = {"on_update": "span"}  # else the end of the responses under way would be counted
        knobs = {"policy": policy, "samplers": samplers, "weights": weights, "sampling": {"k": RESPONSES}}
        return Config.model_validate(knobs)


def run_weights(policy: str, dtype: str, gib: float, samplers: int, repetitions: int) -> Result:
    """The policy itself, and one of `gib` GiB where that is more than 0."""
    config = settled(Config.model_validate({"policy": {"model": policy, "dtype": dtype}}))
    folder, dtype = prepare_policy(config.policy).path, config.policy.dtype
    with tempfile.TemporaryDirectory() as scratch:
        models = [folder]
        if gib > 0:
            models.append(Path(scratch) / "larger")
            in_own_process(write_larger, {"source": str(folder), "target": str(models[1]), "dtype": dtype, "gib": gib})
        rows, notes = [], []
        for model in models:
            found = in_own_process(published, asdict(Publications(str(model), dtype, samplers, repetitions)))
            rows += _rows(found, repetitions)
            notes.append(_parts(found, repetitions))
    settings = {"policy": folder.name, "gib": gib, "samplers": samplers, "dtype": dtype}
    return Result("weights", settings, tuple(rows), tuple(notes))


def _rows(found: Mapping[str, Any], repetitions: int) -> list[Comparison]:
    nbytes, name = found["bytes"], f"{found['bytes'] / 1e6:.0f} MB"
    counted = {key: tuple(found[key][-repetitions:]) for key in ("pause_s", "total_s", "copy_s")}
    speed, copy = (Series(label, tuple(nbytes / s for s in counted[key])) for label, key in _SPEEDS)
    return [
        Comparison(f"{name}: generation paused", "s", Series("larpo", counted["pause_s"]), _fixed(PAUSE_S), "<= 1"),
        Comparison(f"{name}: publish to all updated", "bytes/s a sampler", speed, _fixed(BYTES_A_SECOND), ">= 1"),
        Comparison(f"{name}: the same", "bytes/s a sampler", speed, copy),
    ]


_SPEEDS = (("larpo", "total_s"), ("plain copy", "copy_s"))
_PARTS = (
    ("into the store", "store_s"),
    ("pulled and checked", "pull_s"),
    ("loaded beside", "load_s"),
    ("paused and swapped", "pause_s"),
)


def _fixed(value: float) -> Series:
    return Series("target", (value,))


def _parts(found: Mapping[str, Any], repetitions: int) -> str:
    """Where the time from publication to update goes."""
    medians = [f"{text} {Series(key, tuple(found[key][-repetitions:])).median:.3g} s" for text, key in _PARTS]
    return f"{found['bytes'] / 1e6:.0f} MB: {', '.join(medians)} (slowest sampler; medians)"


def published(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of each publication, in lists by what is measured, and the bytes of one."""
    work = Publications(**settings)
    with tempfile.TemporaryDirectory() as folder, ray_for(work.config):
        target = Path(folder) / "policy-0001"
        nbytes = _write_published(Path(work.policy), target, work.config.weights.bucket_mib, work.dtype)
        found = asyncio.run(_publish_all(work, target))
    return {**found, "bytes": nbytes}


def _write_published(policy: Path, target: Path, bucket_mib: int, dtype: str) -> int:
    """The model's parameters in buckets of that type, as the trainer writes them; returns their bytes."""
    import torch
    from safetensors.torch import load_file

    from actors.published import PublishedFolder, encode_bucket, split_into_buckets

    parameters = {
        name: value.to(getattr(torch, dtype))
        for file in sorted(policy.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }
    sizes = {name: value.nbytes for name, value in parameters.items()}
    folder = PublishedFolder(target, 1)
    for names in split_into_buckets(sizes, bucket_mib * 2**20):
        folder.add(encode_bucket({name: parameters[name] for name in names}))
    folder.close()
    return sum(sizes.values())


async def _publish_all(work: Publications, folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {key: [] for key in ("store_s", "total_s", "pull_s", "load_s", "pause_s", "copy_s")}
    async with running_pool(work.config) as (pool, store):
        busy = [asyncio.create_task(_keep_busy(pool, work, number)) for number in range(work.samplers)]
        try:
            for version in range(1, work.warm_ups + work.repetitions + 1):
                await _until_busy(pool, busy)
                found["copy_s"].append(await asyncio.to_thread(copy_seconds, folder))
                await _until_busy(pool, busy)
                started = time.perf_counter()
                await store.publish_folder.remote(version, str(folder))
                found["store_s"].append(time.perf_counter() - started)
                await pool.update(version)
                found["total_s"].append(time.perf_counter() - started)
                await pool.poll()
                stats = [member.stats for member in pool.members if member.stats]
                if [each.weight_version for each in stats] != [version] * work.samplers:
                    raise BenchmarkError(f"not every sampler took version {version}: {stats}")
                found["pull_s"].append(max(each.pull_seconds for each in stats))
                found["load_s"].append(max(each.load_seconds for each in stats))
                found["pause_s"].append(max(each.pause_seconds for each in stats))
        finally:
            for task in busy:
                task.cancel()
            await asyncio.wait(busy)
    return found


async def _until_busy(pool: Any, busy: list[asyncio.Task[None]]) -> None:
    """Until every sampler has a request; what ended a task that gives them is raised."""
    while any(member.in_flight == 0 for member in pool.members):
        for task in busy:
            if task.done():
                task.result()
        await asyncio.sleep(0.01)


async def _keep_busy(pool: Any, work: Publications, number: int) -> None:
    """One prompt after the other, until cancelled: generation is what an update holds."""
    from actors.sampler import SampleTask

    vocabulary = json.loads((Path(work.policy) / "config.json").read_text())["vocab_size"]
    (prompt,) = random_prompts(1, PROMPT_TOKENS, vocabulary, number)
    for turn in itertools.count():
        key, counts = f"{number:04d}/{turn}", ((1.0, RESPONSES),)
        await pool.sample(SampleTask(key, 0, prompt, counts, RESPONSE_TOKENS, ignore_eos=True))


def copy_seconds(folder: Path) -> float:
    """Copying the folder's buckets once within shared memory, file by file."""
    from actors.sampler import shared_memory_folder

    with tempfile.TemporaryDirectory(dir=shared_memory_folder()) as memory:
        here, there = Path(memory) / "here", Path(memory) / "there"
        shutil.copytree(folder, here)
        return seconds(lambda: shutil.copytree(here, there))


def write_larger(settings: Mapping[str, Any]) -> None:
    """Random weights of the model in `source`, wider and with as many layers as come nearest to `gib`, in `target`.

    Raises ConfigError where even the one with a single layer is much larger than that.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source, target = Path(settings["source"]), Path(settings["target"])
    dtype = getattr(torch, settings["dtype"])
    config = AutoConfig.from_pretrained(source, local_files_only=True)
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(config, name, WIDER * getattr(config, name))
    one, two = (_bytes(config, layers, dtype) for layers in (1, 2))
    config.num_hidden_layers = layers_for(settings["gib"] * 2**30, one, two)
    config.dtype = dtype
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(target)


def layers_for(wanted: float, one: int, two: int) -> int:
    """Layers with which a model comes nearest to the wanted bytes; `one` and `two` are its bytes with so many.

    >>> layers_for(100.0, one=30, two=40)
    8
    """
    if one > 2 * wanted:
        raise ConfigError(
            f"--gib: {wanted / 2**30:.3g} GiB is less than one layer of the wider model needs"
            f" ({one / 2**30:.3g} GiB); ask for more"
        )
    return max(1, round((wanted - one) / (two - one)) + 1)


def _bytes(config: Any, layers: int, dtype: Any) -> int:
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    sized = copy.deepcopy(config)
    sized.num_hidden_layers = layers
    if getattr(sized, "layer_types", None):
        sized.layer_types = sized.layer_types[:layers]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(sized, dtype=dtype)
    return sum(parameter.nbytes for parameter in model.parameters())
