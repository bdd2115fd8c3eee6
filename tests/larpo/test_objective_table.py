"""The table of objectives says what is so."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from larpo.baselines import ListBatch
from larpo.bound_objective import BoundObjective, bind, objective_function
from larpo.config import Objective as ObjectiveSection
from larpo.errors import ConfigError, DataError
from larpo.objective_table import OBJECTIVES, get_spec

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
USES = {
    "pair": "one winner, one loser",
    "best": "the best against the others",
    "order": "the order",
    "values": "the rewards' values",
    "labels": "which are better than the list's mean",
    "one": "the best response alone",
}  # of `ObjectiveSpec.uses`, in the page's words
each_spec = pytest.mark.parametrize("spec", OBJECTIVES.values(), ids=lambda spec: spec.name)


def batch(**changes) -> ListBatch:
    values = {
        "log_probs_LM": torch.tensor([[-7.0, -5.0, -3.0], [-2.0, -4.0, -6.0]], dtype=torch.float64),
        "reference_LM": torch.tensor([[-6.0, -6.0, -2.0], [-2.5, -3.0, -6.5]], dtype=torch.float64),
        "rewards_LM": torch.tensor([[3.0, 1.0, 2.0], [0.1, 0.7, 0.4]]),
        "lengths_LM": torch.tensor([[4, 2, 1], [3, 3, 5]]),
        "divergence": torch.tensor(0.25),
    }
    return ListBatch(**{**values, **changes})


@each_spec
def test_options_are_the_functions_own(spec):
    keywords = {
        name
        for name, parameter in inspect.signature(objective_function(spec)).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert keywords - {"beta"} == set(spec.options)
    assert ("beta" in keywords) == (spec.takes == "batch" and spec.beta)


@each_spec
def test_what_an_objective_needs_is_what_it_fails_without(spec):
    bound = BoundObjective(spec, 0.1)
    assert bound.loss(batch()).shape == (2,)
    if spec.reference:
        with pytest.raises(DataError, match="reference"):
            bound.loss(batch(reference_LM=None))
    else:
        assert torch.equal(bound.loss(batch(reference_LM=None)), bound.loss(batch()))
    if spec.divergence:
        with pytest.raises(DataError, match="divergence"):
            bound.loss(batch(divergence=None))


@each_spec
def test_beta_matters_where_the_table_says_so(spec):
    changed = not torch.allclose(BoundObjective(spec, 0.1).loss(batch()), BoundObjective(spec, 0.7).loss(batch()))
    assert changed == spec.beta


@each_spec
def test_lengths_matter_where_the_table_says_so(spec):
    bound, longer_winner = BoundObjective(spec, 0.1), torch.tensor([[9, 2, 1], [3, 8, 5]])
    changed = not torch.allclose(bound.loss(batch()), bound.loss(batch(lengths_LM=longer_winner)))
    assert changed == spec.lengths


@each_spec
def test_what_is_used_of_a_list_is_what_the_table_says(spec):
    """Moving rewards without changing what is used changes nothing; changing it does."""

    def loss(*rewards):
        rewards_LM = torch.tensor([rewards])
        one = batch(rewards_LM=rewards_LM)
        single = {name: getattr(one, name)[:1] for name in ("log_probs_LM", "reference_LM", "lengths_LM")}
        return float(BoundObjective(spec, 0.5).loss(batch(rewards_LM=rewards_LM, **single)))

    start = loss(3.0, 1.0, 2.2)
    assert (loss(3.0, 1.0, 2.4) == pytest.approx(start)) == (spec.uses != "values")  # the same order and labels
    same_best = loss(3.0, 2.0, 1.5) == pytest.approx(start)  # another order, the same best, another worst
    assert same_best == (spec.uses in ("best", "one"))
    assert loss(1.0, 3.0, 2.0) != pytest.approx(start)


def test_names_and_binding():
    assert bind(ObjectiveSection(name="simpo", options={"margin": 0.5})).options == {"margin": 0.5}
    assert objective_function(get_spec("dpo")) is objective_function(get_spec("pairwise"))
    with pytest.raises(ConfigError, match="'lambdarnak' is not known; choose one of: approx_ndcg, contrastive, cpo"):
        get_spec("lambdarnak")


def test_scores_are_the_log_ratio_or_the_log_probability():
    log_probs, reference = torch.tensor([-1.0]), torch.tensor([-3.0])
    assert BoundObjective(get_spec("dpo"), 0.5).scores(log_probs, reference).tolist() == [1.0]
    assert BoundObjective(get_spec("cpo"), 0.5).scores(log_probs, None).tolist() == [-0.5]


@each_spec
def test_the_page_lists_it_with_what_it_asks_for(spec):
    (row,) = re.findall(rf"^\| `{spec.name}` \|.*$", PAGE, flags=re.MULTILINE)
    uses, asks = row.split("|")[2:4]
    asked = {part.strip() for part in re.split("[,;]", re.sub(r"\(.*?\)", "", asks))}
    assert ("reference" in asked) == spec.reference
    assert ("no reference" in asked) == (not spec.reference)
    assert ("no `beta`" in asked) == (not spec.beta)
    assert ("lengths" in asked) == spec.lengths
    assert ("divergence" in asked) == spec.divergence
    assert USES[spec.uses] in uses
    assert set(re.findall(r"`(\w+) = ([\d.]+)`", row)) == {(k, f"{v:g}") for k, v in spec.options.items()}
    assert spec.source.split(",")[0] in row
