"""The size of the pool: what is decided of what was seen, and where a simulated run with hundreds of samplers goes."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as some

from actors.scaling import HELD, MARGIN, SLOWER, STARVED, STEPS, Range, Rates, Seen, Shares, decide
from actors.scaling_window import Look, Memory, Totals, windows
from tests.pool_simulation import Simulation, World

LIMITS = Range(least=1, most=100, patience_s=60.0)


def shares(starved=0.0, held=0.0, busy=1.0, seconds=SLOWER * 60.0, cycles=SLOWER * STEPS):
    return Shares(seconds, cycles, starved, held, busy)


def seen(ready, needed, starved=0.0, held=0.0, busy=1.0, **said):
    """Samplers that answer 0.5 prompts a second each, in an iteration that has just begun."""
    whole = shares(starved, held, busy)
    usual = {"coming": 0, "waiting": 5000, "later": 0, "peak": ready, "leases": 4, "idle_s": 0.0, "start_s": 100.0}
    return Seen(whole, whole, Rates(lists=0.5 * needed, prompts=0.5), ready, **{**usual, **said})


def test_a_trainer_that_waits_gets_what_it_needs_and_a_margin():
    decision = decide(LIMITS, seen(10, needed=20, starved=0.5))
    assert decision.wanted == 10 * 2 * MARGIN == 23
    assert decision.reason == "the trainer waited for 50% of the last 300 s"


def test_samplers_that_stand_still_are_let_go_but_for_a_margin():
    decision = decide(LIMITS, seen(40, needed=20, held=0.5))
    assert decision.wanted == 40 * 0.5 * MARGIN == 23
    assert decision.reason == "samplers stood still for 50% of the last 300 s"


def test_between_the_two_nothing_changes():
    for needed in (20 * 1.2, 20 * 0.75):
        starved, held = max(0.0, 1 - 20 / needed), max(0.0, 1 - needed / 20)
        assert starved < STARVED
        assert held < HELD
        assert decide(LIMITS, seen(20, needed, starved, held)).reason == ""


def test_what_is_coming_counts_as_there():
    assert decide(LIMITS, seen(10, needed=20, starved=0.5, coming=13)).reason == ""
    assert decide(LIMITS, seen(10, needed=20, starved=0.5, coming=2)).wanted == 23
    assert decide(LIMITS, seen(20, needed=10, held=0.5, coming=5)).wanted == math.ceil(10 * MARGIN)


def test_one_decision_grows_the_pool_to_four_times_what_is_ready_at_most():
    assert decide(LIMITS, seen(2, needed=80, starved=0.97)).wanted == 8
    assert decide(LIMITS, seen(2, needed=80, starved=0.97, coming=6)).reason == ""
    assert decide(LIMITS, seen(2, needed=80, starved=0.97, peak=50)).wanted == 50  # so many worked before


def test_the_whole_iteration_is_waited_for_by_design_where_phases_take_turns():
    phased = replace(seen(10, needed=0, starved=1.0), rates=Rates(lists=math.inf, prompts=0.5))
    assert decide(LIMITS, phased).wanted == 40
    assert decide(LIMITS, replace(phased, ready=30)).wanted == 100


@pytest.mark.parametrize(
    "said",
    [
        {"waiting": 40},  # the samplers have them, or will have at once
        {"waiting": 900},  # 180 s with ten samplers, and a new one needs 100 s to come
    ],
)
def test_the_last_prompts_are_no_reason_to_grow(said):
    assert decide(LIMITS, seen(10, needed=20, starved=0.5, **said)).reason == ""
    assert decide(LIMITS, seen(10, needed=20, starved=0.5, waiting=900, later=5000)).wanted == 23


def test_a_slow_reward_model_is_no_reason_to_grow_nor_to_shrink():
    assert decide(LIMITS, seen(10, needed=20, starved=0.5, busy=0.5)).reason == ""


def test_nothing_is_decided_before_enough_was_seen():
    starving, idling = seen(10, needed=20, starved=0.5), seen(40, needed=20, held=0.5)
    for few in (shares(0.5, seconds=59.0), shares(0.5, cycles=STEPS - 1), Shares()):
        assert decide(LIMITS, replace(starving, shares=few)).reason == ""
    for few in (shares(held=0.5, seconds=299.0), shares(held=0.5, cycles=SLOWER * STEPS - 1), Shares()):
        assert decide(LIMITS, replace(idling, slow=few)).reason == ""
    assert decide(LIMITS, replace(starving, rates=Rates())).reason == ""


def test_idle_samplers_stay_for_as_long_as_new_ones_would_take_to_come():
    idle = replace(seen(8, needed=8, waiting=0), shares=Shares(), slow=Shares())
    assert decide(LIMITS, replace(idle, idle_s=99.0)).reason == ""
    assert decide(LIMITS, replace(idle, idle_s=100.0)).wanted == 1
    assert decide(LIMITS, replace(idle, idle_s=59.0, start_s=5.0)).reason == ""
    assert decide(LIMITS, replace(idle, idle_s=60.0, start_s=5.0)).wanted == 1
    held_back = replace(idle, idle_s=500.0, waiting=100)  # a step that takes long: another rule's business
    assert decide(LIMITS, held_back).reason == ""


def test_a_pool_that_lost_too_many_asks_for_the_least_at_once():
    assert decide(Range(4, 9, 60.0), seen(1, needed=1)).wanted == 4


@given(
    needed=some.floats(0.05, 500),
    size=some.integers(1, 100),
    least=some.integers(1, 100),
    most=some.integers(1, 100),
)
def test_without_chance_the_pool_comes_to_rest_where_the_trainer_does_not_wait(needed, size, least, most):
    """From any size, within its bounds; and once at rest it stays."""
    least, most = min(least, most), max(least, most)
    limits, size = Range(least, most, 60.0), min(most, max(least, size))
    sizes = [size]
    for _ in range(12):
        starved, held = max(0.0, 1 - size / needed), max(0.0, 1 - needed / size)
        size = decide(limits, seen(size, needed, starved, held, waiting=10**6)).wanted
        assert least <= size <= most
        sizes.append(size)
    assert sizes[-1] == sizes[-2] == sizes[-3]
    rises = [after > before for before, after in pairwise(sizes) if after != before]
    assert len(set(rises)) <= 1  # it goes one way
    if MARGIN * size <= most:
        assert size > needed * (1 - STARVED)
    if size >= MARGIN * max(least, 2):
        assert size * (1 - HELD) < MARGIN * needed + 1


# --- What was seen


def look(at, ready=2, at_work=8, lists=0, **totals):
    usual = {"trainer_waited": 0.0, "held": 0.0, "answered": 0, "ranked": 0, "step": 0}
    return Look(float(at), Totals(**{**usual, **totals}), ready, at_work, lists)


def test_a_window_reaches_back_for_its_time_and_for_its_cycles():
    fast, slow = windows(60.0, 4, phased=False)
    for at in range(0, 401, 10):
        for window in (fast, slow):
            window.add(look(at, trainer_waited=at / 4, held=at / 10, step=at // 40, at_work=4))
    assert fast.shares() == Shares(60.0, 2, 0.25, pytest.approx(0.1), 0.5)
    assert slow.shares() == Shares(370.0, 10, 0.25, pytest.approx(0.1), 0.5)
    fast.add(look(410, trainer_waited=0.0))  # the stream was started again
    assert fast.shares() == Shares()


def test_rates_leave_out_waits_and_unfilled_places():
    """Steps of 8 lists take 10 s, after as long a wait; two samplers answer 0.2 prompts a second with 4 at a time."""
    memory = Memory(60.0, 4, 8, phased=False)
    for second in range(0, 401):
        steps = second // 20
        waited = 10 * steps + min(10, second % 20)
        answered = int(0.4 * second)
        memory.add(look(second, trainer_waited=waited, step=steps, answered=answered, ranked=answered))
    rates = memory.rates()
    assert rates.lists == pytest.approx(0.8, rel=0.02)
    assert rates.prompts == pytest.approx(0.2, rel=0.02)
    assert rates.signal == pytest.approx(1.0, rel=0.05)
    assert rates.needed == pytest.approx(4.0, rel=0.1)


def test_half_of_the_lists_without_a_signal_need_twice_the_samplers():
    memory = Memory(60.0, 4, 4, phased=False)
    for second in range(0, 401):
        memory.add(look(second, step=second // 10, answered=int(0.8 * second), ranked=int(0.8 * second)))
    assert memory.rates().signal == pytest.approx(0.5, rel=0.05)
    assert memory.rates().needed == pytest.approx(0.4 / (0.4 * 0.5), rel=0.05)


def test_samplers_that_have_just_come_do_not_look_slow():
    """Prompts that take 20 s: those of four new samplers are not answered yet, and not to be expected either."""
    memory = Memory(60.0, 4, 8, phased=False)
    for second in range(0, 112):
        new = 4 * (second > 100)
        memory.add(look(second, ready=1 + new, at_work=4 + 4 * new, answered=int(0.2 * second)))
    assert memory.rates().prompts == pytest.approx(0.2, rel=0.1)


def test_the_time_between_two_iterations_counts_for_nobody():
    memory = Memory(60.0, 4, 8, phased=False)
    for second in range(0, 200):
        memory.add(look(second, step=second // 10, answered=second, ranked=second))
    before = memory.rates()
    memory.pause()
    memory.add(look(5000, step=19, answered=199, ranked=199))
    memory.add(look(5001, step=20, answered=200, ranked=200))
    assert memory.rates().lists == before.lists
    assert memory.rates().prompts == pytest.approx(before.prompts, rel=0.01)


# --- Simulated runs


def long_enough(needed, hours=2.0):
    """Prompts for so long at the trainer's pace."""
    return int(needed * 0.2 * 3600 * hours)


