"""How far the policy may have moved between sampling a list and training on it, when both go on at once.

With `overlap: async` the trainer publishes its weights every so many steps of an iteration, and samplers take them
while they sample. Time is counted in publications: the step number n of an iteration, from 0, trains the policy that
has been published n // every_steps times, and a list is as stale as the publications between that and the one whose
weights its prompt was given to. AReaL (Fu 2025, section 5.1) bounds the same by holding back requests; there a batch is
what comes first, and the bound holds on the whole. Here it holds for every list, however late its responses come:

    a prompt is asked for    only if it and all lists before it can still be trained in time
    a step is formed         of the oldest lists that are there, and only if those that are not can be in time after it

Both are one condition, that of earliest deadlines first: at every deadline there is room, in the steps until then, for
the lists that have it. It is kept by all that may happen, so that no list ever waits for a step that cannot come.

The end of an iteration is one publication more, with which the next begins: prompts of the next that are asked for
while the trainer is not there yet have negative publications.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from larpo.config import Config


@dataclass(frozen=True)
class Staleness:
    """The bound: steps between publications, lists that a step takes, and the most publications to be behind."""

    every_steps: int
    lists_per_step: int
    most: int

    def publication(self, step: int) -> int:
        """How often the weights that step number `step` trains have been published within the iteration.

        >>> bound = Staleness(every_steps=2, lists_per_step=4, most=1)
        >>> [bound.publication(step) for step in range(5)]
        [0, 0, 1, 1, 2]
        """
        return step // self.every_steps

    def steps(self, trained: int) -> int:
        """Steps of the iteration that have trained so many lists: each is full but for the last."""
        return -(-trained // self.lists_per_step)

    def room(self, step: int, publication: int) -> int:
        """Lists that the steps from number `step` on take before those of that publication would be too stale.

        >>> bound = Staleness(every_steps=2, lists_per_step=4, most=1)
        >>> [bound.room(step, 0) for step in range(5)]
        [16, 12, 8, 4, 0]
        """
        too_late = (publication + self.most + 1) * self.every_steps
        return self.lists_per_step * max(0, too_late - step)

    def fits(self, step: int, waiting: Mapping[int, int]) -> bool:
        """Whether the steps from `step` on can train in time what waits: publication -> lists of it.

        >>> bound = Staleness(every_steps=2, lists_per_step=4, most=1)
        >>> bound.fits(0, {0: 16}), bound.fits(0, {0: 17}), bound.fits(3, {0: 4, 1: 8}), bound.fits(3, {0: 5, 1: 7})
        (True, False, True, False)
        """
        count = 0
        for publication in sorted(waiting):
            count += waiting[publication]
            if count > self.room(step, publication):
                return False
        return True


def staleness(config: Config) -> Staleness | None:
    """The bound of a run; None where nothing is published within an iteration."""
    if config.overlap != "async":
        return None
    return Staleness(config.weights.every_steps, config.training.lists_per_step, config.max_staleness)
