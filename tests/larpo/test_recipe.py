"""Recipes: what loads, what is refused, and what the refusal says."""

import os
import subprocess
import sys

import pytest

from larpo.config import Config
from larpo.errors import ConfigError
from larpo.objective_table import OBJECTIVES
from larpo.recipe import (
    arms,
    bundled_recipes,
    changed_knobs,
    check_config,
    config_to_yaml,
    first_arms,
    load_config,
    recipe_name,
)


def refusal(*overrides: str, recipe: str = "quickstart") -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    return str(caught.value)


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


# --- What loads


REWARD_TRAININGS = {"minilm-reward"}  # of another root: test_reward_training_config
RUNS = sorted({*bundled_recipes()} - REWARD_TRAININGS)
ALL = [full for name in RUNS for full in ([f"{name}:{arm}" for arm in arms(name)] or [name])]


@pytest.mark.parametrize("name", ALL)
def test_every_bundled_recipe_loads_and_round_trips(name, recipe_file):
    config = load_config(name)
    assert config.description
    assert load_config(recipe_file(config_to_yaml(config))) == config


def test_there_are_two_recipes_at_least():
    assert {"quickstart", "smollm2-ifeval"} <= set(bundled_recipes())


def test_strings_that_look_like_other_things_survive_a_round_trip(recipe_file):
    overrides = ['run.name="1e-5"', "telemetry.console=off", 'prompts.system="null"', 'samplers.cpu_cores="0"']
    config = load_config("quickstart", overrides)
    assert (config.run.name, config.telemetry.console, config.prompts.system) == ("1e-5", "off", "null")
    assert load_config(recipe_file(config_to_yaml(config))) == config


# --- Composition


@pytest.fixture
def folder_of_recipes(tmp_path):
    def write(**texts: str) -> str:
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return f"{tmp_path}/{next(iter(texts))}.yaml"

    return write


def test_a_recipe_is_laid_over_those_it_extends(folder_of_recipes):
    top = folder_of_recipes(
        top="extends: [quickstart, below.yaml]\nsampling: {k: 6}\n",
        below="sampling: {k: 4, temperatures: [0.7]}\nobjective: {name: listmle}\n",
    )
    config, base = load_config(top), load_config("quickstart")
    assert (config.sampling.k, config.sampling.temperatures) == (6, (0.7,))
    assert config.objective.name == "listmle"
    assert config.objective.beta == base.objective.beta
    assert config.prompts == base.prompts


def test_a_list_is_replaced_and_a_mapping_is_joined(folder_of_recipes):
    top = folder_of_recipes(
        top="extends: [quickstart]\nprompts: {tasks: {lcm: {}}}\nsampling: {temperatures: [0.5, 1.0]}"
    )
    config = load_config(top)
    assert set(config.prompts.tasks) == {"chain_sum", "gcd", "products", "lcm"}
    assert config.sampling.temperatures == (0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("extends: top.yaml", "extends itself"),
        ("extends: 3", "must be a recipe, or a list of them"),
        ("extends: lost", "no recipe is called 'lost'"),
        ("extends: below.yaml", "below.yaml: holds list, not sections"),
    ],
)
def test_what_cannot_be_extended_is_refused(folder_of_recipes, text, says):
    assert says in refusal(recipe=folder_of_recipes(top=text, below="[1, 2]"))


GRID = """
extends: quickstart
grid:
  objective:
    pairwise: {objective: {name: pairwise}, lists: {selection: {policy: best_vs_worst}}}
    listmle: {objective: {name: listmle}}
  memory:
    none: {lists: {memory: current}}
    all: {lists: {memory: current_and_all_previous}}
"""


def test_a_grid_has_an_arm_for_each_combination(folder_of_recipes):
    recipe = folder_of_recipes(top=GRID)
    assert arms(recipe) == ("pairwise.none", "pairwise.all", "listmle.none", "listmle.all")
    config = load_config(f"{recipe}:pairwise.all", ["sampling.k=4"])
    assert (config.objective.name, config.lists.memory) == ("pairwise", "current_and_all_previous")
    assert (config.lists.selection.policy, config.sampling.k) == ("best_vs_worst", 4)
    assert recipe_name(f"{recipe}:listmle.none") == "top-listmle.none"
    assert arms("quickstart") == ()


