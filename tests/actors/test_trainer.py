"""Ray Train and DeepSpeed on a tiny policy, against AdamW steps of plain torch on the same lists.

Bounds are on the largest difference of any weight, over the largest change that training made to any weight.
AdamW's `eps` is large enough that the noise of a gradient does not decide about the sign of a step.
"""

import copy
import os
import subprocess

import pytest
import torch

from actors.checkpoints import newest_checkpoint, read_state
from larpo.baselines import ListBatch
from larpo.bound_objective import BoundObjective
from larpo.errors import CheckpointError, TrainingError
from larpo.list_step import mismatched_rows
from larpo.log_probs import plain_log_probs
from larpo.objective_table import get_spec
from larpo.policy import load_policy

FLOAT32, FLOAT32_WIDER, BFLOAT16 = 1e-4, 1e-3, 0.06
LENGTHS = ((7, 3), (2, 9, 5), (12, 1, 4, 6), (3, 8), (5, 5, 5), (1, 2), (10, 4), (6, 2, 3))
ROW_TOKENS = 24  # the third list goes into two rows
RATE = 1e-2


@pytest.fixture(scope="module")
def lists(make_list):
    return [make_list(number, lengths) for number, lengths in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def start(tiny_policy) -> dict[str, torch.Tensor]:
    return start_of(tiny_policy)


def start_of(folder) -> dict[str, torch.Tensor]:
    return _weights(load_policy(folder, dtype="float32"))


@pytest.fixture(scope="module")
def plain(tiny_policy):
    """`plain(batches)`: float32 weights after a step of torch's AdamW on the mean loss of each batch of lists.

    Before the batches numbered in `refresh`, the reference becomes the policy as it is then.
    """

    def steps(batches, *, refresh=(), objective="lambdarank", folder=tiny_policy, rate=RATE) -> dict[str, torch.Tensor]:
        policy = load_policy(folder, dtype="float32", attn_implementation="eager")
        reference = copy.deepcopy(policy)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1)
        for number, batch in enumerate(batches):
            if number in refresh:
                reference = copy.deepcopy(policy)
            divergence = _divergence(policy, reference, batch)
            loss = sum(_list_loss(policy, reference, item, objective, divergence) for item in batch) / len(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimizer.step()
        return _weights(policy)

    return steps


def _weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _list_loss(policy, reference, item, objective, divergence):
    """One list's loss at beta = 1, a sequence at a time."""

    def log_probs_M(model):
        return torch.stack([plain_sum(model, item.prompt_token_ids, c.token_ids) for c in item.candidates])

    with torch.no_grad():
        reference_M = log_probs_M(reference)
    batch = ListBatch(
        log_probs_LM=log_probs_M(policy)[None],
        reference_LM=reference_M[None],
        rewards_LM=torch.tensor([[candidate.reward for candidate in item.candidates]]),
        lengths_LM=torch.tensor([[len(candidate.token_ids) for candidate in item.candidates]]),
        divergence=divergence,
    )
    return BoundObjective(get_spec(objective), 1.0).loss(batch)[0]


def plain_sum(model, prompt_ids, response_ids):
    return plain_log_probs(model, prompt_ids, response_ids).sum()


@torch.no_grad()
def _divergence(policy, reference, batch):
    """Each prompt with a response of the next list; which one is the program's choice."""
    ratios = []
    for row in mismatched_rows(batch):
        prompt, response = row.input_ids_T[: row.lists[0].prompt_length].tolist(), row.target_ids_N.tolist()
        ratios.append(plain_sum(policy, prompt, response) - plain_sum(reference, prompt, response))
    return torch.stack(ratios).mean()


def distance(found, expected, start) -> float:
    """Largest difference between two sets of weights, over the largest change since the start."""
    assert found.keys() == expected.keys()
    apart = max(float((found[name].float() - expected[name].float()).abs().max()) for name in expected)
    moved = max(float((expected[name].float() - start[name].float()).abs().max()) for name in expected)
    print(f"distance {apart / moved:.2e}")
    return apart / moved


@pytest.fixture(scope="module")
def one_rank(train, trainer_config, lists, tmp_path_factory):
    """Two steps, of five lists and of three, by one rank under ZeRO 2."""
    config = trainer_config(training={"zero_stage": 2, "row_tokens": ROW_TOKENS})
    return train(config, tmp_path_factory.mktemp("one_rank"), [[lists[:5], lists[5:]]], fresh=True)


def test_one_rank_takes_the_steps_of_plain_adamw(one_rank, plain, lists, start):
    """Lists of unequal length, one in two rows, weight decay, and clipping."""
    assert one_rank.metric("lists") == [5, 3]
    assert one_rank.metric("rows") == [6, 3]
    assert one_rank.metric("bad_steps") == [0, 0]
    assert min(one_rank.metric("grad_norm")) > 0.5
    assert distance(one_rank.policy(1), plain([lists[:5], lists[5:]]), start) < FLOAT32


@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_what_the_reference_said_before_it_is_not_asked_again(
    train, trainer_config, plain, lists, start, tiny_policy, tmp_path, ranks, stage
):
    """Of remembered candidates it is stored. Under ZeRO-3 ranks stay in step by asking for whole lists."""
    reference = load_policy(tiny_policy, dtype="float32")

    def remembered(item):
        first, *rest = item.candidates
        value = float(plain_sum(reference, item.prompt_token_ids, first.token_ids).detach())
        known = first.replace(reference_log_prob=value, reference_fingerprint="tiny")
        return item.replace(candidates=(known, *rest))

    training = {"workers": ranks, "zero_stage": stage, "row_tokens": ROW_TOKENS}
    trained = train(trainer_config(training=training), tmp_path, [[lists[:5], [remembered(i) for i in lists[5:]]]])
    assert distance(trained.policy(1), plain([lists[:5], lists[5:]]), start) < FLOAT32
    asked = {candidate.id for item in lists for candidate in item.candidates}
    known = {item.candidates[0].id for item in lists[5:]} if stage < 3 else set()
    assert trained.references.keys() == asked - known


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), (2, 0), (2, 3)])
def test_lists_that_share_rows_take_the_same_steps(
    train, trainer_config, one_rank, plain, lists, start, tmp_path, ranks, stage
):
    training = {"workers": ranks, "zero_stage": stage, "row_tokens": ROW_TOKENS, "shared_row_tokens": 60}
    trained = train(trainer_config(training=training), tmp_path, [[lists[:5], lists[5:]]])
    assert sum(trained.metric("rows")) < sum(one_rank.metric("rows"))
    assert distance(trained.policy(1), plain([lists[:5], lists[5:]]), start) < FLOAT32
    assert trained.references.keys() == one_rank.references.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simpo", "kto"])
