"""How much of a run is done, and what the monitor makes of what the samplers say."""

import asyncio
import itertools
from types import SimpleNamespace

import pytest

from actors import progress as progress_module
from actors.doing import Doing
from actors.members import Member
from actors.monitor import Monitor
from actors.progress import EVALUATING, EVALUATING_SNAPSHOT, SAMPLING, STARTING, TRAINING, WRITING, Progress, Workload
from actors.sampler import SamplerStats
from actors.vitals import Vitals
from actors.work import StreamStatus
from larpo.config import Config, Preferences
from larpo.errors import PhaseTimeout, TrainingError

M, K, T, HELD_OUT, SAMPLES = 20, 8, 2, 10, 4


def config(**evaluation) -> Config:
    return Config.model_validate(
        {
            "prompts": {"heldout_count": HELD_OUT},
            "sampling": {"k": K},
            "training": {"iterations": T, "prompts_per_iteration": M, "lists_per_step": 5},
            "evaluation": {"samples": SAMPLES, **evaluation},
        }
    )


class Records:
    """A telemetry that remembers."""

    def __init__(self):
        self.records = []

    def log(self, event, metrics=None, **fields):
        self.records.append((event, dict(metrics or {})))

    def seconds(self):
        return 12.0

    def update(self, state):
        self.state = state


