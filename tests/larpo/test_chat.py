"""From messages to token ids: templates, system turns, one BOS, ends of turns."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from larpo.chat import encode_prompt, plain_text, stop_token_ids, with_system
from larpo.errors import ConfigError, DataError
from larpo.types import Message, Prompt

WORDS = ("<unk>", "<s>", "</s>", "<end>", "user", "assistant", "system", ":", "hi", "there", "be", "brief")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + '<end>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant :' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def tokenizer(template: str | None, *, adds_end: bool = False) -> PreTrainedTokenizerFast:
    """A word tokenizer that puts BOS (and EOS) around plain text, as Llama's does."""
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "<s> $A </s>" if adds_end else "<s> $A"
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=["<end>"]
    )
    made.chat_template = template
    return made


def prompt(*turns: tuple[str, str]) -> Prompt:
    return Prompt("p", tuple(Message(role, content) for role, content in turns))


def words(ids: tuple[int, ...]) -> str:
    return " ".join(WORDS[i] for i in ids)


HI = prompt(("user", "hi there"))


def test_the_test_tokenizer_adds_bos_to_plain_text():
    assert tokenizer(None)("hi")["input_ids"] == [1, 8]


def test_the_template_is_applied_with_one_bos_and_the_header_of_the_answer():
    ids = encode_prompt(tokenizer(TEMPLATE), HI)
    assert isinstance(ids, tuple)
    assert words(ids) == "<s> user : hi there <end> assistant :"


def test_a_template_that_doubles_bos_gives_one():
    assert words(encode_prompt(tokenizer("{{ bos_token }}" + TEMPLATE), HI)).startswith("<s> user")


def test_a_template_without_bos_gives_none():
    assert words(encode_prompt(tokenizer(TEMPLATE.removeprefix("{{ bos_token }}")), HI)).startswith("user :")


def test_several_turns():
    turns = prompt(("user", "hi"), ("assistant", "hi there"), ("user", "be brief"))
    assert words(encode_prompt(tokenizer(TEMPLATE), turns)) == (
        "<s> user : hi <end> assistant : hi there <end> user : be brief <end> assistant :"
    )


def test_a_system_turn_goes_before_prompts_that_have_none():
    made = tokenizer(TEMPLATE)
    assert words(encode_prompt(made, HI, system="be brief")).startswith("<s> system : be brief <end> user : hi")
    own = prompt(("system", "hi"), ("user", "there"))
    assert encode_prompt(made, own, system="be brief") == encode_prompt(made, own)
    assert with_system(own.messages, None) == own.messages


def test_a_template_that_takes_no_system_turn():
    with pytest.raises(ConfigError, match=r"prompt 'p': .*\(system, user\): no system role; leave prompts.system out"):
        encode_prompt(tokenizer(NO_SYSTEM), HI, system="be brief")


def test_no_template():
    with pytest.raises(ConfigError, match="no chat template"):
        encode_prompt(tokenizer(None), HI)
    expected = "<s> user : hi there assistant :"
    assert words(encode_prompt(tokenizer(None), HI, require_template=False)) == expected
    assert words(encode_prompt(tokenizer(None, adds_end=True), HI, require_template=False)) == expected
    turns = (Message("system", "be brief"), Message("user", "hi"))
    assert plain_text(turns) == "system: be brief\nuser: hi\nassistant:"


def test_stop_ids_come_from_the_config_the_tokenizer_and_the_template():
    made = tokenizer(TEMPLATE)
    assert stop_token_ids(made) == (2, 3)
    assert stop_token_ids(made, SimpleNamespace(eos_token_id=[3, 9])) == (3, 9, 2)
    assert stop_token_ids(made, SimpleNamespace(eos_token_id=9)) == (9, 2, 3)
    assert stop_token_ids(tokenizer(None), SimpleNamespace(eos_token_id=None)) == (2,)


def test_a_word_after_an_answer_is_no_stop():
    assert stop_token_ids(tokenizer(TEMPLATE.replace("<end>", " there"))) == (2,)


def test_no_stop_at_all():
    made = tokenizer(None)
    made.eos_token = None
    with pytest.raises(DataError, match="names no token that ends a response"):
        stop_token_ids(made)


def test_the_plain_text_as_a_template():
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from larpo.chat import PLAIN_TEMPLATE, plain_text

    messages = (Message("system", "Be brief."), Message("user", "Why?\n{{ 7 }}"))
    turns = [{"role": message.role, "content": message.content} for message in messages]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers has it
    rendered = environment.from_string(PLAIN_TEMPLATE).render(messages=turns, add_generation_prompt=True)
    assert rendered == plain_text(messages)
