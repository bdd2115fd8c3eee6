"""Constraints between the knobs of what ranks; see `larpo.config_checks`."""

from __future__ import annotations

import re

from larpo.config import Config, Prompts
from larpo.errors import ConfigError
from larpo.prompt_sets import BUNDLED_SETS, HELDOUT_ONLY
from larpo.reward_config import LONGEST_BACKOFF_S, Ranker, Reward
from larpo.user_function import is_function_name
from larpo.verifiers import check_verifier_name


def reward_problems(config: Config) -> list[str]:
    reranker, problems = config.evaluation.sweep.reranker, []
    for where, reward in (("reward", config.reward), ("evaluation.sweep.reranker", reranker)):
        if reward is not None:
            problems += [*_reward_section(reward, config.prompts, where), *_waiting(reward, config, where)]
            if reward.weight != 1:
                problems.append(f"{where}.weight = {reward.weight:g}: weighs a part of a weighted reward; leave it out")
    return [*problems, *_reward_gpus(config.reward)]


def _waiting(reward: Reward, config: Config, where: str) -> list[str]:
    """Servers that may take longer for a list than it is waited for."""
    limit, problems = config.timeouts.reward_s, []
    for endpoint in (section.endpoint for section in reward.sections() if section.kind == "http"):
        pauses = [min(endpoint.backoff_s * 2**number, LONGEST_BACKOFF_S) for number in range(endpoint.retries)]
        attempts = (endpoint.retries + 1) * endpoint.timeout_s + sum(pauses)
        if attempts > limit:
            problems.append(
                f"timeouts.reward_s = {limit:g}: {where}.endpoint may take {attempts:g} s for one list, with its "
                "timeout_s, retries and backoff_s; raise the one, or lower those"
            )
    return problems


def _reward_gpus(reward: Reward) -> list[str]:
    """The GPUs of the reward actor, which all engines within it share."""
    gpus = reward.resources.get("GPU", 0)
    spans = [section.pooling.tensor_parallel_size for section in reward.sections() if section.kind == "vllm"]
    if max(spans, default=1) == 1 or gpus >= max(spans):
        return []
    return [
        f"reward.pooling.tensor_parallel_size = {max(spans)}: must be at most the GPUs of a reward actor, and "
        f"reward.resources asks for {gpus:g}; set reward.resources={{GPU: {max(spans)}}}"
    ]


def _reward_section(reward: Reward, prompts: Prompts, where: str) -> list[str]:
    """Problems of a reward section, or of a part of one; `where` is its place in the recipe."""
    if reward.kind == "weighted":
        if not reward.parts:
            return [f"{where}.parts = []: weighted needs one part or more, such as {{kind: verifier, weight: 0.5}}"]
        named = [(part, f"{where}.parts[{number}]") for number, part in enumerate(reward.parts)]
        return [p for part, name in named for p in (*_reward_section(part, prompts, name), *_of_whole(part, name))]
    if reward.parts or reward.word_weight:
        return [f"{where}.parts and word_weight: only kind = 'weighted' adds up; set {where}.kind=weighted"]
    if reward.kind == "verifier":
        return _verifier(reward, prompts, where)
    if reward.kind == "callable":
        if is_function_name(reward.name):
            return []
        return [f"{where}.name = {reward.name!r}: callable needs your own function; set {where}.name=module:function"]
    if reward.kind == "sequence_classification":
        if reward.classifier.model is not None:
            return []
        return [f"{where}.classifier.model is not given: sequence_classification needs a hub id or a folder; set it"]
    if reward.kind == "vllm":
        if reward.pooling.model is not None:
            return []
        return [f"{where}.pooling.model is not given: vllm needs a hub id or a folder; set it"]
    if reward.kind == "pairwise":
        return _ranker(reward.ranker, where)
    problems = [
        f"{where}.endpoint.addresses has {address!r}: must begin with http:// or https://, and hold no user or "
        "password (a token goes into LARPO_REWARD_TOKEN)"
        for address in reward.endpoint.addresses
        if not re.fullmatch(r"https?://[^\s@]+", address)
    ]
    if not reward.endpoint.addresses:
        problems.append(f"{where}.endpoint.addresses = []: http needs one or more, such as http://127.0.0.1:8100")
    return problems


def _of_whole(part: Reward, where: str) -> list[str]:
    """Knobs that the actor has, which holds all parts."""
    unset = Reward()
    given = [name for name in ("resources", "replicas", "cache") if getattr(part, name) != getattr(unset, name)]
    return [f"{where}.{name}: all parts are in one reward actor; set reward.{name}" for name in given]


def _ranker(ranker: Ranker, where: str) -> list[str]:
    problems = []
    if ranker.model is None:
        problems.append(f"{where}.ranker.model is not given: pairwise needs a hub id or a folder; set it")
    lacking = [place for place in ("{prompt}", "{first}", "{second}") if place not in ranker.template]
    if lacking:
        problems.append(f"{where}.ranker.template = {ranker.template!r}: lacks {', '.join(lacking)}; add them")
    return problems


def _verifier(reward: Reward, prompts: Prompts, where: str) -> list[str]:
    name = reward.name
    try:
        check_verifier_name(name)
    except ConfigError as error:
        return [f"{where}.name = {name!r}: {error}"]
    if name == "reasoning_gym" and prompts.source != "reasoning_gym":
        return [
            f"{where}.name = 'reasoning_gym': scores generated tasks only, but prompts.source is {prompts.source!r}; "
            f"set prompts.source=reasoning_gym, or another {where}.name"
        ]
    has_answers = prompts.source in set(BUNDLED_SETS) - set(HELDOUT_ONLY) or prompts.columns.answer_key is not None
    needed = {"ifeval": "constraints", "gsm8k": "answers", "math": "answers"}.get(name)
    if needed is not None and not has_answers:
        return [
            f"{where}.name = {name!r}: needs {needed}, but prompts.source is {prompts.source!r} without "
            "prompts.columns.answer_key; name the column that holds them, or another source"
        ]
    if name == "ifeval" and prompts.source == "reasoning_gym":
        return [
            f"{where}.name = 'ifeval': needs constraints, which generated tasks have not; set prompts.source=ifeval"
        ]
    if needed == "answers" and prompts.source == "ifeval":
        return [
            f"{where}.name = {name!r}: needs answers, which prompts.source = 'ifeval' has not; set {where}.name=ifeval"
        ]
    return []