def test_secrets_are_masked_in_the_live_page_before_a_line_is_cut(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret1")
    told = Records()
    progress = Progress(config(), told)
    progress.alarm("401 for hf_verysecret1")
    progress.failed("sampler-0", 180 * "x" + " hf_verysecret1")
    progress.show()
    assert len(told.state.alarms) == 2
    assert "hf_ver" not in str(told.state)


@pytest.mark.parametrize("each_iteration", [True, False])
def test_the_share_that_is_done_only_grows_and_ends_at_one(each_iteration):
    work = Workload(config(each_iteration=each_iteration))
    assert work.steps == 8
    points = [work.share_done(STARTING, 0, 0, 0)]
    step = 0
    for iteration in range(T):
        points += [work.share_done(SAMPLING, iteration, ranked, step) for ranked in range(M + 1)]
        if iteration == 0 or each_iteration:
            points += [work.share_done(EVALUATING, iteration, ranked, step) for ranked in range(HELD_OUT + 1)]
        for step in range(4 * iteration, 4 * iteration + 4):  # the last step of each is dropped: no lists for it
            points.append(work.share_done(TRAINING, iteration, M, step))
    points += [work.share_done(EVALUATING, T, ranked, step) for ranked in range(HELD_OUT + 1)]
    points.append(work.share_done(WRITING, T, 0, step))
    assert points[0] == 0.0
    assert points[-1] == 1.0
    assert all(earlier <= later for earlier, later in itertools.pairwise(points))


def test_half_of_the_share_counts_responses_and_half_steps():
    work = Workload(config())
    responses = T * M * K + (T + 1) * HELD_OUT * (SAMPLES + 1)
    assert work.share_done(SAMPLING, 0, 5, 1) == pytest.approx((5 * K / responses + 1 / 8) / 2)
    evaluating = M * K + 3 * (SAMPLES + 1)
    assert work.share_done(EVALUATING, 0, 3, 2) == pytest.approx((evaluating / responses + 2 / 8) / 2)


def test_snapshots_are_counted_with_the_steps():
    work = Workload(config(every_steps=3))  # of 2 x 4 steps: 3 and 6
    assert (work.snapshots, work.evaluations) == (2, 2 + 1 + T)
    responses = T * M * K + (T + 1 + 2) * HELD_OUT * (SAMPLES + 1)
    done = M * K + HELD_OUT * (SAMPLES + 1) + 3 / 8 * 2 * HELD_OUT * (SAMPLES + 1)
    for phase in (TRAINING, EVALUATING_SNAPSHOT):
        assert work.share_done(phase, 0, 5, 3) == pytest.approx((done / responses + 3 / 8) / 2)
    assert work.share_done(WRITING, T, 0, 7) == 1.0
    assert Workload(config(every_steps=4)).snapshots == 0  # each is an iteration's end


def test_without_held_out_prompts_there_is_only_annotation():
    plain = config().model_copy(update={"prompts": Config().prompts})
    assert Workload(plain).share_done(SAMPLING, 1, M, 8) == 1.0


def test_time_left_counts_from_this_sessions_first_prompt(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(progress_module.time, "time", lambda: now)
    progress = Progress(config(), Records())
    now += 500  # engines start
    progress.begin(SAMPLING, 1, M, 0)  # resumed in the second iteration
    assert progress.state().seconds_left is None
    before = Workload(config()).share_done(SAMPLING, 1, 0, 4)
    progress.step = 4
    progress.begin(SAMPLING, 1, M, 0)
    now += 60
    progress.ranked, progress.step = M, 6
    after = Workload(config()).share_done(SAMPLING, 1, M, 6)
    assert progress.state().seconds_left == pytest.approx(60 * (1 - after) / (after - before))


def stats(tokens: int, prompts: int, version: int = 0, in_flight: int = 1) -> SamplerStats:
    return SamplerStats(
        weight_version=version,
        tokens=tokens,
        prompts=prompts,
        samples=4 * prompts,
        in_flight=in_flight,
        busy_seconds=0.0,
        places_filled=0.0,
        pull_seconds=0.25,
        pull_bytes=2**28,
        load_seconds=0.5,
        pause_seconds=0.125,
        spans=(),
    )


def pool_of(*names):
    members = [Member(name, None) for name in names]
    return SimpleNamespace(members=members, departed=[], restarts=0, requeued=0, handed_back=0, wanted=1, coming=0)


def test_an_update_of_weights_is_told_once():
    pool = pool_of("sampler-0")
    records = Records()
    monitor = Monitor(SimpleNamespace(samplers=pool, run=SimpleNamespace(config=config())), Progress(config(), records))
    for version in (0, 1, 1):
        pool.members[0].stats = stats(1, 1, version)
        monitor._samplers()
    assert records.records == [
        (
            "weights",
            {
                "weights/version": 1.0,
                "weights/pull_seconds": 0.25,
                "weights/load_seconds": 0.5,
                "weights/pause_seconds": 0.125,
                "weights/gib": 0.25,
            },
        )
    ]


def look_at(**said):
    """One look of the monitor at a stream that says this, which ends in the middle of it."""
    quiet = {"waiting": 0, "producer_wait_seconds": 0.0, "consumer_wait_seconds": 0.0, "alarms": ()}
    step = {"rank": 0, "spans": (), "step": 1, "iteration": 0, "epoch": 0, "metrics": {"train/loss": 1.0}}
    state = {"trained_iterations": 0, "trainer_started": True, "trainer_silent_s": 0.0, "error": None, **said}
    state |= {"failures": (), "vitals": Vitals(1, 0)}
    status, records = StreamStatus(**quiet, **state, reports=(step,)), Records()

    async def answer(method, *_, **__):
        await asyncio.sleep(0)  # `end` comes before the answer
        return status if method == "status" else Vitals(2, 0)

    async def nothing():
        pass

    pool = pool_of()
    pool.poll, pool.take_alarms, pool.pending, pool.ready = nothing, list, {}, 1
    cast = SimpleNamespace(
        call=answer,
        stream=SimpleNamespace(status="status"),
        store=SimpleNamespace(vitals="vitals"),
        samplers=pool,
        rewards=SimpleNamespace(poll=nothing, pending_ids=list, doing=Doing()),
        trainer=None,
        run=SimpleNamespace(config=config()),
    )

    async def watch():
        monitor = Monitor(cast, Progress(config(), records))
        watching = asyncio.create_task(monitor.watch())
        await asyncio.sleep(0)
        monitor.end()
        await asyncio.wait_for(watching, 10)

    try:
        asyncio.run(watch())
    finally:
        assert [event for event, _ in records.records] == ["step"]  # what was reported before is not lost


def test_pauses_between_steps_are_no_work_and_what_is_heard_late_counts_where_it_happened(monkeypatch):
    """A step of 0.2 s, a wait as long, a step; the sampler's last span is told after the iteration's end."""
    records, clock = Records(), SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress_module.time, "time", lambda: clock.now)
    progress = Progress(config(), records)
    progress.begin(SAMPLING, 0, M)
    for start in (100.0, 100.4):
        progress.span("trainer-0", "train", start, start + 0.2)
    progress.span("sampler-0", "sample", 100.0, 100.3)
    clock.now = 100.6
    progress.end_iteration(0)
    progress.looked(100.5)  # it began before the end, and may not have heard all
    assert not [event for event, _ in records.records if event == "iteration"]
    progress.span("sampler-0", "sleep", 100.3, 100.45)
    progress.span("sampler-0", "update", 100.45, 100.7)
    clock.now = 101.0
    progress.looked(101.0)
    (told,) = [metrics for event, metrics in records.records if event == "iteration"]
    assert told["busy/trainer"] == pytest.approx(0.4 / 0.6)
    assert told["busy/sampler"] == pytest.approx(0.45 / 0.6)
    progress.end_iteration(1)
    progress.flush()
    *_, (_, told) = [record for record in records.records if record[0] == "iteration"]
    assert told["busy/sampler"] == pytest.approx(0.1 / 0.4)


def test_the_monitor_sizes_an_elastic_pool_and_no_other():
    def scaler(**samplers):
        settings = Config.model_validate({"samplers": samplers})
        pool = SimpleNamespace(per_sampler=16)
        cast = SimpleNamespace(samplers=pool, run=SimpleNamespace(config=settings))
        return Monitor(cast, Progress(settings, Records()))._scaler

    assert scaler(max_count=4) is not None
    assert scaler(count=4) is None


def test_what_ended_the_trainer_reaches_the_run_at_once():
    with pytest.raises(TrainingError, match="the disk is full"):
        look_at(error="the disk is full")


def test_a_silent_trainer_has_hung_unless_it_is_done():
    look_at(trainer_silent_s=3599.0)
    with pytest.raises(PhaseTimeout, match=r"silent for 3601 s, over timeouts.step_s = 3600"):
        look_at(trainer_silent_s=3601.0)
    look_at(trainer_silent_s=3601.0, trained_iterations=T)
    look_at(trainer_silent_s=599.0, trainer_started=False)
    with pytest.raises(PhaseTimeout, match=r"over timeouts.trainer_start_s = 600: raise the limit if the start of its"):
        look_at(trainer_silent_s=601.0, trainer_started=False)


def test_all_that_a_run_on_a_dataset_does_is_training():
    given = config().model_copy(update={"preferences": Preferences(source="pairs.jsonl")})
    work = Workload(given)
    assert work.share_done(TRAINING, 0, 0, 0) == 0.0
    assert work.share_done(TRAINING, 0, 0, work.steps // 2) == pytest.approx((work.steps // 2) / work.steps)
    assert work.share_done(WRITING, T, 0, 0) == 1.0