def test_an_arm_must_be_named_and_be_there(folder_of_recipes):
    recipe = folder_of_recipes(top=GRID)
    assert "is a grid of 4 arms; name one as" in refusal(recipe=recipe)
    assert "has no arm 'listmle'. Arms: pairwise.none" in refusal(recipe=f"{recipe}:listmle")
    assert "has no arm 'x'. Arms: none" in refusal(recipe="quickstart:x")


@pytest.mark.parametrize("grid", ["3", "{}", "{memory: {}}", "{memory: [a]}", "{memory: {none: current}}"])
def test_a_grid_of_another_shape_is_refused(recipe_file, grid):
    assert "grid must be {axis: {label:" in refusal(recipe=recipe_file(f"extends: quickstart\ngrid: {grid}\n") + ":a")


# --- Answers of a dataset


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["training.iterations=2"], "training.iterations = 2: a run on a dataset has one iteration"),
        (["objective.reference=iteration"], "objective.reference = 'iteration': a run on a dataset"),
        (["evaluation.every_steps=5"], "evaluation.every_steps = 5: is decided by sampled answers"),
        (["lists.negatives=random"], "lists.negatives = 'random': a dataset brings its own losers"),
        (["preferences.tasks={}"], "preferences.tasks = {}: reasoning_gym needs one task or more"),
        (["preferences.train_count="], "preferences.train_count is not given"),
        (["preferences.columns.prompt=q"], "preferences.columns has {'prompt': 'q'}: reasoning_gym takes none"),
        (["preferences.source=x.jsonl"], "only preferences.source = reasoning_gym takes tasks"),
        (["objective.name=pairwise"], "keeps 4 responses a list"),
        (["training.lists_per_step=1", "training.workers=2"], "must be at least training.workers = 2"),
    ],
)
def test_a_recipe_that_cannot_train_on_a_dataset_is_refused(overrides, says):
    assert says in refusal(*overrides, recipe="offline-arithmetic")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("{prompt: q}", "set exactly one of chosen and rejected; responses; response; messages alone"),
        ("{prompt: q, chosen: a}", "names chosen alone: chosen and rejected come together"),
        ("{prompt: q, response: a, responses: b}", "names prompt, responses, response: set exactly one of"),
        ("{response: a}", "names response without its prompt"),
        ("{prompt: q, messages: m, response: a}", "names prompt and messages: name one"),
        ("{prompt: q, response: a, rewards: r}", "preferences.columns.rewards: goes with responses"),
        ("{prompt: q, responses: a, margin: m}", "preferences.columns.margin: goes with chosen"),
        ("{prompt: q, chosen: a, rejected: b, margin: m}", "columns.margin = 'm': no objective of a policy takes"),
    ],
)
def test_columns_that_make_no_answer_are_refused(columns, says):
    file = ["preferences.source=x.jsonl", "preferences.tasks={}"]
    assert says in refusal(*file, f"preferences.columns={columns}", recipe="offline-arithmetic")


def test_a_pair_of_a_dataset_needs_no_selection():
    file = ["preferences.source=x.jsonl", "preferences.tasks={}", "objective.name=pairwise"]
    load_config("offline-arithmetic", [*file, "preferences.columns={chosen: a, rejected: b}"])


def test_fine_tuning_is_for_given_answers():
    assert "objective.name = 'sft': trains on given answers" in refusal("objective.name=sft")
    assert load_config("sft-arithmetic").objective.name == "sft"


# --- Numbers


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("2.0e-5", 2e-5), ("1", 1.0), (".5", 0.5), ("1E-3", 1e-3)])
def test_a_number_is_a_number(text, value):
    assert (
        load_config("quickstart", [f"training.optimizer.learning_rate={text}"]).training.optimizer.learning_rate
        == value
    )


def test_yaml_files_read_numbers_the_same_way(recipe_file):
    text = config_to_yaml(load_config("quickstart")).replace("eps: 1.0e-08", "eps: 1e-6")
    assert load_config(recipe_file(text)).training.optimizer.eps == 1e-6


