"""The learning rate over a run, as a pure function of the share of planned lists behind it."""

from __future__ import annotations

import math

from larpo.config import Optimizer


def learning_rate(optimizer: Optimizer, share: float) -> float:
    """Linear warm-up over the first `warmup` share of the planned lists, then the schedule over the rest.

    Args:
        share: planned lists behind the step, its own included, over all planned lists (M x epochs x T), in [0, 1].
    """
    peak = optimizer.learning_rate
    if share < optimizer.warmup:
        return peak * share / optimizer.warmup
    if optimizer.schedule == "constant":
        return peak
    done = (share - optimizer.warmup) / max(1e-12, 1 - optimizer.warmup)
    remaining = 1 - min(1.0, done)
    return peak * remaining if optimizer.schedule == "linear" else peak * (1 - math.cos(math.pi * remaining)) / 2
