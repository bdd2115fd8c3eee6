"""Final answers of responses, by the verifier that a task has: what a majority vote is taken over."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from larpo.config import Reward
from larpo.verifiers import last_number

Answer = Callable[[str], str | None]


def answer_reader(reward: Reward) -> Answer | None:
    """What reads the final answer of a response, None for one without; None where responses have no final answer."""
    return _READERS.get(reward.name) if reward.kind == "verifier" else None


def number(response: str) -> str | None:
    """The last number of a response, equal numbers as one text.

    >>> number("It is 18.50."), number("18.5"), number("I do not know.")
    ('18.5', '18.5', None)
    """
    found = last_number(response)
    return None if found is None else f"{Decimal(found).normalize():f}"


_READERS: dict[str, Answer] = {"reasoning_gym": number, "gsm8k": number}