def test_baselines_take_the_steps_of_plain_adamw_too(train, trainer_config, plain, lists, start, tmp_path, name):
    """One without a reference, one that needs a divergence on top of it; the reference is computed or it is not."""
    config = trainer_config(training={"row_tokens": ROW_TOKENS}, objective={"name": name})
    trained = train(config, tmp_path, [[lists[:5], lists[5:]]])
    assert distance(trained.policy(1), plain([lists[:5], lists[5:]], objective=name), start) < FLOAT32
    assert bool(trained.references) == get_spec(name).reference
    assert ("train/kl_to_reference" in trained.steps[0]["metrics"]) == get_spec(name).reference


@pytest.mark.slow
def test_ranks_of_sharded_weights_stay_in_step_when_kto_asks_for_more_passes(
    train, trainer_config, lists, wider_policy, tmp_path
):
    """Three lists on one rank, two on the other, then two and one: one of them has no stranger to compare with."""
    config = trainer_config(
        training={"workers": 2, "zero_stage": 3, "chunk_tokens": 4, "row_tokens": ROW_TOKENS}, objective={"name": "kto"}
    )
    trained = train(config, tmp_path, [[lists[:5], lists[5:]]], policy=wider_policy)
    assert trained.metric("lists") == [5, 3]
    assert trained.metric("bad_steps") == [0, 0]


