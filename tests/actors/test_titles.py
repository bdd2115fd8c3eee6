"""Names and titles of actors, as Ray and the system see them."""

import time
from types import SimpleNamespace

import psutil

from actors.placement import place_store
from actors.reward import RewardActor
from actors.sampler import Sampler
from actors.titles import actor_name, show_title
from larpo.reward_config import Reward

LIMIT_S = 60.0


class Worker:
    """Undecorated, as every actor of ours."""

    def __init__(self):
        self.done = 0
        show_title(lambda: f"has done {self.done}")

    def work(self) -> int:
        self.done += 1
        return psutil.Process().pid


def titled(pid: int, title: str) -> bool:
    """Whether the process gets this title in time; Ray sets its own around every call."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if psutil.Process(pid).cmdline()[0] == title:
            return True
        time.sleep(0.05)
    return False


def test_an_actors_title_follows_what_it_does(local_ray):
    name = actor_name("worker")
    actor = local_ray.remote(Worker).options(num_cpus=0, name=name).remote()
    try:
        for done in (1, 2):
            pid = local_ray.get(actor.work.remote(), timeout=LIMIT_S)
            assert titled(pid, f"ray::{name}: has done {done}")
    finally:
        local_ray.kill(actor)


def test_who_takes_a_place_has_a_name_of_its_own(local_ray):
    namespace = local_ray.get_runtime_context().namespace
    others = set(local_ray.util.list_named_actors())  # of other tests
    first = place_store()
    assert local_ray.get(first.newest.remote(), timeout=LIMIT_S) == 0
    local_ray.kill(first)
    second = place_store()
    assert local_ray.get(second.newest.remote(), timeout=LIMIT_S) == 0
    taken = [name for name in local_ray.util.list_named_actors() if name.startswith(f"{namespace}/weights")]
    assert [name for name in taken if name not in others] == [actor_name_before(namespace)]
    local_ray.kill(second)


def actor_name_before(namespace: str) -> str:
    """The name that was given last, from the one that is given now."""
    stem, _, number = actor_name("weights").rpartition(".")
    assert stem == f"{namespace}/weights"
    return f"{stem}.{int(number) - 1}"


def test_outside_an_actor_no_title_is_set():
    title = psutil.Process().cmdline()[0]
    show_title(lambda: "never shown")
    assert psutil.Process().cmdline()[0] == title


def test_actors_say_what_they_are_and_do(tmp_path):
    sampler = Sampler(SimpleNamespace(), SimpleNamespace(path=tmp_path / "SmolLM2"), None)
    assert repr(sampler) == "Sampler of SmolLM2"
    assert sampler.doing() == "starts, weights v0, 0 samples so far"
    reward = RewardActor(Reward(kind="verifier", name="reasoning_gym"))
    assert repr(reward) == "Reward of kind verifier"
    assert reward.doing() == "idle, 0 lists so far, 0 responses failed"
