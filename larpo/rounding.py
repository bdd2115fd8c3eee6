"""Places for float32 weights whose bfloat16 roundings are the model.

A bfloat16 number has eight significant bits, and a step of fine-tuning moves a weight by far less than the last of
them. Mixed precision adds the steps up in float32, but the model computes with the sum rounded to the nearest, which
stays where it was until the weight has moved by half a bit: what was learned by less is there, and not used.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOST_BITS = 16  # of float32 that bfloat16 does not have
_INFINITY = 0x7F800000  # its bits; those of what is no number are larger
_CHUNK = 2**22  # numbers at a time: their random bits take 16 MiB


@torch.no_grad()
def spread_in_cells_(weights: Tensor, seed: int) -> Tensor:
    """Move float32 weights that are bfloat16 numbers to random places among those that round to the same, in place.

    Rounded, nothing has changed. But a weight that then moves by a share s of the distance to the next bfloat16 number
    gets there with probability s, so that the rounded weights move as the float32 ones do, on average over weights:
    it is stochastic rounding (Gupta et al. 2015, arXiv 1502.02551, section 3.1) with dice that are cast once, for all
    steps to come, so that no step adds noise of its own. Zeros stay as they are, and so do infinite ones, what is no
    number, and weights that have a place already.

    Args:
        weights: float32, contiguous, of any shape and device.
        seed: of the places: another one for other weights, the same one for copies of the same weights.

    >>> weights = spread_in_cells_(torch.full((1000,), 0.25), seed=0)
    >>> weights.unique().numel() > 900, weights.bfloat16().unique().tolist()
    (True, [0.25])
    >>> bit = 2**-9
    >>> moved = (weights + bit / 4).bfloat16().float() - 0.25
    >>> sorted(set((moved / bit).tolist())), 0.2 < float((moved / bit).mean()) < 0.3
    ([0.0, 1.0], True)
    """
    if weights.dtype != torch.float32:
        raise TypeError(f"only float32 weights lie between bfloat16 numbers, not {weights.dtype}")
    generator = torch.Generator(weights.device).manual_seed(seed)
    half = 2 ** (_LOST_BITS - 1)
    for bits in weights.view(-1).view(torch.int32).split(_CHUNK):
        moves = torch.randint(1 - half, half, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
        placed = bits & (2**_LOST_BITS - 1) != 0
        magnitude = bits & 0x7FFFFFFF
        bits += moves.masked_fill_(placed | (magnitude == 0) | (magnitude >= _INFINITY), 0)
    return weights