def layouts(*quick):
    """Every number of ranks and ZeRO stage; those that are not `quick` are slow tests."""
    return [
        pytest.param(ranks, stage, id=f"{ranks} ranks, ZeRO {stage}", marks=() if quick_one else pytest.mark.slow)
        for ranks in (1, 2)
        for stage in (0, 1, 2, 3)
        if (quick_one := (ranks, stage) in quick) or (ranks, stage) != (1, 2)
    ]


@pytest.mark.parametrize(("ranks", "stage"), layouts((2, 3)))
def test_ranks_and_stages_give_the_same_weights(
    train, trainer_config, one_rank, plain, lists, start, tmp_path, ranks, stage
):
    """Two ranks have three lists and two in the first step, two and one in the second: one rank makes empty passes."""
    config = trainer_config(training={"workers": ranks, "zero_stage": stage, "row_tokens": ROW_TOKENS})
    trained = train(config, tmp_path, [[lists[:5], lists[5:]]], fresh=(ranks, stage) == (2, 3))
    assert distance(trained.policy(1), one_rank.policy(1), start) < FLOAT32
    assert distance(trained.policy(1), plain([lists[:5], lists[5:]]), start) < FLOAT32
    for name in ("lists", "rows", "loss", "kl_to_reference", "entropy", "grad_norm", "ranking_accuracy"):
        assert trained.metric(name) == pytest.approx(one_rank.metric(name), rel=1e-3, abs=1e-5), name
    assert trained.consumed == one_rank.consumed


@pytest.mark.slow
def test_parameters_that_lie_in_pieces_over_the_ranks_give_the_same_weights(
    train, trainer_config, plain, make_list, wider_policy, tmp_path
):
    """Rows of one chunk beside rows of six: every rank has to gather the output head as often."""
    training = {"workers": 2, "zero_stage": 3, "chunk_tokens": 4, "row_tokens": ROW_TOKENS, "iterations": 2}
    config = trainer_config(training=training, objective={"reference": "iteration"})
    rounds = [[make_list(n, LENGTHS[n], iteration=iteration) for n in range(5)] for iteration in range(2)]
    trained = train(config, tmp_path, [[rounds[0]], [rounds[1]]], policy=wider_policy)
    expected = plain(rounds, refresh={1}, folder=wider_policy)
    assert distance(trained.policy(2), expected, start_of(wider_policy)) < FLOAT32_WIDER


bfloat16_layouts = pytest.mark.parametrize(
    ("ranks", "stage"),
    [(1, 1), *(pytest.param(*layout, marks=pytest.mark.slow) for layout in ((1, 0), (2, 2), (2, 3)))],
)


@bfloat16_layouts
def test_bfloat16_stays_near_the_float32_steps(train, trainer_config, plain, lists, start, tmp_path, ranks, stage):
    """By the length of the difference, over that of the change: the largest one is a matter of rounding."""
    training = {"workers": ranks, "zero_stage": stage, "row_tokens": ROW_TOKENS}
    trained = train(trainer_config(training=training, policy={"dtype": "bfloat16"}), tmp_path, [[lists[:5], lists[5:]]])
    assert {tensor.dtype for tensor in trained.policy(1).values()} == {torch.bfloat16}
    found, expected = (_change(weights, start) for weights in (trained.policy(1), plain([lists[:5], lists[5:]])))
    apart = float((found - expected).norm() / expected.norm())
    print(f"{ranks} ranks, ZeRO {stage}: {apart:.3f} apart")
    assert apart < BFLOAT16


