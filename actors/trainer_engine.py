"""One rank's DeepSpeed engine: steps, weights out, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from actors.reference import AdapterReference, Reference, WholeReference
from actors.work import StepWork
from actors.zero_engine import ZeroEngine, place_worker
from larpo.attention import attention_implementation
from larpo.bound_objective import bind
from larpo.config import Config
from larpo.list_step import (
    PackedList,
    PassCounts,
    empty_row,
    list_log_probs,
    lists_log_probs,
    mismatched_rows,
    pass_counts,
    rows_of,
    step_lists,
    stored_references,
    turns,
)
from larpo.log_probs import PackedLogProbs, check_packed
from larpo.lora import add_kept_adapter, with_lora
from larpo.packed_scorer import PackedScorer, has_dropout, scored
from larpo.packing import PackedRow
from larpo.policy import base_id, load_policy
from larpo.step_metrics import SUMS, rank_sums, step_metrics
from larpo.types import CandidateList, stable_hash


class TrainerEngine(ZeroEngine):
    """The policy under DeepSpeed ZeRO, and the frozen reference."""

    def __init__(self, config: Config, policy_path: Path, rank: int, ranks: int) -> None:
        self._config, self._policy_path = config, policy_path
        self._rank = rank
        training = config.training
        share = 1.0 if config.samplers.sleep else training.resources_per_worker.get("GPU", 1.0)
        device, idle_cores = place_worker(training.threads, share)
        torch.manual_seed(config.run.seed)
        self._objective = bind(config.objective)
        model = with_lora(self._load_model(device), config.policy.lora)
        if config.policy.lora.rank and self._objective.spec.reference and config.objective.reference == "iteration":
            add_kept_adapter(model)
        check_packed(model)
        self._has_dropout = has_dropout(model)
        if training.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        super().__init__(
            PackedScorer(model, training.chunk_tokens),
            optimizer=training.optimizer,
            dtype=config.policy.dtype,
            zero_stage=training.stage,
            ranks=ranks,
            seed=config.run.seed,
            idle_cores=idle_cores,
        )
        self._reference: Reference | None = None
        self._shared_tokens = training.shared_row_tokens
        self._newest_divergence = torch.zeros((), dtype=torch.float64, device=device)

    def _load_model(self, device: torch.device) -> Any:
        policy = self._config.policy
        from transformers import AutoConfig

        model_config = AutoConfig.from_pretrained(self._policy_path, trust_remote_code=policy.trust_remote_code)
        model = load_policy(
            self._policy_path,
            dtype=policy.dtype,
            attn_implementation=attention_implementation(model_config, device.type),
            trust_remote_code=policy.trust_remote_code,
        )
        return model.to(device)

    @property
    def model(self) -> Any:
        return self._engine.module.model

    def _score(self, row: PackedRow) -> PackedLogProbs:
        self.use_idle_cores()
        return scored(self._engine, row)

    def _reference_score(self, row: PackedRow) -> PackedLogProbs:
        assert self._reference is not None
        self.use_idle_cores()
        return self._reference.score(row)

    def load_reference(self, weights: Path | None) -> None:
        """The initial model, or the published weights in `weights`. An objective without a reference has none."""
        if not self._objective.spec.reference:
            return
        if self._reference is None:
            self._reference = self._new_reference()
        if weights is not None:
            self._reference.fill(weights)

    def _new_reference(self) -> Reference:
        if self._lora:
            return AdapterReference(self._engine, self._config)
        return WholeReference(self._load_model(self.device), self._config, self._ranks)

    def step(
        self, work: StepWork, rate: float, reference_name: str, *, on_policy: bool, policy_is_reference: bool = False
    ) -> tuple[dict[str, float], dict[str, tuple[float, str]]]:
        """One optimizer step; returns the global metrics, and the reference log-probabilities newly computed.

        `policy_is_reference`: no step was taken since the reference was taken from the policy, whose own passes then
        give the reference's log-probabilities, unless dropout makes them others.
        """
        self.set_rate(rate)
        self.model.train()
        self._engine.module.step_seed = stable_hash(self._config.run.seed, work.position)
        lists, computed = self._packed(work.lists, reference_name, policy_is_reference and not self._has_dropout)
        divergence = self.divergence(work.lists)
        own_passes = pass_counts(lists, self._shared_tokens)
        passes = PassCounts(*self.maximum([own_passes.scoring, own_passes.backward]))
        outcomes = step_lists(
            self._score,
            lists,
            objective=self._objective,
            divisor=self._divisor(work) / self._ranks,  # DeepSpeed takes the mean over ranks
            passes=passes,
            backward=self.backward,
            divergence=divergence,
            shared_tokens=self._shared_tokens,
        )
        computed |= {
            candidate.id: (float(value), reference_name)
            for item, outcome in zip(lists, outcomes, strict=True)
            if item.policy_is_reference
            for candidate, value in zip(item.source.candidates, outcome.log_probs_M, strict=True)
        }
        norm, applied = self.apply()
        own, stalest = rank_sums(outcomes, work.publication)
        sums = dict(zip(SUMS, self.total([own[name] for name in SUMS]), strict=True))
        per = self._objective.spec.per
        metrics = step_metrics(sums, self.maximum([stalest])[0], on_policy=on_policy, per=per)
        metrics |= {
            "train/grad_norm": norm,
            "train/learning_rate": rate,
            "train/bad_steps": float(not applied),
            "train/memory_gib": self.memory_gib(),
            "train/threads": float(torch.get_num_threads()),
        }
        return metrics, computed

    def _divisor(self, work: StepWork) -> float:
        """What the sum of the global batch's losses is divided by: its lists, or their response tokens."""
        if self._objective.spec.per == "list":
            return work.list_count
        tokens = sum(len(candidate.token_ids) for item in work.lists for candidate in item.candidates)
        return self.total([tokens])[0]

    @torch.no_grad()
    def log_probs(self, lists: tuple[CandidateList, ...], reference_name: str) -> list[tuple[PackedList, Tensor]]:
        """This rank's lists, packed with their reference, and the policy's log-probabilities [M] of each; no step."""
        self.model.eval()
        packed, _ = self._packed(lists, reference_name)
        rows = [item.rows for item in packed]
        passes = len(turns(rows, self._shared_tokens))
        empty_passes = self.maximum([passes])[0] - passes  # agreed on before the first: under ZeRO-3 each is collective
        found = [log_probs_M.cpu() for log_probs_M in lists_log_probs(self._score, rows, self._shared_tokens)]
        for _ in range(empty_passes):
            list_log_probs(self._score, (empty_row(),))
        return list(zip(packed, found, strict=True))

    def divergence(self, lists: tuple[CandidateList, ...]) -> Tensor | None:
        """What an objective that needs it takes for the policy's divergence from the reference; else None."""
        return self._divergence(lists) if self._objective.spec.divergence else None

    def _packed(
        self, lists: tuple[CandidateList, ...], reference_name: str, policy_is_reference: bool = False
    ) -> tuple[list[PackedList], dict[str, tuple[float, str]]]:
        """Rows of this rank's lists with their reference log-probabilities: the stored ones, or computed now.

        None are computed where the policy's own passes will give them.
        """
        needed = self._objective.spec.reference
        passes = needed and not policy_is_reference
        rows = [rows_of(item, self._config.training.row_tokens) for item in lists]
        empty_passes = self._agree_on_passes([turn.row for turn in turns(rows, self._shared_tokens)])
        values = [stored_references(item.candidates, reference_name) for item in lists]
        computed = self._fill(values, lists, rows) if passes else {}
        for _ in range(empty_passes if passes else 0):
            self._reference_log_probs((empty_row(),))
        packed = [
            PackedList(
                source=item,
                rows=item_rows,
                rewards_M=torch.tensor([candidate.reward for candidate in item.candidates]),
                reference_M=None if not needed or None in of_list else torch.tensor(of_list),
                policy_is_reference=needed and None in of_list,
            )
            for item, item_rows, of_list in zip(lists, rows, values, strict=True)
        ]
        return packed, {candidate: (value, reference_name) for candidate, value in computed.items()}

    def _fill(
        self,
        values: Sequence[list[float | None]],
        lists: Sequence[CandidateList],
        rows: Sequence[Sequence[PackedRow]],
    ) -> dict[str, float]:
        """Put the reference's log-probabilities where a list has None; returns them by candidate.

        Under ZeRO-3 whole lists are scored, for the ranks have agreed on passes over all rows.
        """
        sharded, row_tokens = self._config.training.stage == 3, self._config.training.row_tokens
        gaps = [[n for n, value in enumerate(of_list) if sharded or value is None] for of_list in values]
        asked = [number for number, places in enumerate(gaps) if places]
        scored_rows = [
            rows[number]
            if len(gaps[number]) == len(values[number])
            else rows_of(_only(lists[number], gaps[number]), row_tokens)
            for number in asked
        ]
        computed: dict[str, float] = {}
        for number, found in zip(asked, self._references_of(scored_rows), strict=True):
            for place, value in zip(gaps[number], found.tolist(), strict=True):
                values[number][place] = computed[lists[number].candidates[place].id] = value
        return computed

    def _references_of(self, rows: Sequence[Sequence[PackedRow]]) -> list[Tensor]:
        """Reference log-probabilities [M] of lists with these rows."""
        if not rows:
            return []
        return [found.cpu() for found in lists_log_probs(self._reference_score, rows, self._shared_tokens)]

    def _reference_log_probs(self, rows: Sequence[PackedRow]) -> Tensor:
        return list_log_probs(self._reference_score, rows)

    def _divergence(self, lists: Sequence[CandidateList]) -> Tensor:
        """Mean log-ratio of policy and reference on mismatched rows of all ranks (Ethayarajh 2024, section 4.1)."""
        rows = mismatched_rows(lists)
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number in range(self.maximum([len(rows)])[0]):
            row = rows[number] if number < len(rows) else empty_row()
            ratio = list_log_probs(self._score, (row,)) - self._reference_log_probs((row,))
            if number < len(rows):
                total += torch.stack([ratio.sum(), torch.ones_like(ratio).sum()]).to(total)
        torch.distributed.all_reduce(total)
        if total[1] > 0:  # else no rank has two lists: what the batch before came to
            self._newest_divergence = total[0] / total[1]
        return self._newest_divergence

    def _agree_on_passes(self, rows: list[PackedRow]) -> int:
        """Under ZeRO-3, where each call of a module is collective, every rank makes as many passes of as many calls.

        Returns the empty passes that this rank has to make beside its rows.
        """
        if self._config.training.stage < 3:
            return 0
        chunks = [self._engine.module.chunks_of(row) for row in rows]
        passes, head_calls = self.maximum([len(rows), max(chunks, default=1)])
        self._engine.module.head_calls = head_calls
        if self._reference is not None:
            self._reference.head_calls = head_calls
        return passes - len(rows)

    def leave(self) -> None:
        """The same, and the reference."""
        if self._reference is not None:
            self._reference.move("cpu")
        super().leave()

    def come_back(self) -> None:
        super().come_back()
        if self._reference is not None:
            self._reference.move(str(self.device))

    def write_policy(self, folder: Path, version: int) -> None:
        """Write the policy to `folder` as that weight version; every rank calls it."""
        bucket, base = self._config.weights.bucket_mib, base_id(self._config.policy.model)
        self.write(folder, bucket_mib=bucket, rank=self._rank, base=base, version=version)


def _only(item: CandidateList, places: Sequence[int]) -> CandidateList:
    return item.replace(candidates=tuple(item.candidates[place] for place in places))
