"""An evaluation over doubles of the actors: what it asks, keeps, goes on with and refuses.

tests/scripts/test_evaluate_end_to_end.py has the real actors.
"""

import asyncio
import json
from types import SimpleNamespace

import pytest

from actors import placement
from actors.capacity import total
from actors.evaluation_inputs import begin, chosen, prepare_evaluation
from actors.evaluation_results import finish
from actors.evaluator import Evaluator, is_done
from actors.reranking import rerank_all
from actors.reward import Described
from actors.scoring import score_all
from larpo.config import Config
from larpo.errors import ConfigError, DataError, EvaluationError, SamplerError
from larpo.records import list_parts
from larpo.rewards import Reward
from larpo.types import Candidate, VersionSpan

PROMPTS = 5


class House:
    """The doubles, and what they were asked."""

    def __init__(self, monkeypatch):
        self.tasks, self.scored, self.killed, self.dies_after = [], [], [], None
        self.fingerprint, self.joint, self.sign = "f", False, 1.0
        monkeypatch.setattr(
            placement,
            "place_reward",
            lambda section, name="reward": self._actor(
                placed=self._zero, describe=self._describe, rank=self._rank, close=self._zero
            ),
        )
        monkeypatch.setattr(
            placement, "place_sampler", lambda config, options, policy, store, name: self._sampler(str(policy.path))
        )
        monkeypatch.setattr(
            placement, "place_scorer", lambda config, path: self._actor(load=self._zero, score=self._score)
        )
        monkeypatch.setattr(placement, "kill", self.killed.append)

    def _actor(self, **methods):
        return SimpleNamespace(**{name: SimpleNamespace(remote=method) for name, method in methods.items()})

    def _sampler(self, model):
        return self._actor(
            placed=self._zero, start=self._zero, sample=self._sample, shutdown=self._zero, stats=self._zero
        )

    async def _zero(self, *_):
        return 0

    async def _describe(self):
        return Described("verifier", "gsm8k", self.fingerprint, self.joint)

    async def _rank(self, requests):
        return [[Reward(self.sign * len(text) / 10) for text in responses] for _, responses in requests]

    async def _sample(self, task):
        await asyncio.sleep(0)
        if self.dies_after is not None and len(self.tasks) >= self.dies_after:
            await asyncio.sleep(0.3)  # what was sampled is ranked meanwhile
            raise RuntimeError("the engine is gone")
        self.tasks.append(task.key)
        temperatures = [t for t, count in task.counts for _ in range(count)]
        return [
            Candidate(
                f"{task.key}/{number}", "x" * (number + 1), (number + 1,), (-0.5,), "stop", t, "sampled", 0,
                (VersionSpan(0, 1, 0),),
            )
            for number, t in enumerate(temperatures)
        ]  # fmt: skip

    async def _score(self, lists):
        self.scored += lists
        return [[-float(response[0]) for response in responses] for _, responses in lists]


@pytest.fixture
def house(monkeypatch):
    return House(monkeypatch)