@bfloat16_layouts
def test_bfloat16_weights_move_on_average_by_steps_that_rounding_to_the_nearest_would_lose(
    train, trainer_config, plain, lists, start, tmp_path, ranks, stage
):
    """By how much of the change of float32 weights is found in them."""
    rate = 3e-5
    optimizer = trainer_config().training.optimizer.model_dump() | {"learning_rate": rate}
    training = {"workers": ranks, "zero_stage": stage, "optimizer": optimizer}
    trained = train(trainer_config(training=training, policy={"dtype": "bfloat16"}), tmp_path, [[lists[:5], lists[5:]]])
    begun = {name: tensor.bfloat16().float() for name, tensor in start.items()}
    change = _change(plain([lists[:5], lists[5:]], rate=rate), start)
    moved = _change(trained.policy(1), begun)
    whole = _change(begun, dict.fromkeys(begun, 0.0))
    nearest = (whole + change).bfloat16().float() - whole
    shares = [float(part @ change / (change @ change)) for part in (moved, nearest)]
    print(f"{ranks} ranks, ZeRO {stage}: {shares[0]:.3f} of the change, {shares[1]:.3f} to the nearest")
    assert 0.8 < shares[0] < 1.2
    assert shares[1] < 0.2


def _change(weights, start) -> torch.Tensor:
    return torch.cat([(weights[name].float() - start[name]).flatten() for name in sorted(start)])


@pytest.mark.parametrize("ranks", [1, 2])
def test_threads_that_are_not_given_are_a_lone_workers_own_and_idle_ones(train, trainer_config, lists, tmp_path, ranks):
    """Two workers of a node have their own: each would take what the other needs next."""
    config = trainer_config(training={"workers": ranks, "zero_stage": 2, "threads": 0, "row_tokens": ROW_TOKENS})
    threads = train(config, tmp_path, [[lists[:5], lists[5:]]]).metric("threads")
    assert threads
    assert all(1 <= found <= (os.cpu_count() if ranks == 1 else 1) for found in threads)


def test_phase_by_phase_and_streaming_train_on_the_same_lists(
    train, trainer_config, one_rank, make_list, lists, tmp_path
):
    """Though the lists come in another order, in other parts, among some without signal."""
    no_signal = make_list(50, rewards=(1.0, 1.0))
    config = trainer_config(overlap="none", training={"zero_stage": 2, "row_tokens": ROW_TOKENS})
    trained = train(config, tmp_path, [[[lists[7], no_signal], lists[2:7], lists[:2]]])
    assert {key: sorted(ids) for key, ids in trained.consumed.items()} == {"0/0": [f"p{n}" for n in range(8)]}
    assert {key: sorted(ids) for key, ids in one_rank.consumed.items()} == {"0/0": [f"p{n}" for n in range(8)]}


@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_epochs_and_iterations_go_on_with_their_own_reference(
    train, trainer_config, plain, make_list, start, tmp_path, ranks, stage
):
    """`reference: iteration` takes the policy that the iteration began with, and names it in what it stores."""
    training = {"iterations": 2, "epochs": 2, "prompts_per_iteration": 3, "lists_per_step": 3}
    config = trainer_config(
        training={**training, "workers": ranks, "zero_stage": stage}, objective={"reference": "iteration"}
    )
    rounds = [[make_list(n, LENGTHS[n], iteration=iteration) for n in range(3)] for iteration in range(2)]
    trained = train(config, tmp_path, [[rounds[0]], [rounds[1]]])
    assert list(trained.consumed) == ["0/0", "0/1", "1/0", "1/1"]
    assert all(sorted(ids) == ["p0", "p1", "p2"] for ids in trained.consumed.values())
    batches = [rounds[0], rounds[0], rounds[1], rounds[1]]
    assert distance(trained.policy(2), plain(batches, refresh={2}), start) < FLOAT32
    names = {key.split("/")[0]: name for key, (_, name) in trained.references.items()}
    assert names == {"0000": "tiny", "0001": "tiny@1"}
    assert trained.metric("kl_to_reference")[0::2] == pytest.approx([0, 0], abs=1e-4)  # the reference is the policy
    assert min(abs(value) for value in trained.metric("kl_to_reference")[1::2]) > 1e-3


