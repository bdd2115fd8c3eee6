"""The pool of reward replicas, over doubles; tests/actors/test_reward.py has the real actor."""

import asyncio
from types import SimpleNamespace

import pytest
import ray.exceptions  # noqa: F401  # the pool takes it at its first answer, within the limits below

from actors import placement
from actors.reward import Described
from actors.reward_pool import RewardPool
from larpo.config import Config
from larpo.errors import DataError, EndpointError, RewardError
from larpo.rewards import Reward
from larpo.types import Prompt


class Double:
    """A reward actor that takes `seconds` a batch, or raises."""

    def __init__(self, fingerprint="f", seconds=0.0, error=None, joint=False, placed_s=0.0):
        self.batches, self.killed, self.at_work = [], False, 0
        self.placed = SimpleNamespace(remote=lambda: asyncio.sleep(placed_s))
        self.describe = SimpleNamespace(remote=lambda: self._describe(fingerprint, joint))
        self.rank = SimpleNamespace(remote=lambda requests: self._rank(requests, seconds, error))

    async def _describe(self, fingerprint, joint):
        return Described("verifier", "toy", fingerprint, joint)

    async def _rank(self, requests, seconds, error):
        self.batches.append(requests)
        self.at_work += 1
        assert self.at_work == 1
        await asyncio.sleep(seconds)
        self.at_work -= 1
        if error is not None:
            raise error
        return [[request] for request in requests]


@pytest.fixture
def make_pool(monkeypatch):
    """`make_pool(doubles, replicas, limit)`: a pool that places the doubles in this order."""

    def make(*doubles, replicas=1, limit=5.0, **reward):
        left = list(doubles)
        monkeypatch.setattr(placement, "place_reward", lambda section, name: left.pop(0))
        monkeypatch.setattr(placement, "kill", lambda actor: setattr(actor, "killed", True))
        config = Config.model_validate(
            {
                "reward": {"replicas": replicas, "cache": False, **reward},
                "timeouts": {"reward_s": limit, "placement_s": 1.0},
            }
        )
        failures = []
        pool = RewardPool(config, lambda name, reason: failures.append((name, reason)))
        return pool, failures

    return make


def test_a_node_that_has_to_come_first_is_waited_for_by_its_own_limit(make_pool):
    async def go(placed_s):
        pool, _ = make_pool(Double(placed_s=placed_s), limit=0.1)
        await pool.start()

    asyncio.run(go(0.3))
    with pytest.raises(RewardError, match=r"reward-0 could not start: no answer in 1 s \(timeouts.placement_s\)"):
        asyncio.run(go(5.0))


def test_a_batch_is_shared_out_over_the_replicas_in_its_order(make_pool):
    async def go():
        doubles = [Double(), Double()]
        pool, _ = make_pool(*doubles, replicas=2)
        await pool.start()
        assert await pool.rank([1, 2, 3]) == [[1], [2], [3]]
        assert sorted(double.batches[0] for double in doubles) == [[1, 2], [3]]

    asyncio.run(go())


def test_waiting_for_a_turn_does_not_count_against_the_limit(make_pool):
    async def go():
        slow = Double(seconds=0.15)
        pool, failures = make_pool(slow, limit=0.4)
        await pool.start()
        answers = await asyncio.gather(*(pool.rank([number]) for number in range(6)))  # 0.9 s in all
        assert answers == [[[number]] for number in range(6)]
        assert failures == []
        assert not slow.killed

    asyncio.run(go())


def test_a_dead_replica_is_replaced_and_its_batch_ranked_again(make_pool):
    async def go():
        dead = Double(error=RuntimeError("gone"))
        pool, failures = make_pool(dead, Double())
        await pool.start()
        assert await pool.rank([1]) == [[1]]
        assert dead.killed
        assert failures == [("reward-0", "gone")]

    asyncio.run(go())


@pytest.mark.parametrize("part", [False, True])
def test_servers_that_were_asked_as_often_as_they_may_are_not_asked_again(make_pool, part):
    async def go():
        spent = Double(error=EndpointError("no answer in 4 attempts"))
        endpoint = {"addresses": ["http://127.0.0.1:1"], "timeout_s": 0.1, "backoff_s": 0.1}
        section = {"kind": "http", "endpoint": endpoint}
        pool, failures = make_pool(spent, Double(), **({"kind": "weighted", "parts": [section]} if part else section))
        await pool.start()
        with pytest.raises(RewardError, match="no answer in 4 attempts"):
            await pool.rank([1])
        assert (len(spent.batches), spent.killed, failures) == (1, False, [])

    asyncio.run(go())


