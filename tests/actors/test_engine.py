"""Real vLLM in real sampler actors: what they give is what the trainer's model says, before and after new weights."""

import asyncio
import dataclasses
import os
from types import SimpleNamespace

import psutil
import pytest
import torch

from actors.engine import Engine, EngineOptions
from actors.placement import kill, place_sampler, place_store
from actors.published import PublishedFolder, encode_bucket, read_buckets, split_into_buckets
from actors.sampler import SampleTask
from larpo.chat import encode_prompt, stop_token_ids
from larpo.config import Config, Policy
from larpo.errors import CheckpointError
from larpo.log_probs import packed_log_probs
from larpo.model_folder import save_model_folder
from larpo.packing import pack_list
from larpo.policy import load_policy, load_tokenizer, prepare_policy
from larpo.types import Message, Prompt, VersionSpan
from tests.toy_runs import command_of

FLOAT32_BOUND = 1e-4  # nats, the worst token
BF16_MEAN_BOUND, BF16_WORST_BOUND = 0.08, 2.0  # nats, mean and worst token
BUCKET_BYTES = 100_000  # cuts the tiny policy's layers apart, so that buckets end within them


@pytest.fixture(scope="module")
def place(local_ray):
    """`place(model folder, store)`: a started sampler; all are killed at the end."""
    placed = []

    def start(model, store, dtype="float32", version=0, **options):
        config = Config.model_validate(
            {
                "weights": {"on_update": "span"},  # requests go on under new weights
                "policy": {"model": str(model), "dtype": dtype},
                "samplers": {
                    "resources": {"CPU": 0},
                    "max_model_len": 512,
                    "max_num_seqs": 32,
                    "enforce_eager": True,
                },
            }
        )
        chosen = dataclasses.replace(EngineOptions.of(config), **options)
        sampler = place_sampler(config, chosen, prepare_policy(config.policy), store)
        placed.append(sampler)
        return sampler, local_ray.get(sampler.start.remote(version))

    yield start
    for sampler in placed:
        kill(sampler)


@pytest.fixture(scope="module")
def house(place, local_ray, tiny_policy):
    """The module's one sampler and its store."""
    store = place_store()
    sampler, version = place(tiny_policy, store)
    assert version == 0
    return SimpleNamespace(get=local_ray.get, wait=local_ray.wait, store=store, sampler=sampler)


@pytest.fixture(scope="module")
def prompt_ids(tiny_policy) -> tuple[int, ...]:
    return encode_prompt(load_tokenizer(tiny_policy), Prompt("p", (Message("user", "Say something."),)))


def pull_newest(house) -> int:
    """The sampler takes the newest weights of the store; returns their version."""
    return house.get(house.sampler.update.remote(house.get(house.store.newest.remote())))


@pytest.fixture
def publish(house, tiny_policy, tmp_path):
    """`publish(seed)`: other weights become the newest version; returns it and the model that has them."""

    def make(seed):
        version = house.get(house.store.newest.remote()) + 1
        model = other_model(tiny_policy, seed)
        folder = write_policy(tmp_path / f"policy-{version}", version, model)
        house.get(house.store.publish_folder.remote(version, str(folder)))
        return version, model

    return make


