"""`gpu`: packed lists against a row a response and against all pairs, on the layer shapes of larger models.

Needs torch and transformers alone. The weights are random, so every side computes the same loss of the same list, and
that is checked: LambdaRank without weights, whose sum over pairs is what the pairs' side adds up (Jin 2025, Eq. 15).
All responses of a list have one length, so that no side pays for padding. Compared are, forward and backward,

- a packed row (block masks, chunked log-probabilities) with a padded batch of one row a response, and with the rows of
  all pairs, some in a pass, both with the model's own attention and full logits;
- on the packed row, the attention that larpo chooses (FlexAttention's block masks on CUDA) with a dense mask;
- log-probabilities in chunks with a full logit tensor, from given hidden states.

Attention with a dense mask is SDPA's; of a model that caps attention scores (Gemma-2) it is transformers' "eager",
since SDPA leaves the cap out. The rate that shares are of is that of one large matrix product in the same type. A side
for which the device has too little memory is left out, and a note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from larpo.attention import attention_implementation
from larpo.errors import ConfigError
from larpo.log_probs import chunked_log_probs
from larpo.types import CandidateList
from scripts.benchmarks.gpu_shapes import MODELS, Layout, check_lengths, operations, sized
from scripts.benchmarks.gpu_sides import CHUNK_TOKENS, all_pairs, dense_attention, packed_row, row_a_response
from scripts.benchmarks.lists import random_list
from scripts.benchmarks.logits import full_log_probs
from scripts.benchmarks.measuring import BenchmarkError, Comparison, Result, Series, in_turns, rates, seconds

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # of the sides' losses, relative
MATRIX = {"cuda": 8192, "cpu": 1024}  # rows and columns of the product that is timed
PRODUCTS = 10  # timed as one


@dataclass(frozen=True)
class Work:
    """What is measured, and where. `shape`: tokens of prompt and response."""

    device: str = "cuda"
    sizes: tuple[int, ...] = (4, 8)  # candidates of a list
    shape: tuple[int, int] = (512, 512)
    layers: int = 8
    width_divisor: int = 1
    repetitions: int = 5

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32


@dataclass(frozen=True, eq=False)
class Side:
    """One way to the loss of a list and its gradient. `run` makes both passes and returns the loss."""

    label: str
    layout: Layout
    attention: str
    run: Callable[[Any, CandidateList], float]


def run_gpu(work: Work) -> Result:
    """All comparisons on each of the models' shapes.

    Raises ConfigError without the device or for sizes that no model takes, BenchmarkError when losses differ.
    """
    for candidates in work.sizes:
        check_lengths(*work.shape, candidates)
    if work.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "gpu: needs a GPU that torch can use through CUDA, and there is none; run it where there is one, or try the"
            " code with --device cpu --layers 1 --width-divisor 16 --shape 32,16"
        )
    rate = matrix_rate(work)
    notes = [f"matrix rate {rate / 1e12:.4g} TFLOP/s in {_name(work.dtype)}"]
    rows: list[Comparison] = []
    for name in MODELS:
        fields = sized(name, work.layers, work.width_divisor)
        model = random_model(fields, work)
        for candidates in work.sizes:
            item = random_list(0, candidates, fields["vocab_size"], **_tokens(work))
            part = _Part(f"{name}, k = {candidates}", work, fields, model, item, rate)
            rows += part.layouts(notes)
            rows += part.attentions(notes)
        try:
            rows += _chunks(name, work, fields, model)
        except torch.OutOfMemoryError:
            notes.append(f"{name}: full logits need more memory than there is")
        del model, part
    if work.device != "cuda":
        notes.append("peak memory is told on CUDA alone")
    return Result("gpu", _settings(work), tuple(rows), tuple(notes))


def _settings(work: Work) -> dict[str, Any]:
    chip = torch.cuda.get_device_name() if work.device == "cuda" else "cpu"
    return {**vars(work), "dtype": _name(work.dtype), "chip": chip, "torch": torch.__version__}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tokens(work: Work) -> dict[str, int]:
    return dict(zip(("prompt_tokens", "response_tokens"), work.shape, strict=True))


def matrix_rate(work: Work) -> float:
    """Floating-point operations a second of a large product of two square matrices."""
    size = MATRIX[work.device]
    left, right = (torch.randn(size, size, device=work.device).to(work.dtype) for _ in range(2))

    def product() -> float:
        return _timed(work.device, lambda: [left @ right for _ in range(PRODUCTS)])

    found = in_turns({"product": product}, work.repetitions, warm_ups=3)
    return 2.0 * size**3 * PRODUCTS / found["product"].median


def random_model(fields: dict[str, Any], work: Work) -> Any:
    """A causal language model of that configuration with random weights, on the device, in training mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**fields)
    torch.manual_seed(0)
    with torch.device(work.device):
        return AutoModelForCausalLM.from_config(config, dtype=work.dtype).train()


