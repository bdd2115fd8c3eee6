"""Final answers of responses, by the verifier that a task has: what a majority vote is taken over."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from larpo.reward_config import Reward
from larpo.types import Prompt
from larpo.verifiers import final_answer, last_boxed, last_number

Answer = Callable[[Prompt, str], str | None]


def answer_reader(reward: Reward) -> Answer | None:
    """What reads the final answer of a response to a prompt, None for one without; None where none has such."""
    return _READERS.get(reward.name) if reward.kind == "verifier" else None


def number(response: str) -> str | None:
    """The last number of a response, equal numbers as one text.

    >>> number("It is 18.50."), number("18.5"), number("I do not know.")
    ('18.5', '18.5', None)
    """
    found = last_number(response)
    return None if found is None else _plain(found)


def reasoning_gym(prompt: Prompt, response: str) -> str | None:
    """The answer that the task's scorer is given; equal numbers as one text where the gold answer is a number."""
    gold = str(prompt.answer_key["answer"])
    found = final_answer(response, gold)
    return _plain(found) if found is not None and found == last_number(found) else found


def boxed(response: str) -> str | None:
    """What the last `\\boxed{}` of a response holds, without spaces; its last number where there is none.

    Texts are compared as they stand: 1/2 and 0.5 are two answers here, though a verifier finds them equal.

    >>> boxed(r"so \\boxed{ \\frac{1}{2} }"), boxed("about 3.0")
    ('\\\\frac{1}{2}', '3')
    """
    found = last_boxed(response)
    return number(response) if found is None else "".join(found.split())


def _plain(number: str) -> str:
    return f"{Decimal(number).normalize():f}"


_READERS: dict[str, Answer] = {
    "reasoning_gym": reasoning_gym,
    "gsm8k": lambda prompt, response: number(response),
    "math": lambda prompt, response: boxed(response),
}