def test_overrides_reach_into_mappings_and_the_last_one_wins():
    config = load_config("quickstart", ["prompts.tasks.gcd.max_value=30", "run.seed=1", "run.seed=2", "run.name="])
    assert config.prompts.tasks["gcd"] == {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 30}
    assert (config.run.seed, config.run.name) == (2, None)


def test_recipe_name():
    assert recipe_name("quickstart") == "quickstart"
    assert recipe_name("some/folder/mine.yaml") == "mine"
    assert recipe_name("mine.v2.yaml") == "mine.v2"


def test_changed_knobs():
    old = load_config("quickstart")
    new = load_config("quickstart", ["training.iterations=3", "prompts.tasks.gcd.max_value=30", "run.name=x"])
    assert changed_knobs(old, old) == []
    assert changed_knobs(old, new) == [
        "run.name: None -> x",
        "prompts.tasks.gcd.max_value: 20 -> 30",
        "training.iterations: 2 -> 3",
    ]
    without = old.model_copy(update={"prompts": old.prompts.model_copy(update={"tasks": {"gcd": {}}})})
    assert "prompts.tasks.gcd: not set -> {}" in changed_knobs(old, without)


def test_reading_a_recipe_imports_nothing_heavy():
    code = (
        "import sys; from larpo.recipe import load_config; load_config('smollm2-ifeval'); "
        "print(*{'torch', 'transformers', 'datasets', 'ray', 'vllm', 'deepspeed'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# --- What is refused


def test_unknown_recipe_names_the_nearest_and_all():
    message = refusal(recipe="quikstart")
    assert "'quikstart'" in message
    assert "did you mean 'quickstart'?" in message
    assert "smollm2-ifeval" in message
    assert "nowhere/x.yaml" in refusal(recipe="nowhere/x.yaml")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.iteration=3", "training.iteration: no knob is called so; did you mean training.iterations?"),
        ("training.optimizer.lr=1", "training.optimizer.lr: no knob is called so"),
        ("learning_rate=1", "learning_rate: no knob is called so; did you mean training.optimizer.learning_rate?"),
        ("sampler.count=2", "sampler: no knob is called so; did you mean samplers?"),
        (
            "lists.selection.botom=2",
            "lists.selection.botom: no knob is called so; did you mean lists.selection.bottom?",
        ),
        ("training.iterations=0", "training.iterations = 0: must be at least 1; leave it out for its default 3"),
        ("training.iterations=1.5", "training.iterations = 1.5: must be a whole number"),
        ("training.zero_stage=4", "training.zero_stage = 4: must be at most 3"),
        ("training.zero_stage=true", "training.zero_stage = True: must be a whole number"),
        ("sampling.k=65", "sampling.k = 65: must be at most 64"),
        ("sampling.temperatures=[0]", "sampling.temperatures[0] = 0: must be more than 0"),
        ("sampling.temperatures=1.0", "sampling.temperatures = 1.0: must be a list, such as [1.0]"),
        ("training.optimizer.learning_rate=fast", "training.optimizer.learning_rate = 'fast': must be a number"),
        ("training.optimizer.betas=[0.9]", "training.optimizer.betas[1]"),
        ("training.optimizer.betas=[0.9, 1.0]", "training.optimizer.betas[1] = 1.0: must be less than 1"),
        ("training.gap_alarm=.inf", "training.gap_alarm = inf: must be a finite number"),
        ("training.resources_per_worker={CPU: -1}", "training.resources_per_worker.CPU = -1: must be at least 0"),
        ("overlap=steam", "overlap = 'steam': must be one of 'none', 'stream' or 'async' (did you mean 'stream'?)"),
        ("run.name=3", 'run.name = 3: must be text; put it in quotes, such as "3"'),
        ("policy.trust_remote_code=yes", "policy.trust_remote_code = 'yes': must be true or false"),
        ("lists=", "lists = None: must be a section"),
        ("prompts.tasks=[a]", "prompts.tasks = ('a',): must be a mapping"),
    ],
)
def test_one_wrong_knob(override, expected):
    message = refusal(override)
    assert expected in message
    assert message.count("\n") == 1