def other_model(folder, seed, dtype="float32", noise=0.05):
    """The folder's model with noise on every weight."""
    model = load_policy(folder, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return model


def write_policy(folder, version, model, bucket_bytes=BUCKET_BYTES, fixed=()):
    """`fixed` names parameters that have buckets of their own, which are said to be so."""
    parameters = dict(model.named_parameters())
    target = PublishedFolder(folder, version)
    for is_fixed in (False, True):
        sizes = {name: value.nbytes for name, value in parameters.items() if (name in fixed) == is_fixed}
        for names in split_into_buckets(sizes, bucket_bytes):
            target.add(encode_bucket({name: parameters[name].detach() for name in names}), is_fixed)
    target.close()
    return folder


def task(prompt_ids, counts, max_new_tokens, key="task", **changes):
    return SampleTask(key, 0, tuple(prompt_ids), counts, max_new_tokens, **changes)


def greedy(house, prompt_ids, sampler=None):
    (candidate,) = house.get((sampler or house.sampler).sample.remote(task(prompt_ids, ((0.0, 1),), 48)))
    return candidate


def differences(model, prompt_ids, candidates):
    """|sampler's - trainer's log-probability| of every sampled token."""
    with torch.no_grad():
        row = pack_list(prompt_ids, [c.token_ids for c in candidates])
        trainer_N = packed_log_probs(model, row).token_log_probs_N
    sampler_N = torch.tensor([value for c in candidates for value in c.log_probs])
    return (sampler_N - trainer_N).abs()


def test_an_engine_on_cores_is_one_process_and_keeps_to_them(house):
    """vLLM's own executor has a second one, which spins beside it."""
    children = psutil.Process(house.get(house.sampler.pid.remote())).children(recursive=True)
    (engine,) = (child for child in children if command_of(child).startswith("VLLM::"))
    everywhere = len(os.sched_getaffinity(0))
    assert len(engine.cpu_affinity()) <= max(1, everywhere - 1)  # `auto` leaves a core to others


def test_what_one_worker_could_not_load_is_said_once_and_ends_the_wait_for_the_others():
    """Who has said it answers False from then on: with the others still at work, no look would find all of them."""
    looks = iter([[False, False], ["it does not load", False], [False, True], [False, True]])

    async def asked(method, args=()):
        return [True, True] if method == "larpo_prepare_weights" else next(looks)

    engine = Engine(SimpleNamespace(collective_rpc=asked), loads_beside=True)
    with pytest.raises(CheckpointError, match="it does not load"):
        asyncio.run(asyncio.wait_for(engine.prepare_weights(()), 5))


# --- What a sampler gives


def test_log_probs_are_the_trainers(house, prompt_ids, tiny_policy):
    candidates = house.get(house.sampler.sample.remote(task(prompt_ids, ((1.0, 8),), 64)))
    difference_N = differences(load_policy(tiny_policy, dtype="float32"), prompt_ids, candidates)
    print(f"float32: worst {difference_N.max():.2e}, mean {difference_N.mean():.2e} over {len(difference_N)} tokens")
    assert difference_N.max() < FLOAT32_BOUND


def test_log_probs_are_raw_at_every_temperature(house, prompt_ids, tiny_policy):
    counts = ((0.5, 3), (2.0, 2), (0.0, 1))
    candidates = house.get(house.sampler.sample.remote(task(prompt_ids, counts, 32, key="0000/p")))
    assert [candidate.temperature for candidate in candidates] == [0.5, 0.5, 0.5, 2.0, 2.0, 0.0]
    assert [candidate.id for candidate in candidates] == [f"0000/p/{number}" for number in range(6)]
    assert len({candidate.token_ids for candidate in candidates}) == 6
    assert differences(load_policy(tiny_policy, dtype="float32"), prompt_ids, candidates).max() < FLOAT32_BOUND


def test_temperature_zero_is_greedy(house, prompt_ids, tiny_policy):
    model = load_policy(tiny_policy, dtype="float32")
    expected = model.generate(torch.tensor([prompt_ids]), do_sample=False, max_new_tokens=48)[0, len(prompt_ids) :]
    assert greedy(house, prompt_ids).token_ids == tuple(expected.tolist())


def test_responses_end_at_eos_or_at_the_limit(house, prompt_ids, tiny_policy):
    limit, tokenizer = 300, load_tokenizer(tiny_policy)
    candidates = house.get(house.sampler.sample.remote(task(prompt_ids, ((1.0, 32),), limit)))
    assert {candidate.finish_reason for candidate in candidates} == {"stop", "length"}
    for candidate in candidates:
        *body, last = candidate.token_ids
        assert tokenizer.eos_token_id not in body
        if candidate.finish_reason == "stop":
            assert last == tokenizer.eos_token_id
            assert tokenizer.eos_token not in candidate.text
        else:
            assert len(candidate.token_ids) == limit
            assert last != tokenizer.eos_token_id


def test_a_stop_string_ends_a_response_and_is_not_in_its_text(house, prompt_ids, tiny_policy):
    tokenizer, vowels = load_tokenizer(tiny_policy), ("a", "e", "i", "o", "u")
    candidates = house.get(house.sampler.sample.remote(task(prompt_ids, ((1.0, 16),), 300, stop=vowels)))
    stopped = [candidate for candidate in candidates if candidate.token_ids[-1] != tokenizer.eos_token_id]
    assert stopped
    for candidate in stopped:
        assert candidate.finish_reason == "stop"
        assert tokenizer.decode(candidate.token_ids[-1:]) in vowels  # trained on as it was sampled
        assert not set(candidate.text) & set(vowels)


def test_a_stop_token_ends_a_response_and_stays_in_its_tokens(house, prompt_ids, tiny_policy):
    (free,) = house.get(house.sampler.sample.remote(task(prompt_ids, ((0.0, 1),), 12)))
    end = free.token_ids[6]
    (stopped,) = house.get(house.sampler.sample.remote(task(prompt_ids, ((0.0, 1),), 12, stop_token_ids=(end,))))
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(end) + 1]
    assert stopped.finish_reason == "stop"


