"""Every metric of a run, declared once.

A gauge is a value at the moment of its record. A counter is an amount since the previous record of that name,
so that adding up the records gives the total. A metric with labels has one value for each value of them: its record
carries a field of each label's name. `actors.telemetry` refuses a name that is not here; the report and the Ray
dashboard take units and descriptions from here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from larpo.errors import LarpoError

Kind = Literal["gauge", "counter"]


@dataclass(frozen=True)
class Metric:
    """A metric's name (group/noun), unit, meaning, and what tells its values at one moment apart."""

    name: str
    unit: str
    description: str
    kind: Kind = "gauge"
    labels: tuple[str, ...] = ()


def _gauges(group: str, *rows: tuple[str, str, str], labels: tuple[str, ...] = ()) -> tuple[Metric, ...]:
    return tuple(Metric(f"{group}/{noun}", unit, text, "gauge", labels) for noun, unit, text in rows)


def _counters(group: str, *rows: tuple[str, str, str], labels: tuple[str, ...] = ()) -> tuple[Metric, ...]:
    return tuple(Metric(f"{group}/{noun}", unit, text, "counter", labels) for noun, unit, text in rows)


# Label -> what its values are. Those of `kind` are few and named here; those of `sampler` are as many as there are
# samplers, so that what is told of each every ten seconds goes to the file and to Ray's metrics, not to wandb.
LABELS: Mapping[str, str] = {"sampler": "name of the sampler", "kind": "what failed: `larpo.events.FAILURE_KINDS`"}
BY_SAMPLER = ("sampler",)


