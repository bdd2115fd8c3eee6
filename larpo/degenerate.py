"""Degenerate answers: what a reward model learns to refuse only when it is shown them.

A head trained on good and mismatched answers alone learns that an answer should be about the prompt; nothing is more
about the prompt than the prompt itself, and a policy finds that out.
"""

from __future__ import annotations

import itertools
import re

from larpo.types import Prompt


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
