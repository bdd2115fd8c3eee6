"""Final answers of responses, by the verifier that a task has: what a majority vote is taken over."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from larpo.reward_config import Reward
from larpo.verifiers import last_boxed, last_number

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


def boxed(response: str) -> str | None:
    """What the last `\\boxed{}` of a response holds, without spaces; its last number where there is none.

    Texts are compared as they stand: 1/2 and 0.5 are two answers here, though a verifier finds them equal.

    >>> boxed(r"so \\boxed{ \\frac{1}{2} }"), boxed("about 3.0")
    ('\\\\frac{1}{2}', '3')
    """
    found = last_boxed(response)
    return number(response) if found is None else "".join(found.split())


_READERS: dict[str, Answer] = {"reasoning_gym": number, "gsm8k": number, "math": boxed}
