"""What is told every few seconds: counts that add up, rates and busy shares of the last minute."""

from types import SimpleNamespace

import pytest

from actors import flow as flow_module
from actors.doing import Doing
from actors.flow import Flow
from actors.members import Member
from actors.progress import SAMPLING, Progress
from actors.sampler import SamplerStats
from actors.work import StreamStatus
from larpo.config import Config
from larpo.metrics import METRICS, check_labels, check_names

CONFIG = Config.model_validate({"training": {"iterations": 2, "prompts_per_iteration": 20, "lists_per_step": 5}})


class Records:
    """A telemetry that remembers, and refuses what the real one refuses."""

    def __init__(self):
        self.records = []

    def log(self, event, metrics=None, **fields):
        check_names(metrics or {})
        check_labels(metrics or {}, fields)
        self.records.append({"event": event, **fields, **(metrics or {})})

    def update(self, state):
        pass

    def seconds(self):
        return 99.0

    def of(self, event):
        return [record for record in self.records if record["event"] == event]


class Clock:
    def __init__(self):
        self.now = 1000.0

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(flow_module, "time", clock)
    return clock


def stats(prompts: int, tokens: int, version: int = 0, in_flight: int = 1) -> SamplerStats:
    return SamplerStats(
        weight_version=version,
        tokens=tokens,
        prompts=prompts,
        samples=4 * prompts,
        in_flight=in_flight,
        busy_seconds=0.0,
        places_filled=0.0,
        pull_seconds=0.0,
        pull_bytes=0,
        load_seconds=0.0,
        pause_seconds=0.0,
        spans=(),
    )


def status(**said) -> StreamStatus:
    quiet = {"waiting": 7, "producer_wait_seconds": 0.0, "consumer_wait_seconds": 0.0, "reports": ()}
    trainer = {"trained_iterations": 0, "trainer_started": True, "trainer_silent_s": 0.0, "alarms": (), "error": None}
    return StreamStatus(**{**quiet, **trainer, **said})


def pool_of(count: int, restarts: int = 0, requeued: int = 0) -> SimpleNamespace:
    members = [Member(f"sampler-{number}", None, version=3) for number in range(count)]
    for member in members:
        member.ready.set()
    counts = {"restarts": restarts, "requeued": requeued, "handed_back": 0, "wanted": count, "coming": 0}
    return SimpleNamespace(members=members, **counts)


def test_counts_of_a_sampler_add_up_through_replacements_and_quiet_looks(clock):
    """A counter holds what came since the record before it, whatever was looked at in between."""
    records, pool = Records(), pool_of(2)
    flow = Flow(Progress(CONFIG, records))

    def told(*newest):
        for number, said in enumerate(newest):
            if said is not None:
                flow.take(f"sampler-{number}", said)
        clock.now += 11
        flow.tell(status(), pool)
        return [(r["sampler/prompts"], r["sampler/samples"], r["sampler/tokens"]) for r in records.of("sampler")[-2:]]

    flow.take("sampler-0", stats(1, 70))
    assert told(stats(2, 100), stats(1, 50)) == [(2, 8, 100), (1, 4, 50)]
    assert told(stats(3, 150), None) == [(1, 4, 50), (0, 0, 0)]
    pool.restarts, pool.requeued = 1, 3
    assert told(stats(1, 30), stats(2, 80)) == [(1, 4, 30), (1, 4, 30)]  # sampler-0 is another one
    assert flow.tokens == 150 + 30 + 80
    assert [(r["pool/restarts"], r["pool/requeued"]) for r in records.of("flow")] == [(0, 0), (0, 0), (1, 3)]


def test_rates_are_of_the_last_minute(clock):
    records, pool = Records(), pool_of(1)
    flow = Flow(Progress(CONFIG, records))
    for tick in range(1, 21):  # 20 tokens a second for 150 s, then none
        clock.now += 15
        flow.take("sampler-0", stats(min(tick, 10), 300 * min(tick, 10)))
        flow.tell(status(), pool)
    rates = [record["pool/tokens_per_second"] for record in records.of("flow")]
    assert rates[:10] == pytest.approx([20.0] * 10)
    assert rates[11] == pytest.approx(20 * 30 / 60)  # half a minute later
    assert rates[13:] == [0.0] * 7
    assert records.of("sampler")[9]["sampler/prompts_per_second"] == pytest.approx(1 / 15)


