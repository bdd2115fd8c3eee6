"""Which candidates an annotation has scored, over doubles of the cast."""

import asyncio
from types import SimpleNamespace

import pytest

from actors.annotation import Annotation, sample_task
from larpo.config import Config
from larpo.memory import join
from larpo.rewards import Reward
from larpo.types import Message, Prompt
from tests.pool_doubles import Double, House


class Pool:
    """Rewards that tell how many responses were seen together."""

    def __init__(self, joint):
        self.fingerprint, self.joint, self.asked = "f", joint, []

    async def rank(self, requests):
        self.asked += [list(texts) for _, texts in requests]
        return [[Reward(len(texts) + number / 10) for number, _ in enumerate(texts)] for _, texts in requests]


@pytest.fixture
def annotation():
    """`annotation(joint, rescore)`: one whose reward pool is the double that comes with it."""

    def make(joint, rescore=True):
        pool = Pool(joint)
        config = Config.model_validate({"lists": {"rescore": rescore}})
        run = SimpleNamespace(config=config)
        return Annotation(SimpleNamespace(run=run, rewards=pool), SimpleNamespace(), 1), pool

    return make


def fresh(make_list, number, count):
    item = make_list(number, (3,) * count, iteration=1)
    return item.replace(candidates=tuple(c.replace(reward=None, reward_fingerprint="") for c in item.candidates))


def texts(item):
    return sorted(c.text for c in item.candidates)


def test_a_joint_model_ranks_remembered_and_fresh_candidates_together(annotation, make_list):
    made, pool = annotation(joint=True)
    old = make_list(1, (2, 2), iteration=0)
    item = join(fresh(make_list, 1, 3), old.candidates)
    (ranked,) = asyncio.run(made._ranked([item]))
    (asked,) = pool.asked
    assert sorted(asked) == texts(item)
    assert [c.reward for c in ranked.candidates] == [5.4, 5.3, 5.2, 5.1, 5.0]
    assert len({c.reward_fingerprint for c in ranked.candidates}) == 1
    assert ranked.candidates[0].reward_fingerprint.startswith("f/")
    assert asyncio.run(made._ranked([ranked])) == [ranked]  # a replayed list asks for nothing
    assert len(pool.asked) == 1


def test_without_rescoring_a_joint_model_ranks_the_fresh_ones_among_themselves(annotation, make_list):
    made, pool = annotation(joint=True, rescore=False)
    old, new = make_list(1, (2, 2), rewards=(9.0, 8.0)), fresh(make_list, 1, 3)
    (ranked,) = asyncio.run(made._ranked([join(new, old.candidates)]))
    assert [sorted(asked) for asked in pool.asked] == [texts(new)]
    assert [c.reward for c in ranked.candidates] == [9.0, 8.0, 3.2, 3.1, 3.0]


def test_another_model_is_asked_for_what_it_has_not_scored_alone(annotation, make_list):
    made, pool = annotation(joint=False)
    old = make_list(1, (2, 2))  # of another model
    known = old.replace(candidates=tuple(c.replace(reward_fingerprint="f") for c in old.candidates))
    new = fresh(make_list, 1, 3)
    (ranked,) = asyncio.run(made._ranked([join(new, known.candidates)]))
    assert [sorted(asked) for asked in pool.asked] == [texts(new)]
    assert len(ranked.candidates) == 5
    asyncio.run(made._ranked([old]))
    assert sorted(pool.asked[1]) == texts(old)


def test_a_failed_reward_of_an_early_list_is_told_under_its_own_iteration(make_list):
    class Fails(Pool):
        async def rank(self, requests):
            return [[Reward(0.0, failure="no answer")] * len(texts) for _, texts in requests]

    told = []
    run = SimpleNamespace(config=Config())
    progress = SimpleNamespace(iteration=0, reward_failed=lambda *failure: told.append(failure))
    early = Annotation(SimpleNamespace(run=run, rewards=Fails(joint=False)), progress, 1)
    new = fresh(make_list, 1, 2)
    asyncio.run(early._ranked([new]))
    assert told == [(1, candidate.id, "no answer") for candidate in new.candidates]


def test_sampling_follows_a_pool_that_grows_and_shrinks():
    """A sampler that joins in the middle has prompts at once; none is lost or sampled twice, whoever comes and goes."""

    async def go():
        opened = asyncio.Event()

        async def waits(task):
            await opened.wait()
            return []

        first, second = Double("first", sample=waits), Double("second", sample=waits)
        house = House(first, second, max_count=2, per_sampler=24, drain_s=0.01)
        await house.pool.start()
        prompts = [Prompt(f"p{number}", (Message("user", "?"),)) for number in range(40)]
        config = Config.model_validate({"stream": {"lists_per_part": 64}})
        run = SimpleNamespace(config=config, token_ids={p.id: (1,) for p in prompts}, stop_token_ids=())
        made = Annotation(SimpleNamespace(run=run, samplers=house.pool), SimpleNamespace(), 0)
        sampling = asyncio.create_task(made._sample_all(prompts))
        async with asyncio.timeout(5):
            while len(first.tasks) < 3:
                await asyncio.sleep(0)
            house.pool.resize(2)
            while len(second.tasks) < 3:
                await asyncio.sleep(0)
            assert len(first.tasks) == 3
            house.pool.let_go(house.pool.members[0])
            while house.pool.handed_back < 3:
                await asyncio.sleep(0.01)
            opened.set()
            await sampling
        lists = [made._sampled.get_nowait() for _ in range(made._sampled.qsize() - 1)]
        assert sorted(item.prompt.id for item in lists) == sorted(prompt.id for prompt in prompts)
        assert made.prompts_sampled == 40

    asyncio.run(go())


@pytest.mark.parametrize(
    ("by_iteration", "expected"),
    [
        ([1.0, 0.7, 0.4], [((1.0, 5),), ((0.7, 5),), ((0.4, 5),)]),
        ([], [((1.2, 3), (0.8, 2))] * 3),  # 5 dealt over both, in each iteration alike
    ],
)
def test_each_iteration_samples_at_its_own_temperature(by_iteration, expected):
    sampling = {"k": 5, "temperatures": [1.2, 0.8], "temperature_by_iteration": by_iteration, "max_new_tokens": 12}
    config = Config.model_validate({"sampling": sampling, "training": {"iterations": 3}})
    run = SimpleNamespace(config=config, token_ids={"p": (5, 6)}, stop_token_ids=(2,))
    prompt = Prompt("p", (Message("user", "?"),))
    tasks = [sample_task(run, iteration, prompt) for iteration in range(3)]
    assert [task.counts for task in tasks] == expected
    assert [(task.key, task.iteration) for task in tasks] == [("0000/p", 0), ("0001/p", 1), ("0002/p", 2)]
    assert {(task.prompt_token_ids, task.max_new_tokens, task.stop_token_ids) for task in tasks} == {((5, 6), 12, (2,))}
