"""What the sections of a configuration are made of: ranges of knobs, and the model that is strict about them.

Nothing here imports torch, ray or vllm.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86400)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(gt=0, le=5)]
Cores = Annotated[str, Field(pattern=r"^(auto|nobind|[0-9][0-9,|-]*)$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Resources = dict[str, Annotated[float, Field(ge=0)]]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


class Section(BaseModel):
    """Unknown keys are errors, values are checked strictly, a resolved configuration does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers_are_floats_too(cls, data: Any) -> Any:
        """YAML writes `1` for 1.0 and lists for tuples: strict models take both here and nothing looser."""
        if not isinstance(data, dict):
            return data
        return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
