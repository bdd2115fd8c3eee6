"""What a run is made of: validated models, one comment a knob.

A recipe is a YAML file of these models; `load_config` reads it, applies dotted overrides and checks every
constraint before anything starts. Nothing here imports torch, ray or vllm.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from larpo.knobs import Cores, Decay, Fraction, Positive, Resources, Seconds, Section, Seed, Temperature
from larpo.reward_config import Reward

Negatives = Literal["sampled", "related", "random"]
SweptArms = Literal["none", "trained", "policy"]
BestMetric = Literal["reward", "greedy", "fully_met", "fully_met_any", "fully_met_samples"]


class Run(Section):
    name: str | None = None  # name of the run folder; the recipe's name and the time when not given
    output_dir: str = "runs"  # where run folders are made: a folder, or a URI such as s3://BUCKET/PREFIX
    seed: Seed = 0  # seeds prompt order, ties, later epochs and the trainer


class Lora(Section):
    """Adapters beside the linear layers of a frozen model (Hu et al. 2021); they want a higher learning rate."""

    rank: Annotated[int, Field(ge=0)] = 0  # of the adapters; 0: none, and every weight is trained
    alpha: Positive = 16  # what an adapter adds is scaled by alpha / rank
    dropout: Decay = 0.0  # share of an adapter's inputs that a training pass leaves out
    target_modules: tuple[str, ...] = ("all-linear",)  # layers with an adapter by name, such as [q_proj, v_proj]


class Policy(Section):
    model: str = "smollm2-135m-instruct"  # bundled name, Hugging Face hub id or local folder
    revision: str | None = None  # hub revision
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # weights in samplers, compute type of the trainer
    trust_remote_code: bool = False  # run Python code that the model folder carries
    require_chat_template: bool = True  # refuse a tokenizer without one; off: a plain "role: text" template
    lora: Lora = Lora()


class Columns(Section):
    """Which dataset column plays which part; a column may be a dotted path into a struct."""

    prompt: str | None = None  # plain text, becomes one user turn
    messages: str | None = None  # list of {role, content}; everything after the last user turn is dropped
    id: str | None = None  # unique id; the row number when not given
    answer_key: str | None = None  # what the verifier needs (text, number or struct)


class Prompts(Section):
    source: str = "reasoning_gym"  # bundled (reasoning_gym, ifeval, alpaca_eval), .jsonl or .parquet path, or hub id
    subset: str | None = None  # configuration of a hub dataset that has several
    split: str = "train"  # split of a hub dataset
    revision: str | None = None  # hub revision
    columns: Columns = Columns()  # column map for files and hub datasets
    tasks: dict[str, dict[str, Any]] = {}  # reasoning_gym: task name -> its generator's arguments
    system: str | None = None  # system turn that the policy gets before prompts that have none; a reward never sees it
    train_count: Positive | None = None  # training prompts (all that are not held out when not given)
    heldout_count: Annotated[int, Field(ge=0)] = 0  # held-out prompts, disjoint from training
    heldout_split: str | None = None  # hub: split that held-out prompts are drawn from; `split` when not given
    split_seed: Seed = 0  # seeds the split into training and held-out prompts (and generated sets)
    drop_never_met: bool = True  # ifeval: train on no prompt with a constraint that a small model never meets
    max_prompt_tokens: Positive = 1024  # longer prompts are left out, counted and reported


class PreferenceColumns(Section):
    """Which dataset column plays which part; a column may be a dotted path into structs and lists of structs."""

    prompt: str | None = None  # text (one user turn) or a list of {role, content}
    messages: str | None = None  # turns before the answer; alone: whole chats, every assistant turn an answer
    chosen: str | None = None  # the better answer: text, or turns; turns may hold the prompt too
    rejected: str | None = None  # the worse answer, likewise
    responses: str | None = None  # a list of answers; best first where no rewards are given
    rewards: str | None = None  # their scores, as many
    response: str | None = None  # the one answer, for supervised fine-tuning
    margin: str | None = None  # how much better the chosen answer is (reward-model training)
    id: str | None = None  # unique id; the row number when not given


class Preferences(Section):
    """A dataset of answers that are there already: for fine-tuning, offline training and reward models."""

    source: str | None = None  # .jsonl or .parquet path, hub id, or reasoning_gym (its gold and other answers)
    subset: str | None = None  # configuration of a hub dataset that has several
    split: str = "train"  # split of a hub dataset
    revision: str | None = None  # hub revision
    columns: PreferenceColumns = PreferenceColumns()  # column map for files and hub datasets
    tasks: dict[str, dict[str, Any]] = {}  # reasoning_gym: task name -> its generator's arguments
    wrong_answers: Annotated[int, Field(ge=0, le=63)] = 3  # reasoning_gym: answers of other questions in a list
    system: str | None = None  # system turn that the policy gets before prompts that have none
    train_count: Positive | None = None  # rows trained on (all that are not held out when not given)
    heldout_count: Annotated[int, Field(ge=0)] = 0  # rows held out, of other prompts than those trained on
    split_seed: Seed = 0  # seeds the split into training and held-out rows (and generated sets)


class Sampling(Section):
    k: Annotated[int, Field(ge=2, le=64)] = 8  # responses a prompt
    temperatures: tuple[Temperature, ...] = (1.0,)  # k is split evenly over them (diverse temperature)
    temperature_by_iteration: tuple[Temperature, ...] = ()  # one an iteration; replaces `temperatures`
    max_new_tokens: Positive = 512  # length limit of a response
    stop: tuple[str, ...] = ()  # extra stop strings
    cut_off: Literal["as_is", "last", "drop"] = "as_is"  # rank of a response cut at the limit

    def counts(self, iteration: int) -> tuple[tuple[float, int], ...]:
        """(temperature, responses) of a prompt: k dealt evenly over the iteration's temperatures."""
        by_iteration = self.temperature_by_iteration
        temperatures = (by_iteration[iteration],) if by_iteration else self.temperatures
        share, rest = divmod(self.k, len(temperatures))
        return tuple((t, share + (number < rest)) for number, t in enumerate(temperatures))


