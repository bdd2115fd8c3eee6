"""PairRM in its Hugging Face form (`llm-blender/PairRM-hf`): a DeBERTa-v2 encoder that sees two responses at once.

Jiang, Ren and Lin 2023, "LLM-Blender", arXiv 2306.02561. The row is
`[CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> first [SEP] [CLS] <|candidate2|> second [SEP]`. The head takes the
encoder's states at <|source|> and at a candidate's token, side by side, to that candidate's score; the logit is the
first candidate's score minus the second's. Modules are named as in the published weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from larpo.conversations import Conversation
from larpo.errors import DataError
from larpo.model_folder import weight_files

ARCHITECTURE = "DebertaV2PairRM"
SOURCE, FIRST, SECOND = "<|source|>", "<|candidate1|>", "<|candidate2|>"
SOURCE_SHARE = 1224 / 2048  # of a row, as PairRM was trained


class PairRM(nn.Module):
    """The encoder and its head; parameters are random until `load_pairrm` fills them."""

    def __init__(self, config: Any, token_ids: tuple[int, int, int]) -> None:
        from transformers import DebertaV2Model

        super().__init__()
        size, dropout = config.hidden_size, getattr(config, "drop_out", 0.0)
        self._token_ids = token_ids
        self.pretrained_model: Any = DebertaV2Model(config)
        self.head_layer = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * size, size),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(size, getattr(config, "n_tasks", 1)),
        )

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits [B] that the first candidate is the better one, from ids and mask [B, T]."""
        ids_BT = inputs["input_ids"]
        states_BTH = self.pretrained_model(input_ids=ids_BT, attention_mask=inputs["attention_mask"]).last_hidden_state
        rows_B = torch.arange(len(ids_BT), device=ids_BT.device)
        source_BH, first_BH, second_BH = (
            states_BTH[rows_B, (ids_BT == token).int().argmax(dim=1)] for token in self._token_ids
        )
        first_B1 = self.head_layer(torch.cat([source_BH, first_BH], dim=-1))
        second_B1 = self.head_layer(torch.cat([source_BH, second_BH], dim=-1))
        return (first_B1 - second_B1).mean(dim=-1)


def load_pairrm(folder: Path, config: Any, tokenizer: Any, dtype: torch.dtype) -> PairRM:
    """The model with the folder's safetensors weights; DataError when they are another model's."""
    from safetensors.torch import load_file

    model = PairRM(config, token_ids(folder, tokenizer))
    weights = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    try:
        lacking, strange = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise DataError(f"{folder}: its weights do not fit its config.json ({error}); download it again") from error
    strange = [name for name in strange if not name.endswith("position_ids")]  # a buffer that older versions saved
    if lacking or strange:
        raise DataError(f"{folder}: not PairRM's weights; lacking are {lacking[:4]}, unknown {strange[:4]}")
    return model.to(dtype)


def token_ids(folder: Path, tokenizer: Any) -> tuple[int, int, int]:
    """The ids of the three tokens that the head reads; DataError where the tokenizer has not all of them."""
    found = [tokenizer.convert_tokens_to_ids(token) for token in (SOURCE, FIRST, SECOND)]
    if None in found or tokenizer.unk_token_id in found or len(set(found)) < 3:
        raise DataError(f"{folder}: its tokenizer has not all of {SOURCE}, {FIRST}, {SECOND}; is it PairRM's?")
    return found[0], found[1], found[2]


def pairrm_row(tokenizer: Any, prompt: str, first: str, second: str, max_tokens: int) -> Conversation:
    """The row of one comparison; what is too long is cut at its end, the prompt to its share, the responses evenly."""

    def piece(token: str, text: str, limit: int) -> list[int]:
        for other in (SOURCE, FIRST, SECOND):  # a text that holds one must not be read as a candidate
            text = text.replace(other, other.replace("|", " "))
        return list(tokenizer(token + text, truncation=True, max_length=limit)["input_ids"])

    source = piece(SOURCE, prompt, int(SOURCE_SHARE * max_tokens))
    limit = (max_tokens - len(source)) // 2
    ids = [*source, *piece(FIRST, first, limit), *piece(SECOND, second, limit)]
    return Conversation(tuple(ids), (0,) * len(ids))