_TRAIN = _gauges(
    "train",
    ("loss", "nats", "objective, mean over the step's lists"),
    ("grad_norm", "norm", "global gradient norm before clipping"),
    ("learning_rate", "rate", "learning rate of the step"),
    ("step_seconds", "seconds", "one optimizer step, waiting excluded"),
    ("wait_seconds", "seconds", "waiting for lists before the step"),
    ("tokens_per_second", "tokens/s", "tokens in packed rows over step seconds"),
    ("kl_to_reference", "nats/token", "estimate of KL(policy || reference), responses weighted by policy / sampler"),
    ("entropy", "nats/token", "entropy of the policy at response tokens, mean"),
    ("score_gap", "nats", "policy score of winners minus losers, mean over lists"),
    ("log_prob_gap", "nats/token", "mean |sampler - trainer| log-probability a token, under equal weights"),
    ("policy_gap", "nats/token", "mean |sampler - trainer| log-probability a token, after the trainer moved on"),
    ("staleness_mean", "publications", "of weights between asking for a fresh list's prompt and training on it, mean"),
    (
        "staleness_max",
        "publications",
        "of weights between asking for a fresh list's prompt and training on it, largest",
    ),
    ("ranking_accuracy", "share", "ordered pairs in which the policy's score agrees with the reward"),
    ("memory_gib", "GiB", "peak memory of a trainer rank"),
    ("threads", "threads", "torch threads of rank 0 at the step's end; on CPUs they follow the idle cores"),
)
_TRAIN_COUNTS = _counters(
    "train",
    ("lists", "lists", "lists in the step"),
    ("tokens", "tokens", "tokens in the step's packed rows"),
    ("rows", "rows", "packed rows in the step"),
    ("bad_steps", "steps", "steps skipped because loss or gradient was not finite"),
)
_LISTS = _gauges(
    "lists",
    ("reward_mean", "reward", "mean reward of the fresh responses"),
    ("reward_best", "reward", "best reward of a prompt's fresh responses, mean over prompts"),
    ("reward_spread", "reward", "standard deviation of the rewards of a prompt's fresh responses, mean over prompts"),
    ("fully_met", "share", "prompts of which some fresh response has reward 1"),
    ("reward_gap", "reward", "reward of the winners minus the losers, mean over lists"),
    ("overlap", "share", "3-gram overlap of winners and losers, mean over lists"),
    ("response_tokens", "tokens", "length of a fresh response, mean"),
    ("cut_off_share", "share", "fresh responses cut at the length limit"),
    ("remembered_share", "share", "candidates that come from earlier iterations"),
    ("size", "candidates", "candidates in a list after selection, mean"),
)
_LIST_COUNTS = _counters(
    "lists",
    ("dropped_equal_rewards", "lists", "lists dropped because all rewards are equal"),
    ("dropped_too_few", "lists", "lists dropped because fewer than two distinct candidates remain"),
    ("duplicates", "candidates", "exact or near duplicates removed"),
    ("replayed", "lists", "remembered lists of prompts that the iteration did not draw"),
)
_FLOW = (
    *_counters(
        "prompts",
        ("too_long", "prompts", "prompts left out because they exceed max_prompt_tokens"),
        ("ranked", "prompts", "prompts whose responses are ranked"),
    ),
    *_gauges("prompts", ("train", "prompts", "training prompts"), ("heldout", "prompts", "held-out prompts")),
    *_counters(
        "reward",
        ("failures", "responses", "verifiers that raised, hung or gave NaN"),
        ("cache_hits", "responses", "responses whose reward the run had kept from before"),
    ),
    *_gauges("reward", ("lists_per_second", "lists/s", "lists ranked over ranking seconds")),
    *_gauges("stream", ("lists", "lists", "lists that wait in the stream")),
    *_counters(
        "stream",
        ("producer_wait_seconds", "seconds", "ranking held back by a full stream"),
        ("consumer_wait_seconds", "seconds", "trainer held back by an empty stream"),
    ),
)
_SAMPLER_NOUNS = (
    ("prompts", "prompts", "prompts sampled"),
    ("samples", "responses", "responses sampled"),
    ("tokens", "tokens", "response tokens sampled"),
)
_RATES = tuple((f"{noun}_per_second", f"{unit}/s", f"{text}, of late") for noun, unit, text in _SAMPLER_NOUNS)
_SAMPLER = (
    *_counters("sampler", *_SAMPLER_NOUNS, labels=BY_SAMPLER),
    *_gauges("sampler", *_RATES, labels=BY_SAMPLER),
    *_gauges(
        "sampler",
        ("in_flight", "prompts", "prompts that the sampler has, those that wait in it among them"),
        ("weight_version", "version", "weight version that the sampler holds"),
        ("busy", "share", "of the last minute in which the sampler worked"),
        ("places_filled", "share", "of the engine's places for responses, `samplers.max_num_seqs`, while it worked"),
        ("first_token_seconds", "seconds", "from the sampler's first prompt to its engine's first token; 0 before it"),
        labels=BY_SAMPLER,
    ),
    *_gauges("pool", *((noun, unit, f"{text}; all samplers") for noun, unit, text in _RATES)),
    *_gauges(
        "pool",
        ("samplers", "samplers", "samplers that are ready for prompts"),
        ("wanted", "samplers", "samplers that the pool is to have"),
        ("pending", "samplers", "samplers on their way: no node has them yet, or their engines start"),
    ),
    *_counters(
        "pool",
        ("restarts", "restarts", "dead samplers replaced"),
        ("requeued", "prompts", "prompts that went back to the queue when their lease or sampler ended"),
        ("handed_back", "prompts", "prompts that samplers which left the pool handed back"),
    ),
)
_WEIGHTS = (
    *_gauges(
        "weights",
        ("version", "version", "newest weight version that a sampler holds"),
        ("publish_seconds", "seconds", "gathering and publishing one version"),
    ),
    *_gauges(
        "weights",
        ("gib", "GiB", "what a sampler pulled of one version: fixed buckets come once"),
        ("pull_seconds", "seconds", "a sampler's pull of one version"),
        ("load_seconds", "seconds", "a sampler loading one version beside that in use"),
        ("pause_seconds", "seconds", "generation paused while weights are replaced"),
        labels=BY_SAMPLER,
    ),
)
_BUSY = _gauges(  # `flow`: of the last minute; `iteration`: of the iteration
    "busy",
    ("sampler", "share", "of the time in which samplers work, mean over samplers"),
    ("reward", "share", "of the time in which reward actors work, mean over them"),
    ("trainer", "share", "of the time in which trainer ranks work, mean over ranks"),
    ("overlap", "share", "of the time in which some sampler or reward actor and some trainer rank work at once"),
    (
        "overlap_efficiency",
        "share",
        "of an iteration's wall time in which the busier side works, sampling and ranking or training: 1 when the other"
        " is wholly hidden behind it, about 0.5 when they take turns",
    ),
)
_RUN = (
    *_gauges(
        "run",
        ("seconds", "seconds", "time since the run started, earlier sessions included"),
        ("iteration", "iteration", "iteration that is worked on, from 1"),
        ("step", "steps", "optimizer steps behind the run"),
        ("done", "share", "of the planned work behind the run"),
    ),
    *_counters("run", ("alarms", "alarms", "alarms told")),
    *_counters("run", ("failures", "failures", "failures that the run went on from or ended by"), labels=("kind",)),
)
_HELDOUT_NOUNS = (
    ("reward", "reward", "mean over held-out prompts of the mean reward of n samples"),
    ("greedy", "reward", "mean reward of the greedy response"),
    ("fully_met", "share", "prompts whose greedy response has reward 1"),
    ("fully_met_any", "share", "prompts of which at least one of n samples has reward 1"),
    ("fully_met_samples", "share", "samples that have reward 1"),
    ("response_tokens", "tokens", "length of a sampled response, mean"),
    ("cut_off_share", "share", "sampled responses cut at the length limit"),
)
_HELDOUT = (
    *_gauges("heldout", *_HELDOUT_NOUNS),
    *_gauges("heldout", ("reward_stderr", "reward", "standard error of the reward over prompts")),
    *_gauges("heldout", *((f"{noun}_before", unit, f"{text}; base") for noun, unit, text in _HELDOUT_NOUNS)),
    *_gauges("heldout", *((f"{noun}_after", unit, f"{text}; aligned") for noun, unit, text in _HELDOUT_NOUNS)),
    *_gauges(
        "heldout",
        ("reward_diff", "reward", "aligned minus base policy, paired over prompts"),
        ("reward_diff_low", "reward", "lower end of the difference's 95% paired-bootstrap interval"),
        ("reward_diff_high", "reward", "upper end of the difference's 95% paired-bootstrap interval"),
        ("prompts", "prompts", "held-out prompts evaluated"),
        ("samples", "samples", "sampled responses a held-out prompt"),
    ),
)

