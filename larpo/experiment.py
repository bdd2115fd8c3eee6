"""What the arms of an experiment came to: results as JSON, one file a run, and the table over seeds.

A number of an arm is the mean over its seeds. Its interval is a t-interval over seeds, and that of a difference
between arms is one over the seeds' differences: prompts, and often samples, are the same in all arms of a seed, so the
difference of a seed is paired. With three seeds such an interval is wide; it is the honest one, since a bootstrap over
prompts does not see what another seed changes.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from larpo.errors import DataError
from larpo.evaluation import HeldoutResult, prompt_rewards
from larpo.run_log import RunLog
from larpo.types import CandidateList

TABLE_HEADER = (
    "arm",
    "seeds",
    "before",
    "after",
    "gain [95%]",
    "against the first arm [95%]",
    "right",
    "gap",
    "overlap",
    "steps",
    "lists",
    "sampled tokens",
)

_SPENT = {"run/step": ".1f", "train/lists": ".1f", "sampler/tokens": ".0f"}  # the last columns

_OF_BASE = ("policy.model", "reward.kind", "reward.name", "reward.classifier.model", "prompts.source")  # its rewards


class KeptResult:
    """A dataclass that lies in a file of its own as JSON."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"  # type: ignore[call-overload]

    @classmethod
    def read(cls, file: Path) -> Self:
        """DataError when the file holds no such result."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{file} holds no {cls.__name__} ({error}); remove it to have it made again") from error


@dataclass(frozen=True)
class ArmResult(KeptResult):
    """One run of an arm: the record that ended it, held-out rewards by evaluation, and how hard its lists were.

    `knobs` are those that the arm and the command line set; `made` tells commit, machine and seconds. `spent` is what
    arms that are compared should have in common; older results lack it.
    """

    arm: str
    seed: int
    done: Mapping[str, float]
    evaluations: Mapping[str, tuple[float, ...]]  # label -> each held-out prompt's mean reward
    hardness: Mapping[str, float]
    knobs: Mapping[str, Any]
    made: Mapping[str, Any]
    spent: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_judged(self) -> bool:
        """Whether it has held-out rewards: those of a pairwise ranker say nothing, and such runs have none."""
        return "heldout/reward_after" in self.done

    @property
    def is_right_or_wrong(self) -> bool:
        """Whether a reward of 1 is a full one: a verifier's."""
        return self.knobs.get("reward.kind", "verifier") == "verifier"

    @property
    def before(self) -> float:
        return self.done["heldout/reward_before"]

    @property
    def after(self) -> float:
        return self.done["heldout/reward_after"]


def rounded_rewards(result: HeldoutResult) -> tuple[float, ...]:
    """Each held-out prompt's mean reward, to four digits: what a committed file needs."""
    return tuple(round(float(value), 4) for value in prompt_rewards(result))


def what_was_spent(log: RunLog, lists: Iterable[CandidateList]) -> dict[str, int]:
    """Optimizer steps, the lists that they trained on, and what was sampled for all lists: prompts, responses, tokens.

    By the names of the metrics of which they are totals. A skipped step and its lists do not count, a list counts once
    an epoch; lists that another run had sampled count as the run's own, and held-out samples do not. Steps and lists
    are left out where the log lacks a step, which a kill may have kept from being told.
    """
    lengths = [[len(c.token_ids) for c in item.candidates if c.origin == "sampled"] for item in lists]
    steps = [record for record in log.steps if not record.get("train/bad_steps")]
    trained = {"run/step": len(steps), "train/lists": int(sum(record["train/lists"] for record in steps))}
    whole = [record["step"] for record in log.steps] == list(range(1, len(log.steps) + 1))
    return (trained if whole else {}) | {
        "sampler/prompts": sum(1 for of_prompt in lengths if of_prompt),
        "sampler/samples": sum(len(of_prompt) for of_prompt in lengths),
        "sampler/tokens": sum(sum(of_prompt) for of_prompt in lengths),
    }


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and the ends of its 95% interval; the ends are None for a single seed."""

    mean: float
    low: float | None
    high: float | None


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and 95% t-interval of independent values (Student 1908).

    >>> t_interval([1.0])
    Interval(mean=1.0, low=None, high=None)
    """
    from scipy.stats import t

    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Interval(mean, None, None)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def by_arm(results: Sequence[ArmResult], arms: Sequence[str]) -> dict[str, dict[int, ArmResult]]:
    """arm -> seed -> result, arms in the order given; those without a result are left out."""
    found: dict[str, dict[int, ArmResult]] = {arm: {} for arm in arms}
    for result in sorted(results, key=lambda result: result.seed):
        if result.arm in found:
            found[result.arm][result.seed] = result
    return {arm: seeds for arm, seeds in found.items() if seeds}