# --- New weights


def test_an_update_in_flight(house, publish, place, prompt_ids, tiny_policy, tmp_path):
    """Running requests go on under the new weights, and the sampler is then what a fresh engine would be."""
    before, old = pull_newest(house), current_model(house, tiny_policy)
    first = greedy(house, prompt_ids)
    running = [house.sampler.sample.remote(task(prompt_ids, ((1.0, 16),), 300, key=f"{n}")) for n in range(8)]
    house.wait(running, num_returns=1)
    after, new = publish(seed=1)
    assert pull_newest(house) == after
    candidates = [candidate for answer in house.get(running) for candidate in answer]

    assert len({candidate.id for candidate in candidates}) == 8 * 16
    for candidate in candidates:
        spans, length = candidate.versions, len(candidate.token_ids)
        assert [span.version for span in spans] in ([before], [before, after], [after])
        assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
        assert spans[-1].end == length
        assert all(span.start < span.end for span in spans)
    assert agree_across_versions(candidates, {before: old, after: new}, prompt_ids)

    second = greedy(house, prompt_ids)
    assert second.versions == (VersionSpan(0, len(second.token_ids), after),)
    assert second.token_ids != first.token_ids
    save_model_folder(tmp_path / "fresh", tiny_policy, new.named_parameters(), "")
    fresh, _ = place(tmp_path / "fresh", place_store())
    assert greedy(house, prompt_ids, fresh).token_ids == second.token_ids
    kill(fresh)


def agree_across_versions(candidates, models, prompt_ids):
    """Those sampled under two versions; each span's tokens have the log-probabilities of its version's model."""
    across = [candidate for candidate in candidates if len(candidate.versions) == 2]
    for candidate in across:
        for span in candidate.versions:
            difference_N = differences(models[span.version], prompt_ids, [candidate])
            assert difference_N[span.start : span.end].max() < FLOAT32_BOUND
    return across


def current_model(house, tiny_policy):
    """The model of the newest published weights, from the store's own buckets."""
    from safetensors.torch import load

    model, version = load_policy(tiny_policy, dtype="float32"), house.get(house.store.newest.remote())
    if version:
        for bucket in house.get(house.store.buckets.remote(version)):
            model.load_state_dict(load(house.get(bucket.reference[0]).tobytes()), strict=False)
    return model


def test_a_late_sampler_starts_with_the_newest_weights(house, publish, place, prompt_ids, tiny_policy):
    version, _ = publish(seed=2)
    pull_newest(house)
    late, found = place(tiny_policy, house.store, version=version)
    assert found == version
    theirs, ours = greedy(house, prompt_ids, late), greedy(house, prompt_ids)
    assert theirs.token_ids == ours.token_ids
    assert theirs.versions == (VersionSpan(0, len(theirs.token_ids), version),)
    kill(late)


