"""One optimizer step's forward and backward passes over one rank's lists. No optimizer, no process group.

A pass is one packed row, forward and backward. Short lists share a row. A list longer than the row limit is split into
rows that repeat the prompt; its loss needs the log-probabilities of all rows before any row's gradient, so it takes two
passes: without gradient, then row by row with `d loss / d log-probability` as fixed weights. The gradient is the same.

Every rank makes the same number of passes: `pass_counts` tells this rank's, the caller takes the maximum over ranks,
and a rank that has fewer makes empty ones, so that collectives inside a pass (ZeRO-3) stay in step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from larpo.baselines import ListBatch
from larpo.bound_objective import BoundObjective
from larpo.log_probs import PackedLogProbs
from larpo.packing import PackedRow, fill_rows, join_rows, pack_list, split_list
from larpo.types import Candidate, CandidateList, stable_hash

Scorer = Callable[[PackedRow], PackedLogProbs]


@dataclass(frozen=True, eq=False)
class PackedList:
    """A list to train on: its rows, the rewards [M], and the reference log-probabilities [M] where there is one.

    With `policy_is_reference` the policy has the reference's weights: its own pass gives them, without gradient.
    """

    source: CandidateList
    rows: tuple[PackedRow, ...]
    rewards_M: Tensor
    reference_M: Tensor | None
    policy_is_reference: bool = False

    def reference_of(self, log_probs_M: Tensor) -> Tensor | None:
        """The reference log-probabilities [M], given the policy's [M]."""
        if self.reference_M is not None:
            return self.reference_M.to(log_probs_M)
        return log_probs_M.detach() if self.policy_is_reference else None


@dataclass(frozen=True, eq=False)
class ListOutcome:
    """What a step computed of one list, detached: for metrics."""

    source: CandidateList
    rows: int  # that begin with it: 0 for one that another shared its row with
    loss: float
    log_probs_M: Tensor
    reference_M: Tensor | None
    scores_M: Tensor
    token_log_probs_N: Tensor
    token_entropies_N: Tensor


@dataclass(frozen=True, eq=False)
class Turn:
    """One pass: a row, and of which list by number, and which row of that list, each of its parts is."""

    row: PackedRow
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PassCounts:
    """Passes of one rank: scoring (split lists only, no gradient) and backward."""

    scoring: int
    backward: int


def rows_of(item: CandidateList, row_tokens: int) -> tuple[PackedRow, ...]:
    """The list's rows; DataError when the prompt and one response exceed `row_tokens`."""
    responses = [candidate.token_ids for candidate in item.candidates]
    return tuple(split_list(item.prompt_token_ids, responses, row_tokens))


def turns(rows: Sequence[Sequence[PackedRow]], shared_tokens: int) -> list[Turn]:
    """The passes over lists with these rows, in order: whole lists share a row of up to `shared_tokens` tokens."""
    parts = [(number, place) for number, of_list in enumerate(rows) for place in range(len(of_list))]
    # The part of a split list fills a row: its loss is another.
    lengths = [
        len(rows[number][place].input_ids_T) if len(rows[number]) == 1 else max(1, shared_tokens)
        for number, place in parts
    ]
    groups = [tuple(parts[index] for index in group) for group in fill_rows(lengths, shared_tokens)]
    return [Turn(join_rows([rows[number][place] for number, place in group]), group) for group in groups]


def pass_counts(lists: Sequence[PackedList], shared_tokens: int = 0) -> PassCounts:
    split = sum(len(item.rows) for item in lists if len(item.rows) > 1)
    return PassCounts(scoring=split, backward=len(turns([item.rows for item in lists], shared_tokens)))


@torch.no_grad()
def list_log_probs(scorer: Scorer, rows: Sequence[PackedRow]) -> Tensor:
    """`log pi(y_m | x)`, [M], of a list's rows, without gradient."""
    return torch.cat([scorer(row).log_probs_M for row in rows])


@torch.no_grad()
def lists_log_probs(scorer: Scorer, rows: Sequence[Sequence[PackedRow]], shared_tokens: int) -> list[Tensor]:
    """The same, [M] each, of several lists, by the passes that `turns` makes of their rows."""
    found: list[list[Tensor]] = [[] for _ in rows]
    for turn in turns(rows, shared_tokens):
        for (number, _), result in zip(turn.parts, scorer(turn.row).of_lists(turn.row), strict=True):
            found[number].append(result.log_probs_M)
    return [torch.cat(parts) for parts in found]


def stored_references(candidates: Sequence[Candidate], name: str) -> list[float | None]:
    """Stored reference log-probabilities, M of them; None where it is missing or another reference gave it."""
    return [c.reference_log_prob if c.reference_fingerprint == name else None for c in candidates]


def empty_row() -> PackedRow:
    """The smallest row there is: for passes that only keep a rank in step."""
    return pack_list([0], [[0]])


def mismatched_rows(lists: Sequence[CandidateList]) -> list[PackedRow]:
    """Each prompt with one response of the next list, the last with one of the first; none of a single list.

    What KTO estimates its divergence on: text that the policy was not asked for.
    """
    if len(lists) < 2:
        return []
    rows = []
    for item, other in zip(lists, [*lists[1:], lists[0]], strict=True):
        response = other.candidates[stable_hash(item.id) % len(other.candidates)]
        rows.append(pack_list(item.prompt_token_ids, [response.token_ids]))
    return rows


