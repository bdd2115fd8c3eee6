"""The sections of a configuration that say what ranks: one comment a knob."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from larpo.knobs import Cores, Positive, Resources, Seconds, Section

RewardKind = Literal["verifier", "callable", "sequence_classification", "pairwise", "vllm", "http", "weighted"]
JOINT_KINDS = ("callable", "pairwise")  # a response's reward depends on those that it was seen with


class Classifier(Section):
    """A reward model with a head of one output (`kind: sequence_classification`)."""

    model: str | None = None  # Hugging Face hub id or local folder
    revision: str | None = None  # hub revision
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"  # of its weights
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU that the reward actor has, else its CPU
    batch_tokens: Positive = 16384  # tokens of one batch, padding included
    max_tokens: Positive = 4096  # a longer conversation gets failed_reward (reported), never a cut
    trust_remote_code: bool = False  # run Python code that the model folder carries


class Ranker(Section):
    """A model that compares two responses (`kind: pairwise`): PairRM, or a classifier of one output."""

    model: str | None = None  # Hugging Face hub id or local folder, such as llm-blender/PairRM-hf
    revision: str | None = None  # hub revision
    template: str = "{prompt}\n\nA: {first}\n\nB: {second}"  # what a classifier reads (PairRM has its own form)
    comparisons: Annotated[int, Field(ge=2)] | None = None  # others that each response meets; all when not given
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of its weights
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU that the reward actor has, else its CPU
    batch_tokens: Positive = 16384  # tokens of one batch, padding included
    max_tokens: Annotated[int, Field(ge=16)] = 2048  # of a comparison; longer prompts and responses are cut to fit
    trust_remote_code: bool = False  # run Python code that the model folder carries


class Pooling(Section):
    """A model with a head of one output that vLLM serves in the reward actor (`kind: vllm`)."""

    model: str | None = None  # Hugging Face hub id or local folder
    revision: str | None = None  # hub revision
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"  # of its weights
    tensor_parallel_size: Positive = 1  # GPUs its engine spans
    max_model_len: Positive = 4096  # a longer conversation gets failed_reward (reported), never a cut
    max_num_seqs: Positive = 128  # conversations scored at a time
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.85  # share of GPU memory its engine takes
    cpu_kv_cache_gib: Positive = 1  # KV cache of an engine on CPU
    cpu_cores: Cores = "auto"  # cores an engine on CPU binds to; auto takes those of the samplers' engines too
    enforce_eager: bool = False  # no CUDA graphs and no compilation: starts faster, runs slower on GPUs
    trust_remote_code: bool = False  # run Python code that the model folder carries


LONGEST_BACKOFF_S = 30.0  # between two attempts at a server


class Endpoint(Section):
    """A reward server (`kind: http`); a token for it comes from LARPO_REWARD_TOKEN, never from a recipe."""

    addresses: tuple[str, ...] = ()  # such as http://127.0.0.1:8100; taken by turns, a failing one is passed over
    timeout_s: Seconds = 60.0  # one request, whatever trickles in
    retries: Annotated[int, Field(ge=0, le=20)] = 3  # further attempts at a request
    backoff_s: Seconds = 0.5  # wait before the first of them, doubled for each further one, up to 30
    reply_mib: Positive = 16  # longest reply


class Reward(Section):
    kind: RewardKind = "verifier"  # what ranks
    name: str = "reasoning_gym"  # verifier: reasoning_gym, gsm8k, math, ifeval or module:function; callable: the latter
    timeout_s: Seconds = 5.0  # limit a response (verifier) or a list (callable); exceeding it costs its rewards
    failed_reward: float = 0.0  # reward of a response that could not be scored or got NaN (reported)
    cache: bool = True  # keep rewards in the run folder, so that the same response is not scored twice
    replicas: Positive = 1  # reward actors
    resources: Resources = {}  # Ray resources of a reward actor, such as {"GPU": 1}
    classifier: Classifier = Classifier()
    ranker: Ranker = Ranker()
    pooling: Pooling = Pooling()
    endpoint: Endpoint = Endpoint()
    parts: tuple[Reward, ...] = ()  # weighted: the rewards that are added up, each a section like this one
    weight: float = 1.0  # of a part
    word_weight: float = 0.0  # weighted: added for each word of a response; below 0, shorter is better

    def sections(self) -> tuple[Reward, ...]:
        """This section, or those that a weighted one adds up, and theirs."""
        return tuple(s for part in self.parts for s in part.sections()) if self.kind == "weighted" else (self,)

    @property
    def joint_kinds(self) -> tuple[str, ...]:
        """Kinds within it whose rewards compare within one list alone, and no models; a server's are not known here."""
        return tuple(dict.fromkeys(section.kind for section in self.sections() if section.kind in JOINT_KINDS))

    @property
    def source(self) -> str:
        """What gives the rewards, in a word."""
        return {
            "verifier": self.name,
            "callable": self.name,
            "sequence_classification": str(self.classifier.model),
            "pairwise": str(self.ranker.model),
            "vllm": str(self.pooling.model),
            "http": ", ".join(self.endpoint.addresses),
            "weighted": " + ".join(f"{part.weight:g} {part.kind} {part.source}" for part in self.parts),
        }[self.kind]
