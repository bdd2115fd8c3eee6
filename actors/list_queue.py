"""The lists that wait for the trainer, in order, and the work that is formed from them: the trainer's lineage.

Nothing here waits: `ListStream` asks when work can be formed. What has been consumed is in the journal, and the lists
are on disk, so that `restore` rolls the queue back to any journal. What reads them (`open`, `restore`, and `form` where
an epoch or iteration begins) takes milliseconds a list: call it in a thread, with whatever else changes the queue kept
out.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from actors.work import IterationEnd, Journal, RunEnd, StepWork, Work, read_references
from larpo.config import Config
from larpo.lists import training_list
from larpo.memory import with_references
from larpo.objective_table import get_spec
from larpo.records import list_parts, read_lists
from larpo.staleness import staleness
from larpo.types import CandidateList, stable_hash


class ListQueue:
    """The iteration and epoch that the trainer is in, and the trainable lists not yet in a step."""

    def __init__(self, config: Config, lists_folder: Path) -> None:
        self._config, self._folder = config, lists_folder
        self._queue: deque[CandidateList] = deque()
        self._iteration, self._epoch = 0, 0
        self._taken: set[str] = set()  # prompt ids of the iteration's first epoch that were queued, or consumed
        self._opened, self._closed = -1, -1  # newest iteration opened by the conductor; newest closed
        self._journal = Journal()
        self._ended = False
        self._behind: dict[str, float] = {}  # prompt id -> share of its pass behind its list, dropped lists too
        self._bound = staleness(config)
        self.asked: dict[str, int] = {}  # with a bound: prompts that samplers have -> publication they were asked at
        self.samplers_at = (0, 0)  # iteration and publication whose weights every sampler has
        self._early: Counter[int] = Counter()  # lists of the iteration after the trainer's: publication -> how many
        self.restored = False
        self.references = read_references(lists_folder.parent)

    def __len__(self) -> int:
        return len(self._queue)

    # The conductor's side.

    def open(self, iteration: int) -> tuple[str, ...]:
        """Begin an iteration, the trainer's or the next; returns the prompt ids whose lists are on disk already."""
        self._opened, self.asked = iteration, {}
        recorded = self._recorded(iteration)
        if iteration == self._iteration:
            self._enqueue(recorded)
        self._count_early()
        return tuple(record.prompt.id for record in recorded)

    def close(self, iteration: int) -> None:
        """No more lists of this iteration will come."""
        self._closed = iteration

    def end(self) -> None:
        """The run ends early: no further work is formed."""
        self._ended = True

    def append(self, lists: Sequence[CandidateList]) -> None:
        """Queue trainable lists of an iteration's first epoch, unless the trainer has gone on from there.

        Those of the iteration after the trainer's are read from disk when it begins.
        """
        if lists and (self._iteration, self._epoch) == (lists[0].iteration, 0):
            self._append(lists)
        elif lists and self._is_early:
            self._early += _publications(lists)

    def place(self, lists: Sequence[CandidateList]) -> None:
        """Where each list stands in the first pass of its iteration, in the order in which they are on disk."""
        for item in lists:
            if item.iteration == self._opened:
                self.asked.pop(item.prompt.id, None)
            if item.iteration == self._iteration:
                place = len(self._behind) + 1
                self._behind.setdefault(item.prompt.id, min(1.0, place / self._config.training.prompts_per_iteration))

    def trainable(self, lists: Iterable[CandidateList]) -> list[CandidateList]:
        """What is trained on of each list; those without a signal are dropped."""
        config, uses = self._config, get_spec(self._config.objective.name).uses
        found = [training_list(item, config.lists, config.sampling, seed=config.run.seed, uses=uses) for item in lists]
        return [selected for selected, _ in found if selected is not None]

    def may_ask(self) -> bool:
        """With a bound: whether one more prompt can be asked for, and its list be trained in time.

        Where no list of the trainer's iteration is to come any more, prompts of the next are asked for: their lists
        are trained from its first step on.
        """
        if not self.restored or self._epoch > 0 or not (self._opened == self._iteration or self._is_early):
            return False
        assert self._bound is not None
        waiting, before = _publications(self._queue), 0
        if self._is_early:
            waiting, before = Counter(self._early), len(self._queue)
        waiting += Counter(self.asked.values())
        waiting[self._publication()] += 1
        most = max(self._config.stream.capacity, self._config.training.lists_per_step)
        fits = self._bound.fits(0 if self._is_early else self._step(), waiting)
        return fits and before + waiting.total() <= most

    @property
    def _is_early(self) -> bool:
        """Whether the conductor is in the iteration after the trainer's, of which all lists are there."""
        return self._opened == self._iteration + 1 and self._closed >= self._iteration

    def _count_early(self) -> None:
        """What is on disk of the iteration after the trainer's."""
        there = self.trainable(self._recorded(self._opened)) if self._is_early else ()
        self._early = _publications(there)

    def ask(self, prompt_id: str) -> int:
        """A prompt goes to the samplers; returns the publication it counts as, within the iteration that is open.

        It is negative for one that is asked for before its iteration: -1 is the last publication before it.
        """
        return self.asked.setdefault(prompt_id, self._publication())

    def took(self, iteration: int, publication: int) -> None:
        """Every sampler has the weights of that publication, which count as no newer than the trainer's own.

        The trainer may have gone back behind them.
        """
        newest = (self._iteration, self._published_before(0))
        self.samplers_at = min((iteration, publication), newest) if self.restored else (iteration, publication)

    def _publication(self) -> int:
        """That of the samplers, counted within the iteration that is open."""
        iteration, publication = self.samplers_at
        return publication - sum(self._publications_of(before) for before in range(iteration, self._opened))

    def _publications_of(self, iteration: int) -> int:
        """How often weights are published from an iteration's beginning on until the next begins with its end's."""
        assert self._bound is not None
        lists = len(self._journal.used(iteration, 0)) + (len(self._queue) if iteration == self._iteration else 0)
        return 1 + self._bound.publication(max(0, self._bound.steps(lists) - 1))

    def _step(self) -> int:
        """Number of the next step within the iteration; its epochs but the first have no bound."""
        assert self._bound is not None
        return self._bound.steps(len(self._journal.used(self._iteration, 0)))

    # The trainer's side.

    def restore(self, journal: Journal) -> None:
        """Roll back (or start) at the journal: lists on disk that it has not consumed are queued again."""
        self._journal = journal
        self._iteration, self._epoch = journal.iteration, journal.epoch
        self._taken = set(journal.used(journal.iteration, 0))
        self._queue.clear()
        self._behind = {}
        self.restored = True
        self.took(*self.samplers_at)
        if self._epoch > 0:
            self._start_epoch(self._epoch)
        elif self._opened >= self._iteration:
            self._enqueue(self._recorded(self._iteration))
        self._count_early()

    def is_ready(self) -> bool:
        """Whether the next work can be formed."""
        if not self.restored:
            return False
        if self._ended or self._iteration >= self._config.training.iterations:
            return True
        if self._opened < self._iteration:
            return False
        if self._closed >= self._iteration:
            return True
        full_step = len(self._queue) >= self._config.training.lists_per_step
        return full_step and self._config.overlap != "none" and self._leaves_time()

    def _leaves_time(self) -> bool:
        """Whether lists that are still with the samplers can be trained in time after a step of those that wait."""
        if self._bound is None or not self.asked:
            return True
        _, left = self._next_lists()
        return self._bound.fits(self._step() + 1, _publications(left) + Counter(self.asked.values()))

    def _next_lists(self) -> tuple[list[CandidateList], list[CandidateList]]:
        """Those of the next step, and the others: first come first, or with a bound the oldest first."""
        lists = sorted(self._queue, key=_deadline) if self._bound is not None else list(self._queue)
        count = self._config.training.lists_per_step
        return lists[:count], lists[count:]

    def form(self, position: int) -> tuple[Work, list[CandidateList]]:
        """The work at the next position, and the lists of all ranks in it."""
        if self._ended or self._iteration >= self._config.training.iterations:
            return RunEnd(position), []
        while not self._queue and self._epoch + 1 < self._config.training.epochs:
            self._start_epoch(self._epoch + 1)
        if not self._queue:
            return self._end_iteration(position), []
        lists, left = self._next_lists()
        work = StepWork(
            position=position,
            iteration=self._iteration,
            epoch=self._epoch,
            lists=(),
            prompt_ids=tuple(item.prompt.id for item in lists),
            planned_share=self._planned_share(lists),
            publication=self._published_before(0),
            publishes=self._publishes(left),
        )
        self._queue, self._journal = deque(left), self._journal.after(work)
        return work, lists

    def _publishes(self, left: Sequence[CandidateList]) -> bool:
        """Whether the next step's weights are published: prompts may be asked for with them before the iteration's end.

        The end publishes anyway.
        """
        if self._bound is None or self._published_before(1) == self._published_before(0):
            return False
        behind = self._publications_of(self._iteration) - self._published_before(1)
        early = self._is_early and bool(left) and behind <= self._bound.most
        return early or self._closed < self._iteration

    def _published_before(self, steps: int) -> int:
        """Publications of the iteration before the step that comes after so many more; 0 without a bound."""
        return 0 if self._bound is None else self._bound.publication(self._step() + steps)

    def _end_iteration(self, position: int) -> IterationEnd:
        work = IterationEnd(position, self._iteration)
        self._journal = self._journal.after(work)
        self._iteration, self._epoch = self._journal.iteration, 0
        self._taken = set()
        self._behind = {}
        if self._opened >= self._iteration:
            self._enqueue(self._recorded(self._iteration))
        self._count_early()
        return work

    def _planned_share(self, lists: Sequence[CandidateList]) -> float:
        """Share of the planned passes behind a step of these lists, whatever was dropped before them."""
        training = self._config.training
        passes = self._iteration * training.epochs + self._epoch
        furthest = max(self._behind[item.prompt.id] for item in lists)
        return (passes + furthest) / (training.iterations * training.epochs)

    def _start_epoch(self, epoch: int) -> None:
        """Later epochs take every trainable list of the iteration again, shuffled by the seed."""
        self._epoch = epoch
        lists = self.trainable(self._recorded(self._iteration))
        lists.sort(key=lambda item: item.prompt.id)
        random.Random(stable_hash(self._config.run.seed, self._iteration, epoch)).shuffle(lists)
        self._behind = {item.prompt.id: (place + 1) / len(lists) for place, item in enumerate(lists)}
        used = set(self._journal.used(self._iteration, epoch))
        self._queue.extend(item for item in lists if item.prompt.id not in used)

    def _recorded(self, iteration: int) -> list[CandidateList]:
        records = [record for part in list_parts(self._folder, iteration) for record in read_lists(part)]
        return [with_references(record, self.references) for record in records]

    def _enqueue(self, recorded: Sequence[CandidateList]) -> None:
        """Queue again what is on disk of the iteration's first epoch and not consumed."""
        if self.restored and self._epoch == 0:
            self.place(recorded)
            self._append(self.trainable(recorded))

    def _append(self, lists: Sequence[CandidateList]) -> None:
        """Lists of the first epoch, each once, whether it came from the conductor or from disk."""
        new = [item for item in lists if item.prompt.id not in self._taken]
        self._taken |= {item.prompt.id for item in new}
        self._queue.extend(new)


def _deadline(item: CandidateList) -> float:
    """Lists without a fresh candidate have none: what is remembered is old by design."""
    return item.publication if item.is_fresh else math.inf


def _publications(lists: Iterable[CandidateList]) -> Counter[int]:
    """How many lists with a deadline are of each publication."""
    return Counter(item.publication for item in lists if item.is_fresh)
