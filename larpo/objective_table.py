"""Every objective by name, with what it asks for. Imports no torch: recipes are checked against it.

The functions stand in `larpo.objectives` and `larpo.list_objectives` (score objectives) and `larpo.baselines` (those
that need more than scores); `larpo.bound_objective` binds one to a recipe's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from larpo.errors import ConfigError

Uses = Literal["pair", "best", "order", "values", "labels", "one"]


@dataclass(frozen=True)
class ObjectiveSpec:
    """What an objective is and needs.

    `uses` is what it reads of a list: one winner and one loser (`pair`), the best against the others (`best`), the
    order (`order`), the rewards' values (`values`), which are better than the mean (`labels`), or the best response
    alone (`one`), so that a list of one is enough. `per` is what the sum of a step's losses is divided by: its lists,
    or the response tokens in them.
    """

    name: str
    module: str
    uses: Uses
    source: str
    takes: Literal["scores", "batch"] = "scores"
    reference: bool = True  # log-probabilities under the reference
    beta: bool = True  # the scale objective.beta means something
    lengths: bool = False  # how many tokens each response has
    divergence: bool = False  # the divergence estimated on mismatched prompts and responses
    per: Literal["list", "token"] = "list"
    options: Mapping[str, float] = field(default_factory=dict)  # objective.options and their defaults
    above_zero: tuple[str, ...] = ()  # options that cannot be 0
    function: str = ""  # where it is not called as the objective is

    @property
    def function_name(self) -> str:
        return self.function or self.name


_SPECS = (
    ObjectiveSpec("pairwise", "objectives", "pair", "Jin 2025, Table 1"),
    ObjectiveSpec("dpo", "objectives", "pair", "Rafailov 2023, arXiv 2305.18290, Eq. 7", function="pairwise"),
    ObjectiveSpec("contrastive", "objectives", "best", "Jin 2025, Eq. 9"),
    ObjectiveSpec("lambdarank", "objectives", "order", "Jin 2025, Eq. 15"),
    ObjectiveSpec("listmle", "objectives", "order", "Jin 2025, Eq. 23"),
    ObjectiveSpec("lipo_lambda", "list_objectives", "values", "Liu 2024, arXiv 2402.01878, section 3.3"),
    ObjectiveSpec("listnet", "list_objectives", "values", "Cao 2007, ListNet"),
    ObjectiveSpec(
        "approx_ndcg",
        "list_objectives",
        "values",
        "Qin 2010, ApproxNDCG; Zhao 2024, arXiv 2410.04346",
        options={"temperature": 1.0},
        above_zero=("temperature",),
    ),
    ObjectiveSpec("ipo", "baselines", "pair", "Azar 2023, arXiv 2310.12036, Eq. 17", takes="batch"),
    ObjectiveSpec(
        "slic_hf",
        "baselines",
        "pair",
        "Zhao 2023, arXiv 2305.10425, section 2",
        takes="batch",
        reference=False,
        beta=False,
        options={"margin": 1.0, "sft_weight": 0.1},
    ),
    ObjectiveSpec(
        "rrhf",
        "baselines",
        "order",
        "Yuan 2023, arXiv 2304.05302, section 3",
        takes="batch",
        reference=False,
        beta=False,
        lengths=True,
        options={"sft_weight": 1.0},
    ),
    ObjectiveSpec(
        "cpo",
        "baselines",
        "pair",
        "Xu 2024, arXiv 2401.08417, section 3",
        takes="batch",
        reference=False,
        options={"sft_weight": 1.0},
    ),
    ObjectiveSpec(
        "kto",
        "baselines",
        "labels",
        "Ethayarajh 2024, arXiv 2402.01306, Eq. 8",
        takes="batch",
        divergence=True,
        options={"desirable_weight": 1.0, "undesirable_weight": 1.0},
    ),
    ObjectiveSpec(
        "rdpo",
        "baselines",
        "pair",
        "Park 2024, arXiv 2403.19159, section 4",
        takes="batch",
        lengths=True,
        options={"length_weight": 0.01},
    ),
    ObjectiveSpec(
        "simpo",
        "baselines",
        "pair",
        "Meng 2024, arXiv 2405.14734, Eq. 6",
        takes="batch",
        reference=False,
        lengths=True,
        options={"margin": 1.6},
    ),
    ObjectiveSpec(
        "sft",
        "baselines",
        "one",
        "Ouyang 2022, arXiv 2203.02155, section 3.5",
        takes="batch",
        reference=False,
        beta=False,
        per="token",
    ),
)

OBJECTIVES: Mapping[str, ObjectiveSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})


def get_spec(name: str) -> ObjectiveSpec:
    """The objective of that name.

    Raises:
        ConfigError: no objective has that name; the message lists those there are.

    >>> get_spec("simpo").reference
    False
    """
    if name not in OBJECTIVES:
        raise ConfigError(f"objective {name!r} is not known; choose one of: {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name]