def test_all_problems_are_listed_one_a_line():
    lines = refusal("training.iterations=0", "sampling.k=1", "foo=1").splitlines()
    assert lines[0] == "recipe quickstart: 3 to change:"
    assert len(lines) == 1 + 3


@pytest.mark.parametrize("override", ["training.iterations", "=3", "training.=3", ".a=3", ""])
def test_malformed_overrides(override):
    assert "must be section.key=value" in refusal(override)


def test_an_override_cannot_reach_through_a_value():
    assert "training.iterations = 2 is no section" in refusal("training.iterations.x=3")
    assert "not readable as YAML" in refusal("prompts.tasks={a")


def test_bad_yaml_files(recipe_file):
    assert "line 3: not readable as YAML: the key 'k' is written twice" in refusal(
        recipe=recipe_file("sampling:\n  k: 8\n  k: 4\n")
    )
    assert "line 3: not readable as YAML" in refusal(recipe=recipe_file("a: 1\nb: [1\n"))
    assert "holds list" in refusal(recipe=recipe_file("- a\n"))
    assert "holds NoneType" in refusal(recipe=recipe_file("# nothing\n"))


# --- Constraints between knobs


IFEVAL = ["prompts.source=ifeval", "prompts.tasks={}", "reward.name=ifeval"]
NONE_HELD_OUT = ["prompts.heldout_count=0", "evaluation.each_iteration=false"]
RANKED = ["reward.kind=pairwise", "reward.ranker.model=some/ranker"]
FILE = ["prompts.source=a.jsonl", "prompts.tasks={}", "reward.name=my.module:score"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sampling.k=3"], "top + bottom = 4 responses, but sampling.k is 3"),
        (["lists.selection={policy: best_vs_bottom, bottom: 8}"], "1 + bottom = 9 responses, but sampling.k is 8"),
        (
            ["objective.name=lambdarnk"],
            "objective.name = 'lambdarnk': no objective is called so; did you mean 'lambdarank'?",
        ),
        (["objective.name=dpo"], "lists.selection.policy = 'top_and_bottom': keeps 4 responses"),
        (["sampling.temperatures=[]"], "sampling.temperatures = []"),
        (
            ["sampling.k=2", "sampling.temperatures=[1, 1, 1]", "lists.selection.policy=all"],
            "sampling.temperatures has 3 values: sampling.k = 2",
        ),
        (["sampling.temperature_by_iteration=[1.0]"], "has 1 values: training.iterations is 2"),
        (["samplers.max_model_len=223"], "samplers.max_model_len = 223: prompts.max_prompt_tokens + "),
        (["training.row_tokens=223"], "192 + 32 = 224 must fit into it"),
        (["training.prompts_per_iteration=193"], "at most prompts.train_count = 192"),
        (["training.workers=13"], "training.lists_per_step = 12: must be at least training.workers = 13"),
        (["training.prompts_per_iteration=11"], "must be at most training.prompts_per_iteration = 11"),
        (["stream.capacity=11"], "must be at most stream.capacity = 11"),
        (["prompts.tasks={}"], "prompts.tasks = {}"),
        (["prompts.train_count="], "prompts.train_count is not given"),
        (["prompts.heldout_count=0"], "evaluation.each_iteration = True"),
        (["evaluation.patience=2"], "evaluation.patience = 2: waits for evaluation.best_metric to rise"),
        (
            [*NONE_HELD_OUT, "evaluation.best_metric=greedy"],
            "evaluation.best_metric = 'greedy': needs held-out prompts",
        ),
        (["evaluation.each_iteration=false", "evaluation.every_steps=4"], "set evaluation.each_iteration=true"),
        (
            ["evaluation.each_iteration=false", "evaluation.best_metric=reward", "evaluation.patience=1"],
            "set evaluation.each_iteration=true",
        ),
        (["lists.replay=false", "evaluation.every_steps=32"], "every_steps = 32: the run has at most 32 steps"),
        (["reward.name=ifeval"], "reward.name = 'ifeval': needs constraints"),
        (["reward.name=reasoning-gym"], "no verifier is called 'reasoning-gym'"),
        ([*IFEVAL, "reward.name=reasoning_gym"], "scores generated tasks only, but prompts.source is 'ifeval'"),
        ([*IFEVAL, "prompts.tasks={gcd: {}}"], "only prompts.source = reasoning_gym takes tasks"),
        (["prompts.columns.prompt=question"], "the bundled set 'reasoning_gym' takes none"),
        (FILE, "names no text column for 'a.jsonl'"),
        ([*FILE, "prompts.columns={prompt: p, messages: m}"], "names prompt and messages for 'a.jsonl'"),
        ([*FILE, "prompts.columns.prompt=p", "reward.name=ifeval"], "without prompts.columns.answer_key"),
        (["run.name=a/b"], "run.name = 'a/b': must be a plain folder name"),
        (["run.name=.."], "run.name = '..'"),
        (['run.name=""'], "run.name = ''"),
    ],
)
def test_constraints_between_knobs(overrides, expected):
    message = refusal(*overrides)
    assert expected in message
    assert message.splitlines()[0] == "recipe quickstart: this configuration cannot run, 1 to change:"