@pytest.mark.parametrize("needed", [1.3, 7, 40, 150])
def test_the_pool_converges_and_does_not_flap(needed):
    world = World(needed=needed, prompts=long_enough(needed))
    history = Simulation(world).run()
    settled, end = 2700.0, history.sampled - 60.0
    rest = [ready for at, ready, _ in history.sizes if settled < at < end]
    assert needed * (1 - STARVED) <= min(rest) <= max(rest) <= math.ceil(1.45 * needed) + 1
    assert history.starved(settled, end) < 0.1
    assert history.turns <= 1
    assert sum(settled < at < end for at, *_ in history.changes) <= 1


@settings(max_examples=8, derandomize=True, phases=[Phase.generate])
@given(
    needed=some.floats(1.0, 60.0),
    node_s=some.floats(20.0, 900.0),
    spread=some.floats(0.0, 0.6),
    places=some.integers(1, 16),
    step_lists=some.sampled_from([8, 64, 256]),
    first=some.integers(1, 80),
    bounds=some.tuples(some.integers(1, 80), some.integers(1, 80)),
    seed=some.integers(0, 999),
)
def test_in_any_world_bounds_hold_every_prompt_is_answered_and_the_pool_seldom_turns(bounds, first, **world):
    least, most = min(bounds), max(bounds)
    first = min(most, max(least, first))
    simulation = Simulation(
        World(least=least, most=most, first=first, prompts=1500, iterations=2, tail_s=60.0, **world)
    )
    history = simulation.run(40 * 3600.0)
    assert all(least <= ready + coming <= most for _, ready, coming in history.sizes)
    assert history.answered == 2 * 1500
    assert history.turns <= 1 + history.ended / 1800