@pytest.fixture
def prepared(tmp_path, tiny_policy):
    """`prepared(models, **sweep)`: an evaluation in the same folder each time."""
    rows = [{"q": f"question {number}"} for number in range(PROMPTS + 1)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(*names, out="out", **sweep):
        config = Config.model_validate(
            {
                "policy": {"model": str(tiny_policy)},
                "prompts": {
                    "source": str(tmp_path / "prompts.jsonl"),
                    "columns": {"prompt": "q"},
                    "heldout_count": PROMPTS,
                },
                "reward": {"name": "gsm8k"},
                "samplers": {"max_model_len": 512},
                "stream": {"lists_per_part": 2},
                "evaluation": {"bootstrap": 50, "sweep": {"samples": 3, "list_size": 3, "cutoffs": [1, 3], **sweep}},
            }
        )
        models = [(name, str(tiny_policy)) for name in names or ("base",)]
        evaluation = prepare_evaluation(config, models, tmp_path / out)
        begin(evaluation)
        return evaluation

    return make


def answer(evaluation):
    asyncio.run(Evaluator(evaluation, lambda text: None).answer_all())


def test_it_goes_on_where_it_failed(house, prepared):
    evaluation = prepared("base", "tuned")
    house.dies_after = 3
    with pytest.raises(SamplerError, match="the engine is gone"):
        answer(evaluation)
    there = len(evaluation.recorded(evaluation.models[0]))
    assert there == 3
    assert not is_done(evaluation)
    house.dies_after = None
    house.tasks.clear()
    answer(prepared("base", "tuned"))
    assert len([key for key in house.tasks if key.startswith("base/")]) == PROMPTS - there
    assert len([key for key in house.tasks if key.startswith("tuned/")]) == PROMPTS
    asyncio.run(score_all(evaluation, lambda text: None))
    assert is_done(evaluation)
    house.tasks.clear()
    answer(evaluation)
    assert house.tasks == []


def test_a_model_can_be_added_and_a_temperature_is_a_task(house, prepared):
    answer(prepared("base", temperatures=[0.7, 1.0]))
    assert len(house.tasks) == 2 * PROMPTS
    assert {key.rpartition("/")[2] for key in house.tasks} == {"0", "1"}
    house.tasks.clear()
    evaluation = prepared("base", "tuned", temperatures=[0.7, 1.0])
    answer(evaluation)
    assert len(house.tasks) == 2 * PROMPTS
    assert all(key.startswith("tuned/") for key in house.tasks)
    assert len(list_parts(evaluation.samples_of(evaluation.models[1]))) == 3  # 2, 2 and 1 prompts


def test_results_are_those_of_the_doubles(house, prepared):
    evaluation = prepared("base", "tuned", acceptable=0.3)
    answer(evaluation)
    asyncio.run(score_all(evaluation, lambda text: None))
    results = finish(evaluation, outputs=True)
    # A prompt's greedy response is "x", its samples "xx", "xxx", "xxxx": rewards 0.1, then 0.2, 0.3, 0.4.
    measures = results["models"]["base"]["measures"]
    assert measures["greedy/reward"] == pytest.approx([0.1] * 3)
    assert measures["T=1/reward"] == pytest.approx([0.3] * 3)
    assert measures["T=1/recall@1"] == pytest.approx([2 / 3] * 3)
    assert results["differences"]["tuned"]["T=1/reward"] == pytest.approx([0.0] * 3)
    assert results["win_rates"]["tuned"]["raw"] == pytest.approx([0.5] * 3)
    # The scorer says -2, -3, -4: the order is upside down.
    ranking = results["ranking"]
    assert (ranking["lists"], ranking["candidates"]) == (PROMPTS, 3 * PROMPTS)
    assert ranking["models"]["base"]["log_pi"]["tau"] == pytest.approx([-1.0] * 3)
    assert ranking["models"]["tuned"]["gamma"]["tau"] == pytest.approx([0.0] * 3)
    assert len(house.scored) == 2 * PROMPTS
    assert json.loads((evaluation.folder / "results.json").read_text())["prompts"] == PROMPTS
    outputs = evaluation.folder / "outputs"
    (free_form,) = (outputs / "tuned" / "mixeval").rglob("local_chat_close_freeform.jsonl")
    assert len(free_form.read_text().splitlines()) == PROMPTS
    assert {path.name for path in outputs.glob("*.json")} == {f"{name}.alpaca_eval.json" for name in ("base", "tuned")}
    assert (evaluation.folder / "report.html").stat().st_size > 10_000


def test_another_reward_model_reranks(house, prepared):
    """It prefers short responses, and the recipe's reward the long ones."""
    reranker = {"kind": "http", "endpoint": {"addresses": ["http://127.0.0.1:1"]}}
    evaluation = prepared("base", acceptable=0.3, reranker=reranker)
    answer(evaluation)
    assert not is_done(evaluation)
    house.sign, house.fingerprint = -1.0, "another"
    asyncio.run(rerank_all(evaluation, lambda text: None))
    asyncio.run(score_all(evaluation, lambda text: None))
    assert is_done(evaluation)
    measures = finish(evaluation)["models"]["base"]["measures"]
    assert measures["T=1/recall@1"] == measures["T=1/reranked@1"] == pytest.approx([2 / 3] * 3)
    assert measures["T=1/best_reward@3"] == pytest.approx([0.4] * 3)
    assert measures["T=1/reranked@3"] == pytest.approx([0.0] * 3)  # "xx": 0.2
    assert not is_done(prepared("base", acceptable=0.3, reranker={**reranker, "timeout_s": 9.0}))


def test_another_reward_model_or_other_settings_are_refused(house, prepared):
    answer(prepared("base"))
    with pytest.raises(DataError, match="begun with other values of samples"):
        prepared("base", samples=4)
    prepared("base", cutoffs=[1], acceptable=0.2)  # only what is computed from the samples
    house.fingerprint = "another"
    with pytest.raises(DataError, match="another reward model"):
        answer(prepared("base"))


def test_a_verifier_that_has_changed_is_refused_though_nothing_is_missing(house, prepared, monkeypatch):
    answer(prepared("base"))
    prepared("base")
    monkeypatch.setattr("larpo.verifiers.verifier_version", lambda name: "another")
    with pytest.raises(DataError, match="begun with other values of reward"):
        prepared("base")


def test_rewards_that_only_compare_responses_do_not_compare_models(house, prepared):
    house.joint = True
    answer(prepared("base"))
    with pytest.raises(ConfigError, match="do not compare models"):
        answer(prepared("base", "tuned"))


def test_a_folder_with_something_else_is_refused(prepared, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(DataError, match="holds something else"):
        prepared("base", out="mine")


def test_a_scorer_that_fails_tells_why(house, prepared, monkeypatch):
    evaluation = prepared("base")
    answer(evaluation)

    async def fails():
        raise MemoryError("no room for the model")

    scorer = SimpleNamespace(load=SimpleNamespace(remote=fails))
    monkeypatch.setattr(placement, "place_scorer", lambda config, path: scorer)
    with pytest.raises(EvaluationError, match="scorer of base failed: no room for the model"):
        asyncio.run(score_all(evaluation, lambda text: None))
    assert scorer in house.killed


@pytest.mark.parametrize(
    ("recipe", "models", "message"),
    [
        (None, [], "give either a recipe"),
        ("quickstart", ["a"], "must be NAME=FOLDER"),
        ("quickstart", ["../a=x"], "must be NAME=FOLDER"),
        ("quickstart", ["a=x", "a=y"], "names two models"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(recipe, models, message):
    with pytest.raises(ConfigError, match=message):
        chosen(recipe, [], None, models)


def test_a_run_brings_its_own_models(tmp_path):
    from larpo.recipe import config_to_yaml, load_config

    with pytest.raises(DataError, match="no finished run"):
        chosen(None, [], tmp_path, [])
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text(config_to_yaml(load_config("quickstart")))
    config, name, models = chosen(None, ["run.seed=3"], tmp_path, ["other=x"])
    assert (config.run.seed, name) == (3, tmp_path.name)
    assert models == [("base", "smollm2-135m-instruct"), ("aligned", str(tmp_path / "model")), ("other", "x")]


def test_an_evaluation_asks_for_what_is_there_at_one_time():
    config = Config.model_validate(
        {
            "samplers": {"count": 2, "resources": {"GPU": 1, "CPU": 1}},
            "reward": {"replicas": 2, "resources": {"GPU": 0.5}},
            "training": {"workers": 8, "resources_per_worker": {"GPU": 4}},
            "evaluation": {"sweep": {"reranker": {"resources": {"GPU": 1, "CPU": 3}}}},
        }
    )
    asked = [total(phase) for phase in placement.evaluation_phases(config)]
    assert asked == [{"CPU": 2.0, "GPU": 3.0}, {"CPU": 3.0, "GPU": 1.0}, {"GPU": 4.0}]