def test_adapters_with_dropout_share_no_rows():
    lora = "policy.lora={rank: 4, dropout: 0.1}"
    assert "training.shared_row_tokens = 512: policy.lora.dropout" in refusal(lora, "training.shared_row_tokens=512")
    load_config("quickstart", [lora, "training.shared_row_tokens=0"])
    load_config("quickstart", ["policy.lora.rank=4", "training.shared_row_tokens=512"])


@pytest.mark.parametrize(
    "overrides",
    [
        IFEVAL,
        [*FILE, "prompts.columns.prompt=p"],
        ["objective.name=pairwise", "lists.selection.policy=best_vs_worst"],
        ["objective.name=dpo", "sampling.k=2", "lists.selection.policy=all"],
        ["lists.selection={policy: best_vs_bottom, bottom: 7}"],
        ["samplers.max_model_len=224", "training.row_tokens=224"],
        ["prompts.heldout_count=0", "evaluation.each_iteration=false"],
        ["run.name=my-run_3.1"],
        ["evaluation.every_steps=4", "evaluation.best_metric=fully_met", "evaluation.patience=2"],
        ["evaluation.each_iteration=false", "evaluation.best_metric=reward"],
        ["lists.replay=false", "evaluation.every_steps=31"],
    ],
)
def test_what_just_fits_is_taken(overrides):
    load_config("quickstart", overrides)


HUB = ["prompts.source=someone/some-set", "prompts.tasks={}", "prompts.columns.prompt=q", "reward.name=my.module:score"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompts.heldout_split=test"], "prompts.source = 'reasoning_gym' has no splits; leave it out"),
        ([*FILE, "prompts.columns.prompt=q", "prompts.heldout_split=test"], "= 'a.jsonl' has no splits; leave it out"),
        ([*HUB, "prompts.heldout_split=train"], "'train': is prompts.split, which prompts are held out of without it"),
        (
            [*HUB, *NONE_HELD_OUT, "prompts.heldout_split=test"],
            "'test': holds nothing out, since prompts.heldout_count",
        ),
    ],
)
def test_a_split_to_hold_out_that_cannot_be_is_refused(overrides, message):
    assert message in refusal(*overrides)


@pytest.mark.parametrize("name", ["paper-table-6", "paper-figure-2", "paper-figure-4a"])
def test_the_paper_s_mathematics_is_measured_on_problems_that_nobody_trained_on(name):
    """MetaMath, on which the first stage of Table 6 is fine-tuned, is made of the training problems."""
    for arm in arms(name):
        prompts = load_config(f"{name}:{arm}").prompts
        assert (prompts.split, prompts.heldout_split) == ("train", "test")
        assert prompts.heldout_count == (4900 if "MATH" in prompts.source else 1300)


def test_all_constraints_are_listed_together():
    message = refusal("sampling.k=3", "run.name=a/b", "stream.capacity=1", "objective.name=x")
    assert message.count("\n  - ") == 4


