"""What is said of a run in which nothing moves: what stands still, since when, with which prompts."""

import time
from types import SimpleNamespace

from actors.vitals import Vitals
from actors.watchdog import Part, Watchdog, parts_of
from actors.work import StreamStatus


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


def at(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))


def test_it_says_nothing_while_something_moves():
    clock = Clock()
    dog = Watchdog(300, clock)
    for step in range(20):
        assert dog.look([Part("sampling", 5, "8 prompts"), Part("trainer", step, "")]) is None
        clock.now += 299


def test_it_names_what_stands_still_and_since_when_and_again_when_that_time_has_doubled():
    clock = Clock()
    dog, begun = Watchdog(300, clock), clock.now
    asleep = [Part("sampling", 5, "2 prompts with a sampler: a, b"), Part("weights", (1,), "")]
    assert dog.look([*asleep, Part("trainer", 1, "silent")]) is None
    clock.now += 100
    said = []
    for _ in range(13):  # the trainer moves once more, then nothing does
        said.append(dog.look([*asleep, Part("trainer", 2, "silent")]))
        clock.now += 100
    first, second, third = (message for message in said if message)
    assert [bool(message) for message in said] == [n in (3, 6, 12) for n in range(13)]
    assert first == (
        "nothing has moved for 300 s (timeouts.stalled_s = 300): sampling since"
        f" {at(begun)}, 2 prompts with a sampler: a, b; trainer since {at(begun + 100)}, silent"
    )
    assert second.startswith("nothing has moved for 600 s")
    assert third.startswith("nothing has moved for 1200 s")
    assert dog.look([*asleep, Part("trainer", 3, "silent")]) is None
    clock.now += 300
    assert dog.look([*asleep, Part("trainer", 3, "silent")]).startswith("nothing has moved for 300 s")


def run_of(pending=(), ranking=(), statuses=("ready",), done=False, **said):
    """The parts of a run, by name, that have something to do."""
    quiet = {"waiting": 0, "producer_wait_seconds": 0.0, "consumer_wait_seconds": 0.0, "alarms": ()}
    state = {"trained_iterations": 0, "trainer_started": True, "trainer_silent_s": 0.0, "error": None, "failures": ()}
    status = StreamStatus(**{**quiet, **state, "reports": (), "vitals": Vitals(1, 0), **said})
    members = [SimpleNamespace(name=f"sampler-{n}", status=s, version=3) for n, s in enumerate(statuses)]
    cast = SimpleNamespace(
        samplers=SimpleNamespace(members=members, pending=pending, ready=statuses.count("ready")),
        rewards=SimpleNamespace(pending_ids=lambda: ranking),
        trainer=SimpleNamespace(done=lambda: done),
    )
    parts = parts_of(cast, SimpleNamespace(step=7, ranked=2, sampled=6, total=9), status, 0)
    return {part.name: part.owes for part in parts if part.owes}


def test_each_part_says_what_it_has_to_do():
    assert run_of() == {}
    both = run_of(pending=["0001/q9", "0001/q3"])
    assert both == {"sampling": "2 prompts sampled or waiting for it: 0001/q3, 0001/q9"}
    assert run_of(pending=list("fedcba"))["sampling"] == "6 prompts sampled or waiting for it: a, b, c, d, ..."
    nobody = run_of(statuses=("restarting",))
    assert nobody == {"engines": "1 sampler starting: sampler-0", "sampling": "3 prompts waiting for a sampler"}
    assert run_of(ranking=["q1"]) == {"ranking": "1 prompt with the reward model: q1"}
    assert run_of(waiting=3) == {"stream": "3 lists waiting"}
    assert run_of(trainer_silent_s=61.0) == {"trainer": "silent for 61 s, in a step or a checkpoint"}
    assert run_of(trainer_started=False) == {"trainer": "its group starts"}
    assert run_of(trainer_started=False, done=True) == {}
    both = run_of(statuses=("updating", "restarting", "ready"))
    assert both == {"engines": "1 sampler starting: sampler-1", "weights": "1 sampler taking new ones: sampler-0"}