@pytest.mark.parametrize(
    ("ranks", "stage"), [(1, 2), *(pytest.param(2, stage, marks=pytest.mark.slow) for stage in (0, 1, 2))]
)
def test_a_step_whose_loss_is_not_finite_is_skipped_and_too_many_end_the_run(
    train, trainer_config, plain, make_list, start, tmp_path, ranks, stage
):
    """`contrastive` has a finite gradient where its loss is infinite; one of two lists is bad, so one of two ranks."""

    def with_reference(item, value):
        first = item.candidates[0].replace(reference_log_prob=value, reference_fingerprint="tiny")
        rest = [c.replace(reference_log_prob=-9.0, reference_fingerprint="tiny") for c in item.candidates[1:]]
        return item.replace(candidates=(first, *rest))

    good = [make_list(n) for n in range(4)]
    infinite = [make_list(4), with_reference(make_list(5), float("inf"))]
    nan = [[make_list(n, iteration=1), with_reference(make_list(n + 1, iteration=1), float("nan"))] for n in (0, 2)]
    training = {"iterations": 2, "lists_per_step": 2, "max_bad_steps": 2, "workers": ranks, "zero_stage": stage}
    config = trainer_config(training=training, objective={"name": "contrastive"})
    trained = train(config, tmp_path, [[good[:2], infinite, good[2:]], nan], fails=True, fresh=ranks == 1)
    assert trained.metric("bad_steps") == [0, 1, 0, 1, 1]
    expected = plain([good[:2], good[2:]], objective="contrastive")
    assert distance(trained.policy(1), expected, start) < FLOAT32
    assert isinstance(trained.error, TrainingError)
    assert "not finite in 2 steps in a row, the limit (training.max_bad_steps = 2)" in str(trained.error)


def test_steps_are_counted_from_the_newest_checkpoint(train, trainer_config, make_list, tmp_path):
    """The one at an iteration's end counts: the next does not follow a step later."""
    training = {"iterations": 2, "prompts_per_iteration": 3, "lists_per_step": 1}
    rounds = [[[make_list(n, LENGTHS[n], iteration=iteration)] for n in range(3)] for iteration in range(2)]
    train(trainer_config(training=training, checkpoints={"every_steps": 2, "keep": 9}), tmp_path, rounds)
    folders = (tmp_path / "checkpoints").glob("position-*")
    assert sorted(read_state(folder).step for folder in folders) == [2, 3, 5, 6]


@pytest.fixture
def small_disk(tmp_path):
    """A run folder whose checkpoints have 8 MB: room for one; `grow()` makes room for more."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()

    def mount(options: str) -> bool:
        return (
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", checkpoints], check=False).returncode == 0
        )

    if not mount("size=8m"):
        pytest.skip("a file system of its own needs the right to mount one")
    yield tmp_path, lambda: mount("remount,size=64m")
    subprocess.run(["umount", checkpoints], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_the_last_checkpoint_whole(
    train, trainer_config, plain, lists, start, small_disk
):
    run_dir, grow = small_disk
    config = trainer_config(checkpoints={"every_steps": 1, "keep": 2})
    trained = train(config, run_dir, [[lists[:5], lists[5:]]], fails=True)
    assert isinstance(trained.error, TrainingError | CheckpointError)
    assert "could not write the checkpoint" in str(trained.error)
    _, state, _ = newest_checkpoint(run_dir / "checkpoints")
    assert (state.step, state.journal.consumed) == (1, {"0/0": ("p0", "p1", "p2", "p3", "p4")})
    assert grow()
    resumed = train(config, run_dir, [[lists[:5], lists[5:]]])
    assert resumed.consumed == {"0/0": tuple(f"p{n}" for n in range(8))}
    assert distance(resumed.policy(1), plain([lists[:5], lists[5:]]), start) < FLOAT32