def test_check_config_takes_a_config_of_python():
    check_config(load_config("quickstart"))
    with pytest.raises(ConfigError, match=r"prompts\.tasks"):
        check_config(Config())


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"sft"}))
def test_every_objective_can_be_named_in_a_recipe(name):
    selection = "best_vs_worst" if OBJECTIVES[name].uses == "pair" else "all"
    options = [f"objective.options.{option}=0.5" for option in OBJECTIVES[name].options]
    config = load_config("quickstart", [f"objective.name={name}", f"lists.selection.policy={selection}", *options])
    assert dict(config.objective.options) == dict.fromkeys(OBJECTIVES[name].options, 0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.name=simpo"], "objective.name = 'simpo' trains on 2, one winner and one loser"),
        (["objective.name=kto", "objective.options.desirable=1.0"], "did you mean 'desirable_weight'?"),
        (["objective.options.margin=1.0"], "objective.name = 'lambdarank' has no such number; it has none"),
        (["objective.name=rrhf", "objective.reference=iteration"], "objective.name = 'rrhf' has no reference"),
        (["objective.name=rrhf", "objective.options.sft_weight=-1"], "objective.options.sft_weight"),
    ],
)
def test_a_recipe_that_cannot_give_what_an_objective_needs_is_refused(overrides, message):
    assert message in refusal(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.kind=sequence_classification"], "reward.classifier.model is not given"),
        (["reward.kind=http"], "reward.endpoint.addresses = []: http needs one or more"),
        (["reward.kind=http", "reward.endpoint.addresses=[127.0.0.1:8100]"], "must begin with http:// or https://"),
        (
            ["reward.kind=http", "reward.endpoint.addresses=['http://me:secret@host']"],
            "secrets come from the environment",
        ),
        (["reward.kind=htp"], "reward.kind"),
        (["reward.kind=callable"], "reward.name = 'reasoning_gym': callable needs your own function"),
        (["reward.kind=pairwise", *NONE_HELD_OUT], "reward.ranker.model is not given"),
        ([*RANKED, "reward.ranker.template='{prompt} {first}'", *NONE_HELD_OUT], "lacks {second}; add them"),
        ([*RANKED, "reward.ranker.comparisons=1", *NONE_HELD_OUT], "reward.ranker.comparisons"),
        (RANKED, "a pairwise ranker's rewards have mean 0 in every list"),
        (["reward.kind=vllm"], "reward.pooling.model is not given"),
        (
            [
                "reward.kind=vllm",
                "reward.pooling={model: some/model, tensor_parallel_size: 2}",
                "reward.resources.GPU=1",
            ],
            "reward.resources asks for 1; set reward.resources={GPU: 2}",
        ),
        (["reward.kind=weighted"], "reward.parts = []: weighted needs one part or more"),
        (["reward.kind=weighted", "reward.parts=[{kind: http}]"], "reward.parts[0].endpoint.addresses = []"),
        (["reward.kind=weighted", "reward.parts=[{name: gsm9k}]"], "reward.parts[0].name = 'gsm9k'"),
        (["reward.word_weight=0.1"], "only kind = 'weighted' adds up"),
        ([*FILE, "prompts.columns.prompt=p", "reward.name=gsm8k"], "reward.name = 'gsm8k': needs answers"),
        ([*FILE, "prompts.columns.prompt=p", "reward.name=math"], "reward.name = 'math': needs answers"),
        ([*IFEVAL, "reward.name=math"], "reward.name = 'math': needs answers, which prompts.source = 'ifeval' has not"),
    ],
)
def test_a_reward_without_what_its_kind_asks_for_is_refused(overrides, message):
    assert message in refusal(*overrides)


def test_every_kind_of_reward_can_be_named_in_a_recipe():
    file = ["prompts.source=x.jsonl", "prompts.tasks={}", "prompts.columns.prompt=question"]
    load_config("quickstart", ["reward.name=gsm8k", "prompts.columns.answer_key=answer", *file])
    load_config("quickstart", ["reward.kind=sequence_classification", "reward.classifier.model=some/model"])
    assert load_config("quickstart", ["reward.kind=callable", "reward.name=my.ranks:of"]).reward.source == "my.ranks:of"
    assert load_config("quickstart", [*RANKED, *NONE_HELD_OUT]).reward.source == "some/ranker"
    load_config("quickstart", ["reward.kind=weighted", "reward.parts=[{kind: pairwise, ranker: {model: some/ranker}}]"])
    served = load_config("quickstart", ["reward.kind=vllm", "reward.pooling.model=some/model"])
    assert served.reward.source == "some/model"
    served = load_config("quickstart", ["reward.kind=http", "reward.endpoint.addresses=[http://127.0.0.1:8100]"])
    assert served.reward.source == "http://127.0.0.1:8100"
    parts = "reward.parts=[{weight: 0.5}, {kind: sequence_classification, classifier: {model: some/model}}]"
    weighted = load_config("quickstart", ["reward.kind=weighted", "reward.word_weight=-0.01", parts])
    assert weighted.reward.source == "0.5 verifier reasoning_gym + 1 sequence_classification some/model"