def against(seeds: Mapping[int, ArmResult], others: Mapping[int, ArmResult]) -> Interval | None:
    """Difference in held-out reward after training over the seeds that both have; None without one."""
    shared = sorted(seed for seed in seeds.keys() & others.keys() if seeds[seed].is_judged and others[seed].is_judged)
    return t_interval([seeds[seed].after - others[seed].after for seed in shared]) if shared else None


def table(
    results: Sequence[ArmResult], arms: Sequence[str], first: Mapping[str, str] | None = None
) -> list[tuple[str, ...]]:
    """One row an arm, as TABLE_HEADER. The gain is against the base policy; "right" are samples of full reward.

    Steps, the lists that they trained on and sampled tokens are means a run. `first` names the arm that each is
    compared with: the first of all where it is not given.
    """
    found = by_arm(results, arms)
    first = first or dict.fromkeys(arms, next(iter(found), ""))
    rows: list[tuple[str, ...]] = []
    for arm, seeds in found.items():
        runs = list(seeds.values())
        judged = [run for run in runs if run.is_judged]
        right = [run.done["heldout/fully_met_samples_after"] for run in judged if run.is_right_or_wrong]
        difference = None if arm == first[arm] else against(seeds, found.get(first[arm], {}))
        rows.append(
            (
                arm,
                ", ".join(str(seed) for seed in seeds),
                _mean([run.before for run in judged]),
                _mean([run.after for run in judged]),
                _with_ends(t_interval([run.after - run.before for run in judged])) if judged else "-",
                _with_ends(difference) if difference else "",
                f"{statistics.fmean(right):.1%}" if right else "-",
                _mean([run.hardness["lists/reward_gap"] for run in runs if "lists/reward_gap" in run.hardness]),
                _mean([run.hardness["lists/overlap"] for run in runs if "lists/overlap" in run.hardness]),
                *(_mean_spent(runs, name, form) for name, form in _SPENT.items()),
            )
        )
    return rows


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f}" if values else "-"


def _mean_spent(runs: Sequence[ArmResult], name: str, form: str) -> str:
    """A dash where not every run of the arm tells it."""
    if any(name not in run.spent for run in runs):
        return "-"
    return format(statistics.fmean(run.spent[name] for run in runs), form)


def _with_ends(interval: Interval) -> str:
    if interval.low is None:
        return f"{interval.mean:+.3f}"
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the header first, as Markdown for a page of results."""
    header, *rest = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rest))


def arm_plot(results: Sequence[ArmResult], arms: Sequence[str], title: str) -> str:
    """Held-out reward after training by arm, as SVG: a mark a seed, the mean, and the base policy's mean as a line.

    No line where arms have different policies or rewards, which no one number is the base of. Arms without held-out
    rewards are left out; DataError when all are.
    """
    from larpo.plots import category_plot

    found = by_arm([result for result in results if result.is_judged], arms)
    if not found:
        raise DataError(f"{title}: no arm has held-out rewards, so that there is nothing to plot")
    groups = {arm: [run.after for run in seeds.values()] for arm, seeds in found.items()}
    runs = [run for seeds in found.values() for run in seeds.values()]
    alike = len({str([run.knobs.get(knob) for knob in _OF_BASE]) for run in runs}) == 1
    bound = ("base policy", statistics.fmean(run.before for run in runs)) if alike else None
    return category_plot(groups, "held-out reward (mean)", bound, title)