class Selection(Section):
    """Which of the ranked responses are trained on (paper, Appendix H)."""

    policy: Literal["best_vs_worst", "best_vs_rest", "best_vs_bottom", "top_and_bottom", "all"] = "top_and_bottom"
    top: Positive = 2  # winners of top_and_bottom
    bottom: Positive = 2  # losers of top_and_bottom and best_vs_bottom


class Lists(Section):
    selection: Selection = Selection()
    negatives: Negatives = "sampled"  # losers: the prompt's own, or from other prompts
    memory: Literal["current", "current_and_previous", "current_and_all_previous"] = "current"  # Table 4
    max_age: Positive | None = None  # iterations that a remembered candidate may be old; any age when not given
    rescore: bool = True  # score remembered candidates again when the reward model is not the one that scored them
    replay: bool = True  # train again on remembered lists of prompts that this iteration did not draw
    near_duplicate: Fraction = 0.95  # candidates whose 3-gram overlap reaches this are one; 1.0: exact copies


class Objective(Section):
    name: str = "lambdarank"  # docs/objectives.md lists them with what each asks for
    beta: Annotated[float, Field(gt=0, le=100)] = 0.1  # scale of the score, gamma = beta * (log pi - log ref)
    reference: Literal["initial", "iteration"] = "initial"  # the model before the run or the iteration
    options: dict[str, Annotated[float, Field(ge=0)]] = {}  # the objective's own numbers, such as simpo's margin


class Optimizer(Section):
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-7
    betas: tuple[Decay, Decay] = (0.9, 0.95)  # AdamW
    eps: Annotated[float, Field(gt=0)] = 1e-8  # AdamW
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # AdamW
    clip_norm: Annotated[float, Field(gt=0)] = 1.0  # global gradient norm limit
    warmup: Fraction = 0.1  # share of the planned steps with rising learning rate
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up, over planned lists