def test_a_damaged_bucket_is_refused_and_sampling_goes_on(house, publish, prompt_ids, tiny_policy, tmp_path):
    before, expected = pull_newest(house), greedy(house, prompt_ids).token_ids
    buckets = []
    for data in read_buckets(write_policy(tmp_path / "damaged", before + 1, other_model(tiny_policy, seed=3))):
        whole = house.get(house.store.put_bucket.remote(data))
        flipped = data.copy()
        flipped[-1] ^= 1
        damaged = house.get(house.store.put_bucket.remote(flipped))
        buckets.append(dataclasses.replace(damaged, checksum=whole.checksum))
    house.get(house.store.publish.remote(before + 1, tuple(buckets)))

    with pytest.raises(CheckpointError, match=f"bucket 0 of weight version {before + 1} arrived damaged"):
        pull_newest(house)
    still = greedy(house, prompt_ids)
    assert still.token_ids == expected
    assert still.versions == (VersionSpan(0, len(expected), before),)

    after, _ = publish(seed=4)
    assert pull_newest(house) == after


def test_weights_that_cannot_be_loaded_leave_those_in_use(house, publish, prompt_ids, tiny_policy, tmp_path):
    before, expected = pull_newest(house), greedy(house, prompt_ids).token_ids
    target = PublishedFolder(tmp_path / "cut", before + 1)
    for name, value in other_model(tiny_policy, seed=5).named_parameters():
        target.add(encode_bucket({name: value.detach()[:-1]}))
    target.close()
    house.get(house.store.publish_folder.remote(before + 1, str(tmp_path / "cut")))
    running = house.sampler.sample.remote(task(prompt_ids, ((1.0, 8),), 200, key="cut"))
    with pytest.raises(Exception, match=r"CheckpointError: new weights could not be loaded, at model\.\S+: "):
        pull_newest(house)
    assert {span.version for candidate in house.get(running) for span in candidate.versions} == {before}
    assert greedy(house, prompt_ids).token_ids == expected

    after, _ = publish(seed=6)
    assert pull_newest(house) == after


@pytest.fixture(params=["beside", "in place"])
def taker(request, house, place, tiny_policy):
    """A sampler with weights of version 0 or more, which takes new ones in either way."""
    if request.param == "beside":
        yield house.sampler
    else:
        sampler, _ = place(tiny_policy, house.store, loads_beside=False)
        yield sampler
        kill(sampler)


def test_fixed_buckets_are_pulled_once_and_again_when_they_are_others(house, taker, prompt_ids, tiny_policy, tmp_path):
    """Embeddings, norms and a layer's feed-forward network: the rest changes at each update, they at the last."""
    models = [other_model(tiny_policy, seed) for seed in (21, 22, 23)]
    parameters = [dict(model.named_parameters()) for model in models]
    marks = ("norm", "embed", "layers.1.mlp")
    fixed = [name for name in parameters[0] if any(mark in name for mark in marks)]
    with torch.no_grad():
        for name in fixed:
            parameters[1][name].copy_(parameters[0][name])
    pulled = []
    for model in models:
        version = house.get(house.store.newest.remote()) + 1
        folder = write_policy(tmp_path / f"policy-{version}", version, model, fixed=fixed)
        house.get(house.store.publish_folder.remote(version, str(folder)))
        assert house.get(taker.update.remote(version)) == version
        pulled.append(house.get(taker.stats.remote()).pull_bytes)
        candidates = house.get(taker.sample.remote(task(prompt_ids, ((1.0, 8),), 64, key=f"f{version}")))
        assert differences(model, prompt_ids, candidates).max() < FLOAT32_BOUND
    kept = sum(parameters[0][name].nbytes for name in fixed)
    assert pulled[0] == pulled[2]
    assert kept <= pulled[0] - pulled[1] <= kept + 1000 * len(fixed)  # with the headers of the files


# --- The real policy