_PAIR_NOUNS = (
    ("accuracy", "share", "held-out pairs whose better answer has the higher reward"),
    ("accuracy_low", "share", "lower end of its 95% bootstrap interval over prompts"),
    ("accuracy_high", "share", "upper end of its 95% bootstrap interval over prompts"),
    ("calibration_error", "share", "expected calibration error of sigmoid(r_i - r_j) on held-out pairs"),
    ("brier", "share", "Brier score of sigmoid(r_i - r_j) on held-out pairs"),
    ("prompt_copy_wins", "share", "held-out lists in which a copy of the prompt beats the best answer"),
    ("repeated_sentence_wins", "share", "held-out lists in which one sentence repeated beats the best answer"),
)
_PAIRS = _gauges(
    "pairs",
    ("train_accuracy", "share", "a reward model's step: ordered pairs whose better answer has the higher reward"),
    ("train_reward_gap", "reward", "a reward model's step: reward of the better minus the worse answer, mean"),
    ("heldout", "pairs", "held-out pairs measured"),
    ("prompts", "prompts", "held-out prompts of those pairs"),
    *((f"{noun}_before", unit, f"{text}; untrained") for noun, unit, text in _PAIR_NOUNS),
    *((f"{noun}_after", unit, f"{text}; trained") for noun, unit, text in _PAIR_NOUNS),
)

_GIVEN_NOUNS = (
    ("loss", "nats", "objective on held-out lists, mean over lists (over response tokens for sft)"),
    ("score_accuracy", "share", "ordered pairs of a held-out list on which the policy's score agrees, mean over lists"),
    ("log_prob_accuracy", "share", "the same by the policy's log-probability"),
)
_GIVEN = (  # runs whose answers come from a dataset
    *_gauges("given", *_GIVEN_NOUNS),
    *_gauges("given", *((f"{noun}_before", unit, f"{text}; base") for noun, unit, text in _GIVEN_NOUNS)),
    *_gauges("given", *((f"{noun}_after", unit, f"{text}; trained") for noun, unit, text in _GIVEN_NOUNS)),
    *_gauges("given", *((f"{noun}_diff", unit, f"{text}; trained minus base") for noun, unit, text in _GIVEN_NOUNS)),
    *_gauges("given", *((f"{noun}_diff_low", unit, "lower end of its 95% interval") for noun, unit, _ in _GIVEN_NOUNS)),
    *_gauges(
        "given", *((f"{noun}_diff_high", unit, "upper end of its 95% interval") for noun, unit, _ in _GIVEN_NOUNS)
    ),
    *_gauges("given", ("lists", "lists", "held-out lists evaluated")),
)

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        *_TRAIN,
        *_TRAIN_COUNTS,
        *_LISTS,
        *_LIST_COUNTS,
        *_FLOW,
        *_SAMPLER,
        *_WEIGHTS,
        *_BUSY,
        *_RUN,
        *_HELDOUT,
        *_GIVEN,
        *_PAIRS,
    )
}


def check_names(mapping: Iterable[str]) -> None:
    """Raise on the first name that is not declared, naming the nearest one that is."""
    for name in mapping:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)[0]
            raise LarpoError(f"metric {name!r} is not declared (nearest: {near!r}); declare it in larpo/metrics.py")


def check_labels(names: Iterable[str], fields: Mapping[str, object]) -> None:
    """Raise on the first declared metric whose record lacks a field of one of its labels."""
    for name in names:
        missing = [label for label in METRICS[name].labels if label not in fields]
        if missing:
            raise LarpoError(f"metric {name!r} is told by {missing[0]}: its record lacks the field {missing[0]!r}")
