"""From messages to the token ids that a sampler is given, by the policy's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from larpo.errors import ConfigError, DataError
from larpo.types import Message, Prompt

_ANSWER = "<answer goes here>"  # stands for an answer where a template is asked what it writes after one


def encode_prompt(
    tokenizer: Any, prompt: Prompt, *, system: str | None = None, require_template: bool = True
) -> tuple[int, ...]:
    """Token ids of a prompt, up to and with the header of the assistant's turn; BOS once at most.

    `system` is put before a prompt that has no system turn. A tokenizer without a chat template is a ConfigError when
    one is required; otherwise the plain template is used, "role: content" a line and "assistant:" at the end, with BOS
    before it where the tokenizer adds one to plain text.
    """
    messages = with_system(prompt.messages, system)
    if tokenizer.chat_template is not None:
        text = _templated(tokenizer, messages, prompt.id)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    elif require_template:
        raise ConfigError(
            "policy.require_chat_template = True: the tokenizer of policy.model has no chat template; take an "
            "instruct model, add chat_template.jinja to its folder, or set policy.require_chat_template=false for a "
            "plain one"
        )
    else:
        ids = _without_end(tokenizer, tokenizer(plain_text(messages))["input_ids"])
    return tuple(_one_bos(tokenizer, ids))


def encode_answer(
    tokenizer: Any, prompt: Prompt, prompt_ids: Sequence[int], answer: str, end: int, *, system: str | None = None
) -> tuple[tuple[int, ...], bool]:
    """Token ids of an assistant's answer to an encoded prompt, with the token `end` that ends its turn.

    Returns the ids, and whether prompt and answer are the ids of the template's own rendering of the conversation.
    They are not where the last token of the prompt and the first of the answer would be written as one, or where a
    template writes a past turn otherwise than the next one: the answer is then encoded by itself.
    """
    turns = (*with_system(prompt.messages, system), Message("assistant", answer))
    text = _templated(tokenizer, turns, prompt.id, answered=True)
    ids = _rendered_ids(tokenizer, text)
    before, said, _ = text.rpartition(answer.strip())
    if end not in ids[len(prompt_ids) :] and said:  # the template writes no end: the answer is the last of its text
        ids = [*_rendered_ids(tokenizer, before + said), end]
    rest = ids[len(prompt_ids) :]
    if tuple(ids[: len(prompt_ids)]) == tuple(prompt_ids) and end in rest:
        return tuple(rest[: len(rest) - rest[::-1].index(end)]), True
    return (*tokenizer(answer, add_special_tokens=False)["input_ids"], end), False


def end_of_turn(tokenizer: Any, generation_config: Any = None) -> int:
    """The id that ends an assistant's answer: what the chat template writes, else the first of `stop_token_ids`."""
    end = _end_of_answer(tokenizer)
    return stop_token_ids(tokenizer, generation_config)[0] if end is None else end


def _rendered_ids(tokenizer: Any, text: str) -> list[int]:
    """A template's text as ids: special tokens are the template's to write; plain text gets the tokenizer's BOS."""
    if tokenizer.chat_template is not None:
        return _one_bos(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    return _one_bos(tokenizer, _without_end(tokenizer, tokenizer(text)["input_ids"]))


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The messages with a system turn first: their own, else `system`, else none."""
    has_one = any(message.role == "system" for message in messages)
    return messages if system is None or has_one else (Message("system", system), *messages)


PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)  # `plain_text` as a chat template


def plain_text(messages: tuple[Message, ...]) -> str:
    """The plain template: "role: content" a line, then the header "assistant:"."""
    return "".join(f"{message.role}: {message.content}\n" for message in messages) + "assistant:"


def stop_token_ids(tokenizer: Any, generation_config: Any = None) -> tuple[int, ...]:
    """Ids that end a response: those of the generation config, EOS, and what the chat template ends an answer with.

    DataError when there is none, since every response would then run into the length limit.
    """
    configured = getattr(generation_config, "eos_token_id", None)
    ids = list(configured) if isinstance(configured, list | tuple) else [configured]
    ids += [tokenizer.eos_token_id, _end_of_answer(tokenizer)]
    found = tuple(dict.fromkeys(int(i) for i in ids if i is not None))
    if not found:
        raise DataError(
            "policy.model names no token that ends a response: neither its generation config, nor its tokenizer's "
            "EOS, nor its chat template; set eos_token_id in its generation_config.json"
        )
    return found


def _templated(tokenizer: Any, messages: tuple[Message, ...], prompt_id: str, *, answered: bool = False) -> str:
    """The template's text, up to the header of the next answer unless the turns end with one; without a template of
    its own the plain one's. ConfigError when the template refuses these turns.
    """
    import jinja2

    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        template = PLAIN_TEMPLATE if tokenizer.chat_template is None else tokenizer.chat_template
        return tokenizer.apply_chat_template(
            turns, chat_template=template, add_generation_prompt=not answered, tokenize=False
        )
    except jinja2.TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise ConfigError(
            f"prompt {prompt_id!r}: the policy's chat template refuses the turns ({roles}): {error}; leave "
            "prompts.system out if it takes no system turn, or reorder the prompt's turns"
        ) from error


def _one_bos(tokenizer: Any, ids: list[int]) -> list[int]:
    """The ids with one BOS at most at their start: a template may write one and a tokenizer add another."""
    bos = tokenizer.bos_token_id
    while bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]:
        ids = ids[1:]
    return ids


def _without_end(tokenizer: Any, ids: list[int]) -> list[int]:
    """Plain text's ids without the EOS that some tokenizers add: the response goes on from here."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _end_of_answer(tokenizer: Any) -> int | None:
    """The special token that the chat template writes right after an assistant's answer, if any."""
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    tail = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(_ANSWER)[2]
    ids = tokenizer(tail.strip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in special_ids(tokenizer) else None


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that the tokenizer marks as special."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))
