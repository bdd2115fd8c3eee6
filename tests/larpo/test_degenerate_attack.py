"""Why degenerate answers stand among the negatives: without them a reward head is fooled by them.

The head (pooler and classifier) of the bundled encoder is trained on constructed lists with Plackett-Luce, once with
the two degenerate answers and once without, over what the frozen encoder reads in them.
"""

import pytest
import torch

from larpo.config import Preferences
from larpo.constructed_lists import alpaca_answers, constructed_lists
from larpo.conversations import encode_conversation
from larpo.degenerate import PROMPT_COPY, REPEATED_SENTENCE
from larpo.preferences import PreferenceSets, split_groups
from larpo.reward_data import LabelledSets, labelled_sets
from larpo.reward_losses import plackett_luce
from larpo.reward_model import find_base, load_trainable, write_untrained
from larpo.reward_results import attack_share
from larpo.reward_training_config import Base
from larpo.row_batches import padded_batch

TOKENS = 64  # short conversations only: the encoder reads all of them once


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    section = Base(model="minilm", dtype="float32", trained="head")
    folder = tmp_path_factory.mktemp("minilm") / "model"
    write_untrained(find_base(section), folder, section, seed=0)
    return folder, section


@pytest.fixture(scope="module")
def sets(model) -> LabelledSets:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model[0])
    section = Preferences(source="alpaca_eval_constructed", train_count=220, heldout_count=80)
    split = split_groups([(item,) for item in alpaca_answers()], section)
    lists = (constructed_lists(part, words=16, seed=0) for part in (split.train, split.heldout))
    encoded = labelled_sets(
        PreferenceSets(*lists), lambda *pair: encode_conversation(tokenizer, *pair), limit=TOKENS, degenerate=True
    )
    whole = (tuple(item for item in part if len(item.attacks) == 2) for part in (encoded.train, encoded.heldout))
    return LabelledSets(*whole)


@pytest.fixture(scope="module")
def read(model, sets):
    """What the frozen encoder reads at its first token, [lists, 5, width], of the training and the held-out lists."""
    encoder = load_trainable(*model).bert.eval()

    @torch.no_grad()
    def states(lists):
        found = []
        for at in range(0, len(lists), 8):
            batch = [conversation for item in lists[at : at + 8] for conversation in item.conversations]
            found.append(encoder(**padded_batch(batch, pad=0, types=True)).last_hidden_state[:, 0])
        return torch.cat(found).view(len(lists), 5, -1)

    return states(sets.train), states(sets.heldout)


def attacks(model, sets, read, *, degenerate):
    """Shares of held-out lists in which each degenerate answer beats the reference, after training."""
    head = load_trainable(*model)
    train_LMD, heldout_LMD = read

    def rewards(states_LMD):
        return head.classifier(torch.tanh(head.bert.pooler.dense(states_LMD)))[..., 0]

    count = 5 if degenerate else 3
    labels_M = torch.tensor(sets.train[0].labels[:count])
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(0)
    for _ in range(15):
        for batch in torch.randperm(len(train_LMD)).split(16):
            loss = plackett_luce(rewards(train_LMD[batch, :count]), labels_M.expand(len(batch), -1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found = rewards(heldout_LMD).tolist()
    by_prompt = {item.prompt_id: row for item, row in zip(sets.heldout, found, strict=True)}
    shares = [attack_share(sets.heldout, by_prompt, name) for name in (PROMPT_COPY, REPEATED_SENTENCE)]
    print(f"{len(train_LMD)} lists, degenerate={degenerate}: copy {shares[0]:.2f}, repetition {shares[1]:.2f}")
    return shares


@pytest.mark.slow
def test_degenerate_answers_win_unless_they_stand_among_the_negatives(model, sets, read):
    without_copy, without_repetition = attacks(model, sets, read, degenerate=False)
    copy, repetition = attacks(model, sets, read, degenerate=True)
    assert without_copy > 0.5
    assert without_repetition > 0.5
    assert copy <= 0.05
    assert repetition <= 0.15