def test_a_pool_of_samplers_is_fixed_unless_a_range_is_given():
    def pool(*overrides):
        samplers = load_config("quickstart", overrides).samplers
        return samplers.least, samplers.count, samplers.most, samplers.is_elastic

    assert pool() == (1, 1, 1, False)
    assert pool("samplers.count=3", "samplers.min_count=1") == (1, 3, 3, True)
    assert pool("samplers.max_count=8") == (1, 1, 8, True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.seed=-1"], "run.seed"),
        (["run.seed=99999999999999999999999"], "run.seed"),
        (["samplers.cpu_cores=banana"], "samplers.cpu_cores"),
        (["samplers.min_count=2"], "samplers.min_count = 2: must be at most samplers.count = 1"),
        (["samplers.count=4", "samplers.max_count=3"], "samplers.max_count = 3: must be at least samplers.count = 4"),
        (
            ["samplers.tensor_parallel_size=4"],
            "and samplers.resources asks for 0",
        ),
        (["objective.name=kto", "training.lists_per_step=3", "training.workers=2"], "needs 2 a worker, 4 in all"),
        (
            ["reward.kind=http", "reward.endpoint.addresses=[http://a]", "reward.endpoint.timeout_s=300"],
            "timeouts.reward_s = 300: reward.endpoint may take 1203.5 s for one list",
        ),
        (
            ["reward.kind=weighted", "reward.parts=[{kind: http, endpoint: {addresses: [http://a], timeout_s: 300}}]"],
            "timeouts.reward_s = 300: reward.endpoint may take 1203.5 s for one list",
        ),
        (["reward.weight=2.0"], "reward.weight = 2: weighs a part of a weighted reward"),
        (
            ["reward.kind=weighted", "reward.parts=[{resources: {GPU: 1}}]"],
            "reward.parts[0].resources: all parts are in one reward actor; set reward.resources",
        ),
        (
            ["objective.name=approx_ndcg", "objective.options.temperature=0"],
            "objective.options.temperature = 0: objective.name = 'approx_ndcg' divides by it",
        ),
    ],
)
def test_knobs_that_would_only_fail_later_are_refused(overrides, message):
    assert message in refusal(*overrides)


def test_a_pause_between_attempts_at_a_server_grows_no_further_than_its_limit():
    """11 attempts of 10 s, and 0.5 + 1 + ... + 16 + 4 x 30 s between them."""
    served = ["reward.kind=http", "reward.endpoint.addresses=[http://a]", "reward.endpoint.timeout_s=10"]
    load_config("quickstart", [*served, "reward.endpoint.retries=10", "timeouts.reward_s=262"])
    with pytest.raises(ConfigError, match=r"may take 261\.5 s"):
        load_config("quickstart", [*served, "reward.endpoint.retries=10", "timeouts.reward_s=261"])


def test_the_arm_that_another_is_compared_with_has_the_same_labels_on_the_other_axes():
    first = first_arms("paper-table-3")
    assert set(first) == set(arms("paper-table-3"))
    assert first["lambdarank.mistral-7b"] == "pairwise.mistral-7b"
    assert first["pairwise.gemma-2-2b"] == "pairwise.gemma-2-2b"


def test_a_run_on_given_answers_has_no_evaluation_on_the_way():
    with pytest.raises(ConfigError, match=r"a run on preferences\.source samples nothing on the way"):
        load_config("sft-arithmetic", ["evaluation.best_metric=reward"])