@dataclass(frozen=True, eq=False)
class _Part:
    """One model and one length of list."""

    what: str
    work: Work
    fields: dict[str, Any]
    model: Any
    item: CandidateList
    rate: float

    def layouts(self, notes: list[str]) -> list[Comparison]:
        """Unique tokens a second, peaks and shares of the matrix rate, packed against each of the two others."""
        plain = dense_attention(self.model.config)
        prompt, response, count = *self.work.shape, len(self.item.candidates)
        rows = Side("a row a response", Layout.rows(prompt, response, count), plain, row_a_response)
        pairs = Side("all pairs", Layout.rows(prompt, response, count * (count - 1)), plain, all_pairs)
        packed = self._packed()
        found, peaks = self._measured([packed, rows, pairs], notes)
        unique = prompt + count * response
        result = []
        for other in (side for side in (rows, pairs) if side.label in found):
            ours, theirs = found[packed.label], found[other.label]
            fast, slow = (rates(series.label, series.values, unique) for series in (ours, theirs))
            result.append(Comparison(f"{self.what}: unique tokens", "tokens/s", fast, slow))
            share, less = self._share(packed, ours), self._share(other, theirs)
            result.append(Comparison(f"{self.what}: share of the matrix rate", "", share, less))
            result += self._memory(peaks, packed, other)
        return result

    def attentions(self, notes: list[str]) -> list[Comparison]:
        """The packed row with larpo's choice of attention against the same with a dense mask."""
        packed, name = self._packed(), dense_attention(self.model.config)
        dense = Side(f"{name} with a dense mask", packed.layout, name, packed_row)
        found, peaks = self._measured([packed, dense], notes)
        if dense.label not in found:
            return []
        row = Comparison(f"{self.what}: attention", "s", found[packed.label], found[dense.label])
        return [row, *self._memory(peaks, packed, dense)]

    def _packed(self) -> Side:
        chosen = attention_implementation(self.model.config, self.work.device)
        layout = Layout.packed(*self.work.shape, len(self.item.candidates))
        return Side(f"packed, {chosen}", layout, chosen, packed_row)

    def _share(self, side: Side, durations: Series) -> Series:
        return rates(durations.label, durations.values, operations(self.fields, side.layout) / self.rate)

    def _measured(self, sides: Sequence[Side], notes: list[str]) -> tuple[dict[str, Series], dict[str, float]]:
        """Seconds and peaks by label, once the sides' losses and gradients have been compared.

        Of the sides after the first, those for which memory is not enough are in neither.
        """
        outcomes, peaks = {}, {}
        for side in sides:
            try:
                self._run(side)  # compiles what is compiled
                self.model.zero_grad(set_to_none=True)
                peaks[side.label], loss = _peak_gib(self.work.device, partial(self._run, side))
                outcomes[side.label] = (loss, self._gradient_norm())
            except torch.OutOfMemoryError:
                if side is sides[0]:
                    raise
                notes.append(f"{self.what}: {side.label} needs more memory than there is")
                self.model.zero_grad(set_to_none=True)
        found = {}
        if len(outcomes) > 1:
            notes.append(f"{self.what}: {agreement(outcomes, TOLERANCES[self.work.dtype])}")
            fit = [side for side in sides if side.label in outcomes]
            clocks = {side.label: partial(_timed, self.work.device, partial(self._run, side)) for side in fit}
            found = in_turns(clocks, self.work.repetitions)
        self.model.zero_grad(set_to_none=True)
        return found, peaks

    def _run(self, side: Side) -> float:
        self.model.set_attn_implementation(side.attention)
        self.model.zero_grad(set_to_none=True)
        return side.run(self.model, self.item)

    def _gradient_norm(self) -> float:
        gradients = [p.grad.float().norm() for p in self.model.parameters() if p.grad is not None]
        return torch.stack(gradients).norm().item()

    def _memory(self, peaks: dict[str, float], ours: Side, other: Side) -> list[Comparison]:
        if self.work.device != "cuda":
            return []
        peak, larger = (Series(side.label, (peaks[side.label],)) for side in (ours, other))
        return [Comparison(f"{self.what}: peak beyond the weights", "GiB", peak, larger)]


