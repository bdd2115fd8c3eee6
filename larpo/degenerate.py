"""Degenerate answers: what a reward model learns to refuse only when it is shown them.

A head trained on good and mismatched answers alone learns that an answer should be about the prompt; nothing is more
about the prompt than the prompt itself, and a policy finds that out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from larpo.types import Prompt

PROMPT_COPY, REPEATED_SENTENCE = "prompt_copy", "repeated_sentence"


def degenerate_answers(prompt: Prompt, answers: Sequence[str]) -> dict[str, str]:
    """The degenerate answers to a prompt by their name; one that says what an answer of the list says is left out.

    `answers` are best first, and the best one is what the repeated sentence is taken from.
    """
    made = {PROMPT_COPY: prompt_copy(prompt), REPEATED_SENTENCE: repeated_sentence(answers[0])}
    said = {answer.strip() for answer in answers}
    return {name: text for name, text in made.items() if text.strip() and text.strip() not in said}


def prompt_copy(prompt: Prompt) -> str:
    """The last user turn, word for word.

    >>> from larpo.types import Message
    >>> prompt_copy(Prompt("p", (Message("user", "Name a river."),)))
    'Name a river.'
    """
    return next((m.content for m in reversed(prompt.messages) if m.role == "user"), prompt.messages[-1].content)


def repeated_sentence(answer: str) -> str:
    """The answer's first sentence again and again, at least twice, until it is about as long as the answer.

    >>> repeated_sentence("Yes. It is so, and it was so.")
    'Yes. Yes. Yes. Yes. Yes. Yes. Yes. Yes.'
    """
    first = next(iter(sentences(answer)), "")
    words = max(1, len(first.split()))
    return " ".join(itertools.repeat(first, max(2, round(len(answer.split()) / words))))


def sentences(text: str) -> list[str]:
    """The text cut after each full stop, question or exclamation mark that white space follows, and at line ends."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]
