"""The learning rate as a function of the share of the run."""

import math

import pytest

from larpo.config import Optimizer
from larpo.schedule import learning_rate


@pytest.mark.parametrize(
    ("schedule", "warmup", "share", "expected"),
    [
        ("constant", 0.0, 0.0, 1.0),
        ("constant", 0.0, 1.0, 1.0),
        ("constant", 0.2, 0.05, 0.05 / 0.2),
        ("constant", 0.2, 0.2, 1.0),
        ("constant", 0.2, 0.9, 1.0),
        ("linear", 0.0, 0.25, 0.75),
        ("linear", 0.2, 0.1, 0.5),
        ("linear", 0.2, 0.2, 1.0),
        ("linear", 0.2, 0.6, (1 - 0.6) / (1 - 0.2)),
        ("linear", 0.2, 1.0, 0.0),
        ("cosine", 0.2, 0.2, 1.0),
        ("cosine", 0.2, 0.6, 0.5),
        ("cosine", 0.0, 0.25, (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 0.0, 1.0, 0.0),
        ("linear", 1.0, 0.5, 0.5),
        ("linear", 1.0, 1.0, 1.0),
        ("cosine", 0.0, 1.5, 0.0),  # more lists than were planned, by replay
    ],
)
def test_the_rate_is_a_share_of_the_peak(schedule, warmup, share, expected):
    optimizer = Optimizer(learning_rate=2e-5, warmup=warmup, schedule=schedule)
    assert learning_rate(optimizer, share) == pytest.approx(2e-5 * expected, abs=1e-18)