@pytest.mark.slow
def test_an_engine_over_two_workers_samples_takes_weights_and_ends_as_one(
    place, local_ray, prompt_ids, tiny_policy, tmp_path
):
    """Tensor parallelism, here on two cores: each worker keeps its part of every bucket."""
    store = place_store()
    sampler, _ = place(tiny_policy, store, tensor_parallel_size=2, cpu_cores="0|1")
    model = load_policy(tiny_policy, dtype="float32")
    for version in (0, 1):
        if version:
            model = other_model(tiny_policy, seed=11)
            folder = write_policy(tmp_path / "policy-1", 1, model)
            local_ray.get(store.publish_folder.remote(1, str(folder)))
            assert local_ray.get(sampler.update.remote(1)) == 1
        candidates = local_ray.get(sampler.sample.remote(task(prompt_ids, ((1.0, 8),), 48, key=str(version))))
        worst = differences(model, prompt_ids, candidates).max()
        print(f"version {version}: worst {worst:.2e} over two workers")
        assert worst < FLOAT32_BOUND
    workers = [p for p in psutil.Process().children(recursive=True) if "VLLM::Worker_TP" in command_of(p)]
    assert len(workers) == 2
    kill(sampler)
    assert not psutil.wait_procs(workers, timeout=30)[1]


@pytest.mark.slow
def test_a_compiled_engine_takes_new_weights_in_flight(house, publish, place, prompt_ids, tiny_policy):
    """The compiled code reads the weights that have taken the place of those that it was compiled with."""
    before, old = publish(seed=4)
    compiled, _ = place(tiny_policy, house.store, version=before, enforce_eager=False)
    running = [compiled.sample.remote(task(prompt_ids, ((1.0, 16),), 300, key=f"c{n}")) for n in range(8)]
    house.wait(running, num_returns=1)
    after, new = publish(seed=5)
    assert house.get(compiled.update.remote(after)) == after
    candidates = [candidate for answer in house.get(running) for candidate in answer]
    assert agree_across_versions(candidates, {before: old, after: new}, prompt_ids)
    fresh = house.get(compiled.sample.remote(task(prompt_ids, ((1.0, 8),), 64, key="fresh")))
    assert differences(new, prompt_ids, fresh).max() < FLOAT32_BOUND
    kill(compiled)


@pytest.mark.slow
def test_log_probs_of_smollm2_in_bf16_are_the_trainers_before_and_after_an_update(
    place, local_ray, tmp_path, pytestconfig
):
    policy = prepare_policy(Policy(), pytestconfig.cache.mkdir("policies"))
    model, tokenizer = load_policy(policy.path), load_tokenizer(policy.path)
    prompts = [
        encode_prompt(tokenizer, Prompt("p", (Message("user", text),)))
        for text in ("What is 7 + 5?", "Write a line about the sea.", "Name three colours and say what they mean.")
    ]
    ends, store = stop_token_ids(tokenizer, model.generation_config), place_store()
    sampler, _ = place(policy.path, store, dtype="bfloat16")

    def check(label, model):
        tasks = [task(ids, ((1.0, 4),), 32, stop_token_ids=ends) for ids in prompts]
        answers = local_ray.get([sampler.sample.remote(each) for each in tasks])
        difference_N = torch.cat([differences(model, *pair) for pair in zip(prompts, answers, strict=True)])
        print(
            f"bf16 {label}: worst {difference_N.max():.3f}, mean {difference_N.mean():.4f}, {len(difference_N)} tokens"
        )
        assert difference_N.mean() < BF16_MEAN_BOUND
        assert difference_N.max() < BF16_WORST_BOUND

    check("before", model)
    other = other_model(policy.path, seed=1, dtype="bfloat16", noise=0.01)
    folder = write_policy(tmp_path / "other", 1, other, bucket_bytes=64 * 2**20)
    local_ray.get(store.publish_folder.remote(1, str(folder)))
    assert local_ray.get(sampler.update.remote(1)) == 1
    check("after", other)
    held = []
    for version in range(2, 6):
        local_ray.get(store.lend_folder.remote(version, str(folder)))
        assert local_ray.get(sampler.update.remote(version)) == version
        local_ray.get(sampler.sample.remote(task(prompts[0], ((1.0, 1),), 4)))  # after it the twin has been released
        held.append(local_ray.get(sampler.stats.remote()).memory_bytes)
    print(f"held after updates: {[number // 2**20 for number in held]} MiB")
    assert held[-1] - held[0] < 100 * 2**20  # an embedding and its packed copy, thrice, would be 340 MB
    kill(sampler)
