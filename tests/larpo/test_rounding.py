"""Places between bfloat16 numbers: what is rounded, and how far rounded weights move."""

import pytest
import torch

from larpo.rounding import spread_in_cells_


def test_rounded_weights_have_not_moved_and_unrounded_ones_lie_all_over_their_cells():
    weights = torch.randn(500, 400, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    spread = spread_in_cells_(weights.clone(), seed=1)
    assert torch.equal(spread.bfloat16().float(), weights)
    places = (spread.view(torch.int32) - weights.view(torch.int32)).double() / 2**16
    assert places.abs().max() <= 0.5
    assert places.mean() == pytest.approx(0, abs=0.003)
    assert places.std() == pytest.approx(1 / 12**0.5, rel=0.01)  # of a uniform distribution


@pytest.mark.parametrize(
    ("begin", "share"),
    [(1.5, 0.01), (1.5, 0.9), (-3e-20, 0.1), (-3e-20, -0.1), (1.0, 0.5), (1.0, -0.25), (-(2.0**-7), 0.1)],
)
def test_weights_that_move_by_a_share_of_a_bit_get_there_by_that_share(begin, share):
    """Rounded to the nearest, none would by less than a half. The bit below a power of two is half of the one above."""
    weights = torch.full((200_000,), begin).bfloat16().float()
    outward = 2**16 if share > 0 else -(2**16)
    bit = float((weights[:1].view(torch.int32) + outward).view(torch.float32)) - float(weights[0])
    moved = (spread_in_cells_(weights.clone(), seed=2) + abs(share) * bit).bfloat16().double() - weights.double()
    assert float(moved.mean()) / bit == pytest.approx(abs(share), rel=0.02 / abs(share) ** 0.5)


def test_zeros_what_is_not_finite_and_what_bfloat16_does_not_have_stay():
    """Padding is zero, and a weight that is no bfloat16 number has a place already."""
    weights = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 0.1, 1 / 3]).repeat(1000)
    assert torch.equal(spread_in_cells_(weights.clone(), seed=0).view(torch.int32), weights.view(torch.int32))


def test_a_seed_gives_the_same_places_and_another_one_others():
    weights = torch.ones(5_000_000)  # more than are drawn at a time
    first, again, other = (spread_in_cells_(weights.clone(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first == other).float().mean() < 0.001
    assert torch.unique(first[-1000:]).numel() > 900


def test_weights_that_are_not_float32_are_refused():
    with pytest.raises(TypeError, match=r"float32 weights .* not torch\.bfloat16"):
        spread_in_cells_(torch.ones(3, dtype=torch.bfloat16), seed=0)