def test_busy_shares_are_of_the_last_minute_and_know_the_step_in_progress(clock):
    records, pool = Records(), pool_of(2)
    progress = Progress(CONFIG, records)
    flow = Flow(progress)
    start = clock.now
    flow.span("sampler-0", "sample", start, start + 100)
    flow.span("sampler-1", "sample", start + 70, start + 85)
    flow.span("reward-0", "rank", start + 90, start + 105)
    clock.now = start + 120
    flow.tell(status(trainer_silent_s=45.0), pool)
    (told,) = records.of("flow")
    assert (told["busy/sampler"], told["busy/reward"], told["busy/trainer"]) == pytest.approx(
        ((40 / 60 + 15 / 60) / 2, 15 / 60, 45 / 60)
    )
    assert [r["sampler/busy"] for r in records.of("sampler")] == pytest.approx([40 / 60, 15 / 60])
    clock.now += 60
    flow.tell(status(trainer_silent_s=105.0, trained_iterations=2), pool)  # it has nothing left to do
    assert "busy/trainer" not in records.of("flow")[-1]


def test_waiting_on_either_side_is_counted_and_a_stream_that_began_anew_is_no_negative_wait(clock):
    records = Records()
    flow = Flow(Progress(CONFIG, records))
    for producer, consumer in ((2.0, 5.0), (2.0, 9.0), (0.5, 0.0)):
        clock.now += 11
        flow.tell(status(producer_wait_seconds=producer, consumer_wait_seconds=consumer), None)
    names = ("stream/producer_wait_seconds", "stream/consumer_wait_seconds")
    assert [tuple(record[name] for name in names) for record in records.of("flow")] == [(2, 5), (0, 4), (0.5, 0)]


def test_a_record_says_where_the_run_is_and_comes_when_it_is_time(clock):
    records = Records()
    progress = Progress(CONFIG, records)
    flow = Flow(progress)
    progress.begin(SAMPLING, 1, 20)
    progress.step = 6
    clock.now += 5
    flow.tell(status(), pool_of(1))
    assert records.of("flow") == []
    flow.tell(status(), pool_of(1), last=True)
    (told,) = records.of("flow")
    assert (told["iteration"], told["run/iteration"], told["run/step"], told["run/seconds"]) == (1, 2, 6, 99)
    assert 0.5 < told["run/done"] < 1
    assert (told["stream/lists"], told["pool/samplers"]) == (7, 1)
    clock.now += 29
    flow.tell(status(), pool_of(200))  # hundreds are told less often: every 10 + 0.1 x 200 s
    assert len(records.of("flow")) == 1
    clock.now += 2
    flow.tell(status(), pool_of(200))
    assert len(records.of("flow")) == 2


def test_every_metric_by_sampler_is_told_of_every_sampler(clock):
    records = Records()
    flow = Flow(Progress(CONFIG, records))
    flow.tell(status(), pool_of(3), last=True)
    declared = {name for name, metric in METRICS.items() if metric.labels == ("sampler",)}
    for record in records.of("sampler"):
        assert declared - set(record) == {
            "weights/gib",
            "weights/pull_seconds",
            "weights/load_seconds",
            "weights/pause_seconds",
        }  # told at updates
    assert [record["sampler"] for record in records.of("sampler")] == ["sampler-0", "sampler-1", "sampler-2"]


def test_work_in_progress_is_told_up_to_now_and_no_second_of_it_twice():
    doing = Doing()
    with doing.at_work("reward-0"):
        (first,) = doing.take()
        with doing.at_work("reward-1"):
            pass
        again = doing.take()
    (rest,) = doing.take()
    assert [actor for actor, _, _ in again] == ["reward-1", "reward-0"]
    pieces = [first, again[1], rest]
    assert [actor for actor, _, _ in pieces] == ["reward-0"] * 3
    assert pieces[0][2] == pieces[1][1]
    assert pieces[1][2] == pieces[2][1]
    assert doing.take() == []


def test_what_a_sampler_did_before_it_left_is_told_and_its_name_may_be_given_again(clock):
    records, pool = Records(), pool_of(2)
    flow = Flow(Progress(Config(), records))

    def tell():
        clock.now += 20
        flow.tell(status(), pool)

    flow.take("sampler-1", stats(2, 100))
    tell()
    flow.take("sampler-1", stats(3, 150))
    flow.left(pool.members.pop())
    pool.handed_back, pool.coming = 4, 1
    tell()
    tell()
    pool.members.append(Member("sampler-1", None))
    flow.take("sampler-1", stats(5, 400))  # more than the one before had done in all
    tell()
    told = [record for record in records.of("sampler") if record["sampler"] == "sampler-1"]
    assert [record["sampler/tokens"] for record in told] == [100, 50, 400]
    assert told[1]["sampler/tokens_per_second"] == 0
    assert [record["pool/handed_back"] for record in records.of("flow")] == [0, 4, 0, 0]
    assert [record["pool/pending"] for record in records.of("flow")] == [0, 1, 1, 1]