def test_a_replacement_of_another_mind_ends_the_run(make_pool):
    async def go():
        pool, _ = make_pool(Double(error=RuntimeError("gone")), Double(fingerprint="g"))
        await pool.start()
        with pytest.raises(RewardError, match="its fingerprint was f, it is g"):
            await pool.rank([1])

    asyncio.run(go())


def test_replicas_of_two_minds_do_not_start(make_pool):
    async def go():
        pool, _ = make_pool(Double(), Double(fingerprint="g"), replicas=2)
        with pytest.raises(RewardError, match=r"different models, with the fingerprints \['f', 'g'\]"):
            await pool.start()

    asyncio.run(go())


def test_the_faults_of_a_request_kill_nobody_and_a_hopeless_batch_names_every_cause(make_pool):
    async def go():
        picky = Double(error=DataError("no answer key"))
        pool, _ = make_pool(picky)
        await pool.start()
        with pytest.raises(DataError, match="no answer key"):
            await pool.rank([1])
        assert not picky.killed
        pool, failures = make_pool(*(Double(error=RuntimeError(f"cause {n}")) for n in range(4)))
        await pool.start()
        with pytest.raises(RewardError, match=r"in 3 attempts: \['cause 0', 'cause 1', 'cause 2'\]"):
            await pool.rank([1])
        assert len(failures) == 3

    asyncio.run(go())


class Scorer(Double):
    """One that gives a response its length, or fails it."""

    async def _rank(self, requests, seconds, error):
        self.batches += [list(texts) for _, texts in requests]
        return [[Reward(float(len(text)), "empty" if not text else "") for text in texts] for _, texts in requests]


@pytest.fixture
def make_run(monkeypatch, tmp_path):
    """`make_run(double)`: a pool with a cache, of a run that is started, or started again, in one folder."""

    def make(double):
        monkeypatch.setattr(placement, "place_reward", lambda section, name: double)
        failures = []
        return RewardPool(Config(), lambda name, reason: failures.append((name, reason)), tmp_path), failures

    return make


P, Q = Prompt("p", ()), Prompt("q", ())
LISTS = [(P, ["a", "bb"]), (Q, ["ccc", ""])]
GIVEN = [[Reward(1.0), Reward(2.0)], [Reward(3.0), Reward(0.0, "empty")]]


def test_a_second_run_of_the_same_lists_asks_for_failures_alone(make_run):
    async def go():
        first, second = Scorer(), Scorer()
        pool, _ = make_run(first)
        await pool.start()
        assert await pool.rank(LISTS) == GIVEN
        assert first.batches == [["a", "bb"], ["ccc", ""]]
        assert pool.take_hits() == 0
        pool, _ = make_run(second)
        await pool.start()
        assert await pool.rank(LISTS) == GIVEN
        assert second.batches == [[""]]
        assert await pool.rank([(P, ["bb", "dddd", "a"])]) == [[Reward(2.0), Reward(4.0), Reward(1.0)]]
        assert second.batches == [[""], ["dddd"]]
        assert (pool.take_hits(), pool.take_hits()) == (5, 0)

    asyncio.run(go())


def test_a_changed_model_is_asked_again_and_a_joint_one_for_whole_lists(make_run):
    async def go():
        for double in (Scorer(), Scorer("g"), Scorer("h", joint=True)):
            pool, _ = make_run(double)
            await pool.start()
            await pool.rank(LISTS[:1])
            await pool.rank(LISTS[:1])
            assert double.batches == [["a", "bb"]]
        await pool.rank([(P, ["a", "bb", "c"])])
        assert double.batches[1:] == [["a", "bb", "c"]]

    asyncio.run(go())


def test_a_cache_that_fails_is_told_of_and_the_run_goes_on(make_run):
    async def go():
        double = Scorer()
        pool, failures = make_run(double)
        await pool.start()
        pool._cache.close()
        assert await pool.rank(LISTS) == GIVEN
        assert await pool.rank(LISTS) == GIVEN
        assert len(double.batches) == 4
        assert failures == [("reward-cache", "Cannot operate on a closed database.; the run goes on without it")]

    asyncio.run(go())
