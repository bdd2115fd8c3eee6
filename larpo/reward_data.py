"""Lists that a reward model is trained and measured on: from a recipe's preferences to token ids and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from larpo.constructed_lists import alpaca_answers, constructed_lists
from larpo.conversations import Conversation
from larpo.degenerate import degenerate_answers
from larpo.errors import DataError
from larpo.preference_checks import CONSTRUCTED
from larpo.preferences import Preference, PreferenceSets, load_preferences, split_groups
from larpo.reward_training_config import RewardTraining
from larpo.types import Prompt

Encode = Callable[[Prompt, str], Conversation]


@dataclass(frozen=True)
class LabelledList:
    """A prompt's conversations, best first, and their labels; the last are degenerate and named in `attacks`."""

    prompt_id: str
    conversations: tuple[Conversation, ...]
    labels: tuple[float, ...]
    margin: float = 0.0
    attacks: tuple[str, ...] = ()

    @cached_property
    def tokens(self) -> int:
        return sum(len(conversation) for conversation in self.conversations)

    @property
    def own(self) -> int:
        """Conversations that the data holds."""
        return len(self.conversations) - len(self.attacks)


@dataclass(frozen=True)
class LabelledSets:
    """Training and held-out lists; `notes` says what was left out."""

    train: tuple[LabelledList, ...]
    heldout: tuple[LabelledList, ...]
    notes: tuple[str, ...] = ()


def reward_preferences(config: RewardTraining) -> PreferenceSets:
    """The preferences that a recipe names, bundled ones included; raises as `load_preferences`."""
    section = config.preferences
    if section.source != CONSTRUCTED:
        return load_preferences(section)
    sets = split_groups([(item,) for item in alpaca_answers()], section)
    words, seed = config.answer_words, section.split_seed
    train, heldout = (constructed_lists(part, words=words, seed=seed) for part in (sets.train, sets.heldout))
    note = "weaker answers are made from the good ones, not sampled from a policy: larpo/constructed_lists.py"
    return PreferenceSets(train, heldout, (*sets.notes, note))


def labelled_sets(sets: PreferenceSets, encode: Encode, *, limit: int, degenerate: bool) -> LabelledSets:
    """Encoded lists; those without an order, or with a conversation of more than `limit` tokens, are left out.

    Training lists hold degenerate answers if `degenerate`; held-out lists always do, since they measure the attack.

    Raises:
        DataError: nothing is left to train on, or to measure with.
    """
    train, unfit_train = _labelled(sets.train, encode, limit, degenerate)
    heldout, unfit_heldout = _labelled(sets.heldout, encode, limit, True)
    too_long, no_order = (a + b for a, b in zip(unfit_train, unfit_heldout, strict=True))
    notes = list(sets.notes)
    if too_long:
        notes.append(f"{too_long} lists have a conversation of more than {limit} tokens (base.max_tokens, or what the ")
        notes[-1] += "model reaches) and are left out"
    if no_order:
        notes.append(f"{no_order} lists have fewer than two answers, or answers of one label only, and are left out")
    for name, part in (("training", train), ("held-out", heldout)):
        if not part:
            raise DataError(f"no {name} lists are left: {'; '.join(notes)}. Raise base.max_tokens, or bring more rows")
    return LabelledSets(train, heldout, tuple(notes))


def _labelled(
    preferences: Sequence[Preference], encode: Encode, limit: int, degenerate: bool
) -> tuple[tuple[LabelledList, ...], tuple[int, int]]:
    """The lists, and how many were too long or had no order."""
    lists: list[LabelledList] = []
    too_long = no_order = 0
    for preference in preferences:
        if len(set(preference.rewards)) < 2:
            no_order += 1
            continue
        item = _one(preference, encode, degenerate)
        if max(map(len, item.conversations)) > limit:
            too_long += 1
        else:
            lists.append(item)
    return tuple(lists), (too_long, no_order)


def _one(preference: Preference, encode: Encode, degenerate: bool) -> LabelledList:
    """Degenerate answers share one label, below all others: neither is the better of the two."""
    added = degenerate_answers(preference.prompt, preference.responses) if degenerate else {}
    worst = min(preference.rewards) - 1
    return LabelledList(
        preference.prompt.id,
        tuple(encode(preference.prompt, text) for text in (*preference.responses, *added.values())),
        (*preference.rewards, *(worst for _ in added)),
        preference.margin or 0.0,
        tuple(added),
    )