class Training(Section):
    iterations: Positive = 3  # T of Algorithm 1
    prompts_per_iteration: Positive = 1024  # M of Algorithm 1
    epochs: Positive = 1  # passes over an iteration's lists
    lists_per_step: Positive = 16  # global batch of one optimizer step, whatever the number of ranks
    row_tokens: Positive = 4096  # longest packed row; longer lists are split into rows that repeat the prompt
    shared_row_tokens: Annotated[int, Field(ge=0)] = 0  # short lists share a row of up to so many tokens; 0: none does
    chunk_tokens: Positive = 512  # response tokens whose logits exist at one time
    workers: Positive = 1  # Ray Train workers (ranks); with min_workers, the most that there are
    min_workers: Positive | None = None  # as few go on when a node is lost; `workers` when not given
    resize_s: Seconds = 60.0  # between looks for room to grow again, which costs the steps since the last checkpoint
    resources_per_worker: Resources = {"CPU": 1.0}  # Ray resources of a worker, such as {"GPU": 1}
    threads: Annotated[int, Field(ge=0)] = 0  # torch threads of a CPU worker; 0: its CPUs, and idle ones if alone
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None  # DeepSpeed ZeRO; 2, or less for a lone worker
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    max_failures: Annotated[int, Field(ge=0)] = 3  # restarts of the worker group before the run gives up
    max_bad_steps: Positive = 3  # steps in a row with a loss or gradient that is not finite
    gap_alarm: Annotated[float, Field(gt=0)] = 0.1  # bound on mean |log-prob gap| of sampler and trainer
    optimizer: Optimizer = Optimizer()

    @property
    def least(self) -> int:
        """Workers that the group has at least."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def stage(self) -> int:
        """ZeRO's; `larpo.compute_type.settled` gives a run its own."""
        return 2 if self.zero_stage is None else self.zero_stage


class Samplers(Section):
    count: Positive = 1  # sampler actors that a run starts with
    min_count: Positive | None = None  # the pool never has fewer, and a run begins with these; `count` when not given
    max_count: Positive | None = None  # the pool never asks for more; `count` when not given: a fixed pool
    patience_s: Seconds = 60.0  # the pool changes by means over so long, and over two optimizer steps at least
    drain_s: Seconds = 60.0  # what a leaving sampler has not answered in this time goes to the others
    resources: Resources = {"CPU": 1.0}  # Ray resources of one sampler
    tensor_parallel_size: Positive = 1  # GPUs one engine spans
    max_model_len: Positive = 2048  # prompt and response together, in tokens
    max_num_seqs: Positive = 128  # responses that one engine generates at a time
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.85  # share of GPU memory an engine takes
    sleep: bool = False  # by turns with the trainer on one GPU: its memory is the trainer's while that works
    cpu_kv_cache_gib: Positive = 1  # KV cache of an engine on CPU
    cpu_cores: Cores = "auto"  # cores an engine on CPU binds to, such as "0" or "0-1"
    enforce_eager: bool = False  # no CUDA graphs and no compilation: starts faster, runs slower on GPUs
    lease_s: Seconds = 300.0  # a sampler that answers nothing for so long is replaced, and its prompts sampled anew
    max_restarts: Annotated[int, Field(ge=0)] = 3  # replacements of samplers that died, their node there

    @property
    def least(self) -> int:
        """Samplers that the pool always has."""
        return self.count if self.min_count is None else self.min_count

    @property
    def most(self) -> int:
        """Samplers that the pool may have."""
        return self.count if self.max_count is None else self.max_count

    @property
    def is_elastic(self) -> bool:
        return self.least < self.most


class Stream(Section):
    capacity: Positive = 256  # lists that wait at most, beside those on their way; a full stream holds the ranking back
    lists_per_part: Positive = 16  # lists that are ranked together; a part on disk holds one such batch or several


class Weights(Section):
    bucket_mib: Positive = 256  # weights are gathered, published and pulled in buckets of at most this size
    every_steps: Positive = 8  # overlap: async: optimizer steps between two publications within an iteration
    on_update: Literal["finish", "span"] = "finish"  # responses begun before new weights: ended first, or go on in them
    beside: bool = True  # on CPUs: loaded beside those in use, in memory for both; else generation stops for it


class Checkpoints(Section):
    every_steps: Positive = 50  # steps from one checkpoint to the next; the end of an iteration always has one
    keep: Positive = 2  # newest checkpoints kept


class Sweep(Section):
    """What `python -m scripts.evaluate` asks of every model, on the same held-out prompts."""

    arms: SweptArms = "none"  # scripts.experiment does it too, of a grid's trained arms, or its untrained policies
    prompts: Positive | None = None  # the first of the held-out prompts (all of them when not given)
    samples: Positive = 20  # n: responses a prompt at each temperature, beside the greedy one
    temperatures: Annotated[tuple[Temperature, ...], Field(min_length=1)] = (1.0,)
    cutoffs: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 5, 10, 20, 50, 100)  # N; those above n left out
    acceptable: float = 1.0  # reward from which a response counts as correct
    list_size: Annotated[int, Field(ge=0)] = 8  # responses of a list that the models' scores rank; 0: no ranking
    reranker: Reward | None = None  # another reward model, which picks the best of N; `reward` says what it is worth


