"""A dataset's answers as lists: the template's own tokens, and the losses of transformers and TRL on the same data."""

import json

import pytest
import torch

from larpo.attention import attention_implementation
from larpo.bound_objective import BoundObjective
from larpo.chat import encode_answer, encode_prompt, end_of_turn
from larpo.config import Objective, PreferenceColumns, Preferences
from larpo.errors import DataError
from larpo.given_lists import Encoder, candidate_list, check_some
from larpo.list_step import PackedList, list_log_probs, pass_counts, rows_of, step_lists
from larpo.log_probs import packed_log_probs
from larpo.objective_table import get_spec
from larpo.policy import load_policy, load_tokenizer
from larpo.preferences import Preference, load_preferences
from larpo.records import read_lists, write_part
from larpo.types import Message, Prompt

NO_NEWLINE = (  # TRL counts what a template writes behind the end of a turn as part of the answer; we end there
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAIRS = [
    ("What is 2 + 3?", "5", "It is 6."),
    ("Say hi.", "Hi there, friend.", "no"),
    ("Name a colour.", "red", "seven"),
]


@pytest.fixture
def tokenizer(tiny_policy):
    return load_tokenizer(tiny_policy)


@pytest.fixture
def encoder(tokenizer):
    return Encoder(tokenizer, end_of_turn(tokenizer), system=None, require_template=True, limit=200)


def preference(number: int, question: str, *answers: str) -> Preference:
    rewards = tuple(float(len(answers) - place) for place in range(len(answers)))
    return Preference(Prompt(f"p{number}", (Message("user", question),)), answers, rewards)


def preferences() -> list[Preference]:
    return [preference(number, *row) for number, row in enumerate(PAIRS)]


def test_prompt_and_answer_are_the_templates_own_rendering(tokenizer, encoder):
    lists, notes = encoder.encode(preferences())
    assert not notes
    for given, (question, *answers) in zip(lists, PAIRS, strict=True):
        for ids, answer in zip(given.response_token_ids, answers, strict=True):
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            whole = tokenizer.apply_chat_template(turns, tokenize=False)
            assert tokenizer.decode([*given.prompt_token_ids, *ids]) + "\n" == whole
            assert ids[-1] == tokenizer.eos_token_id


def test_a_system_turn_and_the_plain_template(tokenizer):
    prompt = Prompt("p", (Message("user", "q"),))
    ids = encode_prompt(tokenizer, prompt, system="be brief")
    answer, same = encode_answer(tokenizer, prompt, ids, "yes", tokenizer.eos_token_id, system="be brief")
    assert same
    assert tokenizer.decode(answer) == "yes<|im_end|>"
    tokenizer.chat_template = None
    ids = encode_prompt(tokenizer, prompt, require_template=False)
    answer, same = encode_answer(tokenizer, prompt, ids, "yes\n", end_of_turn(tokenizer))
    assert same
    assert tokenizer.decode([*ids, *answer]) == "user: q\nassistant: yes<|im_end|>"


def test_a_template_that_writes_past_turns_otherwise_is_told(tokenizer, encoder):
    """As those do that leave the reasoning of past turns out: the answer is encoded by itself."""
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>assistant", "<|im_start|>assistant:")
    lists, notes = encoder.encode(preferences()[:1])
    assert tokenizer.decode(list(lists[0].response_token_ids[0])) == "5<|im_end|>"
    ((text, count),) = notes.items()
    assert count == 2
    assert "not as the chat template renders" in text


def test_a_template_without_an_end_or_with_another_text(tokenizer):
    """The end is put behind the answer where the template has none; a text that is not in it is encoded by itself."""
    prompt, end = Prompt("p", (Message("user", "q"),)), tokenizer.eos_token_id
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    ids = encode_prompt(tokenizer, prompt)
    answer, same = encode_answer(tokenizer, prompt, ids, "yes", end)
    assert (tokenizer.decode([*ids, *answer]), same) == ("[user]q\n[assistant]yes<|im_end|>", True)
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | upper")
    answer, same = encode_answer(tokenizer, prompt, encode_prompt(tokenizer, prompt), "yes", end)
    assert (tokenizer.decode(answer), same) == ("yes<|im_end|>", False)


def test_what_does_not_fit_or_holds_special_tokens_is_left_out_and_counted(encoder):
    rows = [*preferences(), preference(3, "q", "x" * 200, "y"), preference(4, "q", "a<|im_end|>b", "c")]
    lists, notes = encoder.encode(rows)
    assert [given.preference.prompt.id for given in lists] == ["p0", "p1", "p2"]
    assert sorted(notes.values()) == [1, 1]
    with pytest.raises(DataError, match=r"no training list is left: 1 lists left out: .* more than 200 tokens"):
        check_some(*encoder.encode(rows[3:4]), "training")


def test_a_list_is_a_durable_record(encoder, tmp_path):
    lists = [candidate_list(given) for given in encoder.encode(preferences())[0]]
    write_part(tmp_path, lists, 0, 0)
    assert list(read_lists(tmp_path)) == lists
    assert {c.origin for item in lists for c in item.candidates} == {"given"}
    assert [c.reward for c in lists[0].candidates] == [2.0, 1.0]
    assert lists[0].prompt_token_ids == encode_prompt(encoder.tokenizer, lists[0].prompt)


@pytest.fixture
def load(tiny_policy):
    def model(attention: str, noise: float = 0.0):
        made = load_policy(tiny_policy, dtype="float32", attn_implementation=attention)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += noise * torch.randn_like(parameter)
        return made

    return model


def packed_attention(model) -> str:
    return attention_implementation(model.config, "cpu")


def test_fine_tuning_has_the_loss_and_gradient_of_transformers(encoder, load):
    """Its own cross-entropy, on padded rows with -100 on prompt and padding; ours on lists of one answer."""
    given, _ = encoder.encode([preference(n, question, answer) for n, (question, answer, _) in enumerate(PAIRS)])
    theirs = load("eager")
    rows = [[*item.prompt_token_ids, *item.response_token_ids[0]] for item in given]
    longest = max(len(row) for row in rows)
    labels = torch.full((len(rows), longest), -100)
    input_ids, mask = torch.zeros_like(labels), torch.zeros_like(labels)
    for number, (row, item) in enumerate(zip(rows, given, strict=True)):
        input_ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
        labels[number, len(item.prompt_token_ids) : len(row)] = torch.tensor(row[len(item.prompt_token_ids) :])
    expected = theirs(input_ids=input_ids, attention_mask=mask, labels=labels).loss
    expected.backward()

    ours = load(packed_attention(theirs))
    lists = [candidate_list(item) for item in given]
    packed = [PackedList(item, rows_of(item, 200), torch.ones(1), None) for item in lists]
    losses = []

    def backward(loss, last):
        loss.backward()
        losses.append(float(loss.detach()))

    step_lists(
        lambda row: packed_log_probs(ours, row),
        packed,
        objective=BoundObjective(get_spec("sft"), 1.0),
        divisor=sum(len(item.response_token_ids[0]) for item in given),
        passes=pass_counts(packed),
        backward=backward,
    )
    assert sum(losses) == pytest.approx(float(expected.detach()), rel=1e-5)
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_pairs_have_the_loss_of_trls_dpo_trainer(tokenizer, load, tmp_path):
    """From the same file to the same number: TRL reads, tokenizes, pads and scores by itself."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    tokenizer.chat_template = NO_NEWLINE
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for question, chosen, rejected in PAIRS
    ]
    arguments = {"output_dir": str(tmp_path), "report_to": [], "use_cpu": True, "bf16": False}
    trainer = trl.DPOTrainer(
        model=load("eager", 0.02),
        ref_model=load("eager"),
        args=trl.DPOConfig(**arguments, beta=0.3, per_device_train_batch_size=3, gradient_checkpointing=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = float(trainer.compute_loss(trainer.model, batch).detach())

    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = PreferenceColumns(prompt="prompt", chosen="chosen", rejected="rejected")
    sets = load_preferences(Preferences(source=str(path), columns=columns))
    encoder = Encoder(tokenizer, end_of_turn(tokenizer), system=None, require_template=True, limit=200)
    given, _ = encoder.encode(sets.train)
    attention = packed_attention(trainer.model)
    policy, reference = load(attention, 0.02), load(attention)
    section = Objective(name="dpo", beta=0.3)
    losses = [pair_loss(candidate_list(item), policy, reference, section) for item in given]
    assert sum(losses) / len(losses) == pytest.approx(theirs, rel=1e-4)


def pair_loss(item, policy, reference, section) -> float:
    from larpo.bound_objective import bind
    from larpo.list_step import list_loss

    rows = rows_of(item, 200)
    policy_M, reference_M = (
        list_log_probs(lambda row, model=model: packed_log_probs(model, row), rows) for model in (policy, reference)
    )
    rewards_M = torch.tensor([candidate.reward for candidate in item.candidates])
    return float(list_loss(bind(section), PackedList(item, rows, rewards_M, reference_M), None, policy_M))