def step_lists(
    policy: Scorer,
    lists: Sequence[PackedList],
    *,
    objective: BoundObjective,
    divisor: float,
    passes: PassCounts,
    backward: Callable[[Tensor, bool], None],
    divergence: Tensor | None = None,
    shared_tokens: int = 0,
) -> list[ListOutcome]:
    """Forward and backward over this rank's lists.

    Args:
        policy: the log-probabilities of a row, with gradient.
        divisor: lists of the global batch (times whatever the caller's reduction multiplies by).
        passes: the maximum of `pass_counts` over ranks.
        backward: called `passes.backward` times with a scalar loss and whether it is the last one.
        divergence: scalar, for an objective that needs it.
        shared_tokens: whole lists share a row of up to so many tokens.
    Returns:
        an outcome for each list.
    """
    split_log_probs = _score_split_lists(policy, lists, passes.scoring)
    losses_of = [partial(list_loss, objective, item, divergence) for item in lists]
    found: list[list[PackedLogProbs]] = [[] for _ in lists]
    made, rows = 0, [0] * len(lists)
    for turn in turns([item.rows for item in lists], shared_tokens):
        rows[turn.parts[0][0]] += 1
        results = policy(turn.row).of_lists(turn.row)
        losses = []
        for (number, place), result in zip(turn.parts, results, strict=True):
            losses.append(_part_loss(losses_of[number], lists[number], place, split_log_probs.get(number), result))
            found[number].append(result.detached())
        made += 1
        backward(torch.stack(losses).sum() / divisor, made == passes.backward)
    for extra in range(made, passes.backward):
        nothing = policy(empty_row()).log_probs_M.sum() * 0.0
        backward(nothing, extra + 1 == passes.backward)
    return [
        _outcome(item, count, parts, objective, loss_of)
        for item, count, parts, loss_of in zip(lists, rows, found, losses_of, strict=True)
    ]


def _part_loss(
    loss_of: Callable[[Tensor], Tensor], item: PackedList, place: int, whole_M: Tensor | None, result: PackedLogProbs
) -> Tensor:
    """What has the gradient of a list's loss in one of its rows, given all its log-probabilities where it is split."""
    if whole_M is None:
        return loss_of(result.log_probs_M)
    return (result.log_probs_M * _of_row(item, _gradient(loss_of, whole_M), place)).sum()


def list_loss(objective: BoundObjective, item: PackedList, divergence: Tensor | None, log_probs_M: Tensor) -> Tensor:
    """The loss of one list, a scalar, from its candidates' log-probabilities [M]."""
    device, reference_M = log_probs_M.device, item.reference_of(log_probs_M)
    batch = ListBatch(
        log_probs_LM=log_probs_M[None],
        rewards_LM=item.rewards_M[None].to(device),
        lengths_LM=torch.tensor([[length for row in item.rows for length in row.response_lengths]], device=device),
        reference_LM=None if reference_M is None else reference_M[None],
        divergence=None if divergence is None else divergence.to(device),
    )
    return objective.loss(batch).squeeze(0)


def _score_split_lists(policy: Scorer, lists: Sequence[PackedList], passes: int) -> dict[int, Tensor]:
    """Log-probabilities [M] of the lists that have several rows, by their number."""
    log_probs, made = {}, 0
    for number, item in enumerate(lists):
        if len(item.rows) > 1:
            made += len(item.rows)
            log_probs[number] = list_log_probs(policy, item.rows)
    for _ in range(made, passes):
        list_log_probs(policy, [empty_row()])
    return log_probs


def _gradient(loss_of: Callable[[Tensor], Tensor], log_probs_M: Tensor) -> Tensor:
    log_probs_M = log_probs_M.detach().requires_grad_()
    (gradient_M,) = torch.autograd.grad(loss_of(log_probs_M), log_probs_M)
    return gradient_M


def _of_row(item: PackedList, values_M: Tensor, row_number: int) -> Tensor:
    """The part of a per-candidate tensor that belongs to one row."""
    sizes = [len(row.response_lengths) for row in item.rows]
    return values_M.split(sizes)[row_number]


def _outcome(
    item: PackedList,
    rows: int,
    parts: Sequence[PackedLogProbs],
    objective: BoundObjective,
    loss_of: Callable[[Tensor], Tensor],
) -> ListOutcome:
    log_probs_M = torch.cat([part.log_probs_M for part in parts])
    reference_M = item.reference_of(log_probs_M)
    return ListOutcome(
        source=item.source,
        rows=rows,
        loss=float(loss_of(log_probs_M)),
        log_probs_M=log_probs_M.cpu(),
        reference_M=None if reference_M is None else reference_M.cpu(),
        scores_M=objective.scores(log_probs_M, reference_M).cpu(),
        token_log_probs_N=torch.cat([part.token_log_probs_N for part in parts]).cpu(),
        token_entropies_N=torch.cat([part.token_entropies_N for part in parts]).cpu(),
    )
