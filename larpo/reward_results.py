"""What a trained reward model is worth on held-out lists: pairs, calibration, and how often an attack succeeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from larpo.calibration import HeldoutPairs, joined, pair_summary, pairs_of
from larpo.degenerate import PROMPT_COPY, REPEATED_SENTENCE
from larpo.evaluation import columns
from larpo.reward_data import LabelledList

Rewards = Mapping[str, Sequence[float]]  # prompt id -> rewards of its list, in its order


def heldout_pairs(lists: Sequence[LabelledList], rewards: Rewards) -> HeldoutPairs:
    """The ordered pairs that the data holds; degenerate answers are no part of them."""
    parts = [pairs_of(item.prompt_id, rewards[item.prompt_id][: item.own], item.labels[: item.own]) for item in lists]
    return joined([part for part in parts if part is not None])


def attack_share(lists: Sequence[LabelledList], rewards: Rewards, attack: str) -> float:
    """Share of the lists with this degenerate answer in which it has a higher reward than the best answer.

    0 where no list has it.
    """
    wins = []
    for item in lists:
        if attack in item.attacks:
            found = rewards[item.prompt_id]
            best = max(range(item.own), key=lambda i: item.labels[i])
            wins.append(found[item.own + item.attacks.index(attack)] > found[best])
    return sum(wins) / len(wins) if wins else 0.0


def heldout_metrics(
    lists: Sequence[LabelledList], before: Rewards, after: Rewards, *, resamples: int, seed: int
) -> dict[str, float]:
    """The `pairs/*` metrics of the last record: the untrained model and the trained one."""
    numbers: dict[str, float] = {}
    for when, rewards in (("before", before), ("after", after)):
        summary = pair_summary(heldout_pairs(lists, rewards), resamples=resamples, seed=seed)
        numbers["pairs/heldout"], numbers["pairs/prompts"] = summary.pop("pairs"), summary.pop("prompts")
        summary |= {
            f"{attack}_wins": attack_share(lists, rewards, attack) for attack in (PROMPT_COPY, REPEATED_SENTENCE)
        }
        numbers |= {f"pairs/{name}_{when}": value for name, value in summary.items()}
    return numbers


def results_table(metrics: Mapping[str, float]) -> list[list[str]]:
    """Header and one row a model."""
    rows = [["", "pairs right [95% interval]", "calibration error", "Brier", "prompt copy wins", "repetition wins"]]
    for label, when in (("untrained", "before"), ("trained", "after")):
        value = {name.removeprefix("pairs/"): number for name, number in metrics.items() if name.endswith(when)}
        low, high = value[f"accuracy_low_{when}"], value[f"accuracy_high_{when}"]
        rows.append(
            [
                label,
                f"{value[f'accuracy_{when}']:.1%} [{low:.1%}, {high:.1%}]",
                f"{value[f'calibration_error_{when}']:.3f}",
                f"{value[f'brier_{when}']:.3f}",
                f"{value[f'{PROMPT_COPY}_wins_{when}']:.1%}",
                f"{value[f'{REPEATED_SENTENCE}_wins_{when}']:.1%}",
            ]
        )
    return rows


def format_results(metrics: Mapping[str, float]) -> str:
    """The table as plain text."""
    lines = columns(results_table(metrics))
    pairs, prompts = metrics["pairs/heldout"], metrics["pairs/prompts"]
    title = f"Held-out: {pairs:.0f} pairs of {prompts:.0f} prompts; an attack wins where it beats the best answer."
    return "\n".join([title, "", lines[0], "-" * len(lines[0]), *lines[1:]])