def agreement(outcomes: dict[str, tuple[float, float]], tolerance: float) -> str:
    """How near losses and gradient norms by side are to the first side's, as a sentence.

    Raises BenchmarkError when either is further from it than the tolerance, relative.
    """
    first, *others = outcomes.values()
    apart = [max(abs(o[part] - first[part]) / max(abs(first[part]), 1e-9) for o in others) for part in (0, 1)]
    if not max(apart) <= tolerance:
        raise BenchmarkError(
            f"losses and gradient norms {outcomes} are {apart[0]:.1e} and {apart[1]:.1e} apart, over {tolerance:g}: the"
            " sides do not do the same work"
        )
    return f"losses at most {apart[0]:.1e} apart, gradient norms {apart[1]:.1e}, relative ({', '.join(outcomes)})"


def _chunks(name: str, work: Work, fields: dict[str, Any], model: Any) -> list[Comparison]:
    """Log-probabilities of given hidden states, in chunks and through a full logit tensor, and their gradients."""
    count = max(work.sizes) * work.shape[1]
    head, softcap = model.get_output_embeddings(), fields.get("final_logit_softcapping")
    generator = torch.Generator().manual_seed(0)
    states_NH = torch.randn(count, fields["hidden_size"], generator=generator)
    hidden_NH = states_NH.to(work.device, work.dtype).requires_grad_()
    targets_N = torch.randint(fields["vocab_size"], (count,), generator=generator).to(work.device)

    def in_chunks() -> Tensor:
        return chunked_log_probs(head, hidden_NH, targets_N, chunk_size=CHUNK_TOKENS, softcap=softcap)[0]

    def at_once() -> Tensor:
        return full_log_probs(head, hidden_NH, targets_N, softcap)

    def run(log_probs: Callable[[], Tensor]) -> float:
        hidden_NH.grad = head.weight.grad = None
        total = log_probs().sum()
        total.backward()
        return total.item()

    sides = {f"chunks of {CHUNK_TOKENS}": in_chunks, "full logits": at_once}
    peaks = {label: _peak_gib(work.device, partial(run, side))[0] for label, side in sides.items()}
    clocks = {label: partial(_timed, work.device, partial(run, side)) for label, side in sides.items()}
    ours, other = in_turns(clocks, work.repetitions).values()
    head.weight.grad = None
    what = f"{name}: log-probabilities of {count} tokens"
    rows = [Comparison(what, "s", ours, other)]
    if work.device == "cuda":
        peak, larger = (Series(label, (value,)) for label, value in peaks.items())
        rows.append(Comparison(f"{what}: peak", "GiB", peak, larger))
    return rows


def _timed(device: str, work: Callable[[], Any]) -> float:
    """Seconds until the device has done what `work` asks of it."""

    def done() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    if device == "cuda":
        torch.cuda.synchronize()
    return seconds(done)


def _peak_gib(device: str, work: Callable[[], float]) -> tuple[float, float]:
    """The most that `work` held on a CUDA device beyond what was there before (elsewhere nan), and what it returns."""
    if device != "cuda":
        return float("nan"), work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30, value
