"""Which of the policies that a run evaluates is the best, and when evaluations have stopped getting better.

All functions take values by `Point`: one held-out number (the larger, the better) a policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Point:
    """A policy by its place in a run, in the order of training.

    The policy after `iteration` whole iterations (0: the base policy) and, where `step` is not 0, after that optimizer
    step of the next one; steps count through the whole run.
    """

    iteration: int
    step: int = 0

    @property
    def label(self) -> str:
        if self.step:
            return f"step {self.step}"
        return f"after iteration {self.iteration}" if self.iteration else "base policy"


BASE = Point(0)


@dataclass(frozen=True)
class Ending:
    """How a run ended: the policy that it leaves, the last that it trained, and why it stopped early, if it did."""

    taken: Point
    last: Point
    stopped: str | None = None


def best_point(values: Mapping[Point, float]) -> Point | None:
    """The trained policy with the largest value, the earliest of equal ones; None before any was evaluated.

    >>> best_point({BASE: 0.9, Point(0, 5): 0.4, Point(1): 0.6, Point(2): 0.6})
    Point(iteration=1, step=0)
    """
    return max(sorted(point for point in values if point != BASE), key=lambda point: values[point], default=None)


def without_gain(values: Mapping[Point, float]) -> int:
    """How many evaluations in a row, up to the newest, did not exceed the best before them, the base policy's too.

    >>> without_gain({BASE: 0.5, Point(0, 5): 0.7, Point(1): 0.7, Point(1, 10): 0.6})
    2
    """
    top, count = -math.inf, 0
    for point in sorted(values):
        top, count = (values[point], 0) if values[point] > top else (top, count + 1)
    return count


def stop_reason(values: Mapping[Point, float], metric: str, patience: int | None) -> str | None:
    """Why a run should end now; None when it should go on."""
    if patience is None or without_gain(values) < patience:
        return None
    best = max(sorted(values), key=lambda point: values[point])
    return (
        f"{without_gain(values)} evaluations in a row did not exceed heldout/{metric} {values[best]:.4f} of"
        f" {best.label} (evaluation.patience = {patience})"
    )
