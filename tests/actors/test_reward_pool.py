"""The pool of reward replicas, over doubles; tests/actors/test_reward.py has the real actor."""

import asyncio
from types import SimpleNamespace

import pytest

from actors import placement
from actors.cast import RewardPool
from actors.reward import Described
from larpo.config import Config
from larpo.errors import DataError, RewardError


class Double:
    """A reward actor that takes `seconds` a batch, or raises."""

    def __init__(self, fingerprint="f", seconds=0.0, error=None):
        self.batches, self.killed, self.at_work = [], False, 0
        self.describe = SimpleNamespace(remote=lambda: self._describe(fingerprint))
        self.rank = SimpleNamespace(remote=lambda requests: self._rank(requests, seconds, error))

    async def _describe(self, fingerprint):
        return Described("verifier", "toy", fingerprint)

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

    def make(*doubles, replicas=1, limit=5.0):
        left = list(doubles)
        monkeypatch.setattr(placement, "place_reward", lambda section: left.pop(0))
        monkeypatch.setattr(placement, "kill", lambda actor: setattr(actor, "killed", True))
        config = Config.model_validate({"reward": {"replicas": replicas}, "timeouts": {"reward_s": limit}})
        failures = []
        pool = RewardPool(SimpleNamespace(config=config), lambda name, reason: failures.append((name, reason)))
        return pool, failures

    return make


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
