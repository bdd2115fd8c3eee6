"""Models side by side on the same prompts: what their samples come to, with intervals over prompts.

A measure has one value a prompt; its mean is given with a percentile-bootstrap interval over prompts, and so is its
difference from the first model's, paired by prompt. Measures are named by how the responses came about and what is
measured: `greedy/reward`, `T=0.7/recall@5`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from larpo.answers import answer_reader
from larpo.config import Config, Sweep
from larpo.errors import DataError
from larpo.evaluation import paired_bootstrap
from larpo.recall import best_of, majority, recall
from larpo.types import Candidate, CandidateList, Prompt

Floats = NDArray[np.float64]
Interval = tuple[float, float, float]  # mean, low, high
GREEDY = 0.0  # the temperature of the greedy response


@dataclass(frozen=True)
class ModelAnswers:
    """One model's responses to P prompts: the greedy ones, and n at each temperature."""

    name: str
    prompts: tuple[Prompt, ...]
    greedy_P: tuple[Candidate, ...]
    sampled_PN: Mapping[float, tuple[tuple[Candidate, ...], ...]]  # by temperature

    @classmethod
    def of(cls, name: str, lists: Sequence[CandidateList], sweep: Sweep) -> ModelAnswers:
        """From durable lists, each a prompt's responses; DataError when one lacks responses or rewards."""
        groups = [[c for c in item.candidates if c.temperature == GREEDY] for item in lists]
        sampled = {
            t: tuple(tuple(c for c in item.candidates if c.temperature == t) for item in lists)
            for t in sweep.temperatures
        }
        counts = {len(g) for g in groups} | {len(g) - sweep.samples + 1 for part in sampled.values() for g in part}
        if counts != {1} or any(c.reward is None for item in lists for c in item.candidates):
            raise DataError(
                f"{name}: the recorded responses are not one greedy and {sweep.samples} samples at each of"
                f" {sweep.temperatures} with rewards; give another --out folder"
            )
        return cls(name, tuple(item.prompt for item in lists), tuple(g[0] for g in groups), sampled)

    def responses_to(self, number: int) -> list[Candidate]:
        """All responses to the prompt of that number, the greedy one first."""
        return [self.greedy_P[number], *(c for group in self.sampled_PN.values() for c in group[number])]


def cutoffs_of(sweep: Sweep) -> tuple[int, ...]:
    """The N of Recall@N that n samples allow, rising; n itself where all are above it."""
    return tuple(sorted({c for c in sweep.cutoffs if c <= sweep.samples})) or (sweep.samples,)


def measures(answers: ModelAnswers, config: Config, reranked: Mapping[str, float] | None = None) -> dict[str, Floats]:
    """Every measure of one model, a value a prompt, [P]; `reranked` are another reward model's rewards by candidate."""
    sweep = config.evaluation.sweep
    greedy = rewards_of([answers.greedy_P])[0]
    found = {
        "greedy/reward": greedy,
        "greedy/correct": (greedy >= sweep.acceptable).astype(float),
        "greedy/tokens": np.array([float(len(c.token_ids)) for c in answers.greedy_P]),
        "greedy/cut_off": np.array([float(c.finish_reason == "length") for c in answers.greedy_P]),
    }
    for temperature, group in answers.sampled_PN.items():
        of_group = _sampled_measures(answers.prompts, group, config)
        if reranked:
            picked_by = np.array([[reranked[c.id] for c in row] for row in group])
            correct_PN = rewards_of(group) >= sweep.acceptable
            of_group |= {f"reranked@{n}": best_of(picked_by, correct_PN, n) for n in cutoffs_of(sweep)}
        found |= {f"T={temperature:g}/{name}": values for name, values in of_group.items()}
    return found


def _sampled_measures(
    prompts: Sequence[Prompt], group: Sequence[Sequence[Candidate]], config: Config
) -> dict[str, Floats]:
    rewards_PN = rewards_of(group)
    correct_PN = rewards_PN >= config.evaluation.sweep.acceptable
    cutoffs = cutoffs_of(config.evaluation.sweep)
    found = {
        "reward": rewards_PN.mean(axis=1),
        "tokens": np.array([[len(c.token_ids) for c in row] for row in group]).mean(axis=1),
        "cut_off": np.array([[c.finish_reason == "length" for c in row] for row in group]).mean(axis=1),
    }
    found |= {f"recall@{n}": recall(correct_PN, n) for n in cutoffs}
    found |= {f"best_reward@{n}": best_of(rewards_PN, rewards_PN, n) for n in cutoffs}
    read = answer_reader(config.reward)
    if read is not None:
        votes = [[read(prompt, c.text) for c in row] for prompt, row in zip(prompts, group, strict=True)]
        found |= {f"majority@{n}": majority(votes, correct_PN, n) for n in cutoffs}
    return found


def rewards_of(group: Sequence[Sequence[Candidate]]) -> Floats:
    """Rewards of candidates that all have one, [P, n]."""
    return np.array([[c.reward for c in row] for row in group], dtype=np.float64)


def intervals(values: Mapping[str, Floats], *, resamples: int, seed: int) -> dict[str, Interval]:
    """Mean of each measure over prompts with its 95% bootstrap interval."""
    return {
        name: paired_bootstrap(np.zeros_like(of_prompts), of_prompts, resamples=resamples, seed=seed)
        for name, of_prompts in values.items()
    }


def differences(
    first: Mapping[str, Floats], other: Mapping[str, Floats], *, resamples: int, seed: int
) -> dict[str, Interval]:
    """`other - first` of each measure that both have, paired by prompt, with its 95% bootstrap interval."""
    return {
        name: paired_bootstrap(first[name], values, resamples=resamples, seed=seed)
        for name, values in other.items()
        if name in first
    }