def test_a_pool_that_loses_half_of_itself_is_whole_again_in_twenty_minutes():
    world = World(needed=100, first=115, prompts=long_enough(100, 1.5))
    history = Simulation(world, events=((1800.0, lambda run: run.kill(0.5)),)).run()
    assert history.ready_at(1810.0) <= 58
    assert history.ready_at(3000.0) >= 95
    assert history.starved(3000.0, history.ended - 300) < 0.1
    assert history.answered == world.prompts
    assert history.again > 100  # prompts of those that died


def test_a_trainer_that_becomes_three_times_slower_lets_samplers_go():
    def slower(run):
        run.needed = 30.0

    world = World(needed=90, first=104, prompts=long_enough(90, 1.5))
    history = Simulation(world, events=((1800.0, slower),)).run()
    assert history.ready_at(1800.0) >= 90
    assert 30 <= history.ready_at(5400.0) <= 45
    assert history.starved(1800.0, 5400.0) < 0.05
    assert history.again == 0 or history.answered == world.prompts


def test_a_slow_reward_model_does_not_make_the_pool_grow():
    world = World(needed=40, first=10, prompts=10_000, rank_s=1.0)  # one list a second, of the eight that are wanted
    history = Simulation(world).run()
    assert history.starved(600.0, history.ended - 300) > 0.8
    assert max(ready + coming for _, ready, coming in history.sizes) == 10


def test_a_short_pause_between_iterations_keeps_the_samplers_and_a_long_one_does_not():
    world = World(needed=20, first=23, prompts=4000, iterations=2, capacity=64, spread=0.1)
    history = Simulation(replace(world, tail_s=60.0)).run()
    assert not history.changes
    history = Simulation(replace(world, tail_s=900.0)).run()
    (_, _, fewest, why), (_, _, again, _) = history.changes[:2]
    assert fewest == 1
    assert "nothing to do" in why
    assert again >= 20  # at once, since so many were there before