class Judges(Section):
    """Other people's evaluations that `python -m scripts.evaluate` runs where they are installed."""

    alpaca_eval: bool = False  # judge the greedy responses with alpaca_eval; its judge costs money
    annotator: str | None = None  # its judge, such as weighted_alpaca_eval_gpt4_turbo; its own choice when not given
    lm_eval_tasks: tuple[str, ...] = ()  # tasks of lm_eval, such as [gsm8k]
    timeout_s: Seconds = 7200.0  # one program on one model


class Evaluation(Section):
    samples: Positive = 4  # responses a held-out prompt
    temperature: Temperature = 1.0
    each_iteration: bool = True  # evaluate after each iteration, not only before and after the run
    every_steps: Positive | None = None  # within an iteration too, after so many optimizer steps
    best_metric: BestMetric | None = None  # the run leaves the policy with the largest value; the last when not given
    patience: Positive | None = None  # end the run when so many evaluations in a row did not raise best_metric
    bootstrap: Positive = 10000  # resamples over prompts behind the interval
    sweep: Sweep = Sweep()  # models side by side: `python -m scripts.evaluate`
    judges: Judges = Judges()


class Telemetry(Section):
    console: Literal["auto", "live", "plain", "off"] = "auto"  # auto: live in a terminal, else plain lines
    refresh_s: Seconds = 1.0  # live view
    plain_every_s: Seconds = 15.0  # plain lines
    wandb: bool = True  # offline when there is no key
    wandb_project: str = "larpo"
    report_samples: Positive = 3  # lists shown in the report, an iteration


class Timeouts(Section):
    placement_s: Seconds = 1200.0  # until there is room for a run's actors, or one sampler, new nodes included
    engine_start_s: Seconds = 600.0  # a sampler's engine once a node has it, and a vllm reward's
    trainer_start_s: Seconds = 600.0  # the Ray Train group, until its first request for lists
    weights_s: Seconds = 300.0  # publish, pull and update of one weight version
    reward_s: Seconds = 300.0  # ranking one list
    stream_idle_s: Seconds = 1800.0  # a side of the stream that makes no progress
    step_s: Seconds = 3600.0  # one optimizer step
    stalled_s: Seconds = 300.0  # nothing at all moves: an alarm names what stands still; the limits above end a run
    answer_s: Seconds = 120.0  # an actor's answer that costs it no work: its state, a message taken
    shutdown_s: Seconds = 15.0  # engines and reward models, when a run ends
    wandb_s: Seconds = 90.0  # its start, and what it uploads when a run ends
    storage_s: Seconds = 300.0  # with a URI in run.output_dir: one file to or from there, tried again until then
    stop_s: Seconds = 20.0  # after Ctrl-C or SIGTERM: what is left for the step in progress and a checkpoint of it


class Config(Section):
    """A whole run. Sections are as in a recipe's YAML."""

    description: str = ""  # one line, shown by --dry-run and in the model card
    cluster: Resources = {}  # Ray resources that the recipe is meant for; --dry-run takes this machine's without
    overlap: Literal["none", "stream", "async"] = "stream"  # phase by phase; training from the first list on; new
    # weights within an iteration too (docs/async.md)
    max_staleness: Annotated[int, Field(ge=0)] = 1  # async: publications that the policy may be ahead of its lists
    run: Run = Run()
    policy: Policy = Policy()
    prompts: Prompts = Prompts()
    preferences: Preferences = Preferences()
    sampling: Sampling = Sampling()
    reward: Reward = Reward()
    lists: Lists = Lists()
    objective: Objective = Objective()
    training: Training = Training()
    samplers: Samplers = Samplers()
    stream: Stream = Stream()
    weights: Weights = Weights()
    checkpoints: Checkpoints = Checkpoints()
    evaluation: Evaluation = Evaluation()
    telemetry: Telemetry = Telemetry()
    timeouts: Timeouts = Timeouts()
