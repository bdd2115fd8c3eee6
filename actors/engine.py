"""The thin adapter around vLLM: what this project touches of its API stands here, and in what vLLM imports itself,
`weight_engine` and `cpu_executor`."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larpo.config import Config
from larpo.errors import CheckpointError, SamplerError
from larpo.types import FinishReason, VersionSpan

CPU_BLOCK = 32  # tokens: the smallest block of the KV cache that vLLM's CPU kernels take
PREPARED_LOOK_S = 0.02  # between two questions whether new weights are loaded
PAUSE_SETTLES_S = 0.02  # that vLLM's pause takes after the engine has stopped, for outputs on their way
BACKEND = "larpo_shared_file"  # our weight-transfer backend in vLLM's registry
EXTENSION = "actors.weight_engine.WeightTransferExtension"  # imported by vLLM in each worker; registers the backend


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is started with, beside the model folder."""

    dtype: str  # bfloat16, float32 or float16
    trust_remote_code: bool
    tensor_parallel_size: int
    max_model_len: int
    max_num_seqs: int
    memory_fraction: float
    cpu_kv_cache_gib: int
    cpu_cores: str
    enforce_eager: bool
    sleep: bool = False
    loads_beside: bool = True  # new weights, where the model allows it

    @staticmethod
    def of(config: Config) -> EngineOptions:
        samplers, policy = config.samplers, config.policy
        return EngineOptions(
            dtype=policy.dtype,
            trust_remote_code=policy.trust_remote_code,
            tensor_parallel_size=samplers.tensor_parallel_size,
            max_model_len=samplers.max_model_len,
            max_num_seqs=samplers.max_num_seqs,
            memory_fraction=samplers.memory_fraction,
            cpu_kv_cache_gib=samplers.cpu_kv_cache_gib,
            cpu_cores=samplers.cpu_cores,
            enforce_eager=samplers.enforce_eager,
            sleep=samplers.sleep,
            loads_beside=config.weights.beside,
        )


@dataclass(frozen=True)
class Sample:
    """One response as the engine gave it; `log_probs` are raw, before temperature."""

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...]


class Engine:
    """One vLLM AsyncLLM with our weight-transfer backend."""

    def __init__(self, llm: Any, loads_beside: bool) -> None:
        self._llm, self._loads_beside = llm, loads_beside
        self._is_new = True
        self._to_load: tuple[dict[str, Any], ...] = ()  # buckets that nothing has loaded yet
        self.first_token_at: float | None = None  # unix seconds

    @staticmethod
    async def start(model: Path, options: EngineOptions) -> Engine:
        """Load the model; seconds on a CPU to minutes on a large GPU model."""
        shared = engine_arguments(model, options)
        from vllm.config import WeightTransferConfig
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(**shared, weight_transfer_config=WeightTransferConfig(backend=BACKEND))
        llm = AsyncLLM.from_engine_args(arguments)
        await llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info={}))
        await llm.collective_rpc("larpo_die_with", args=(os.getpid(),))
        await llm.update_weight_version("0")
        return Engine(llm, options.loads_beside)

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        *,
        temperature: float,
        max_tokens: int,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
    ) -> Sample:
        """One response; no truncation of the distribution, so that raw log-probabilities are the policy's.

        Raises SamplerError when the engine cut it off by an abort.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            stop=list(stop),
            stop_token_ids=list(stop_token_ids),
            ignore_eos=ignore_eos,
            logprobs=0,
            output_kind=RequestOutputKind.CUMULATIVE if self._is_new else RequestOutputKind.FINAL_ONLY,
        )
        self._is_new = False  # only the first request tells of every token
        prompt = {"prompt_token_ids": list(prompt_token_ids)}
        newest: Any = None
        async for result in self._llm.generate(prompt, params, request_id):
            self.first_token_at = self.first_token_at or time.time()
            newest = result.outputs[0]
        reason = newest and newest.finish_reason
        if reason not in ("stop", "length"):
            raise SamplerError(f"request {request_id} got finish reason {reason}")
        return _sample(newest)

    async def prepare_weights(self, bucket_files: Sequence[Path], *, partial: bool = False) -> bool:
        """Load new weights beside those in use, where the options and the model allow it (`weight_twin`), and return
        True; else `swap_weights` loads them, and the files must stay until then.

        `partial`: layers without a tensor in the buckets keep what they have. Raises CheckpointError for weights that
        do not load; the engine goes on with those that it has.
        """
        paths = [str(path) for path in bucket_files]
        ask = self._llm.collective_rpc
        is_beside = self._loads_beside and all(await ask("larpo_prepare_weights", args=(paths,)))
        found: list[bool | str] = [not is_beside]  # of each worker
        while not all(found):
            await asyncio.sleep(PREPARED_LOOK_S)
            found = await ask("larpo_weights_are_prepared")
            if errors := [answer for answer in found if isinstance(answer, str)]:
                raise CheckpointError(errors[0])
        self._to_load = () if is_beside else tuple({"path": path, "partial": partial} for path in paths)
        return is_beside

    async def swap_weights(self, version: int) -> float:
        """Put the prepared weights under the running requests: they are paused, kept, and go on under the new version.

        Returns the seconds in which nothing was generated: the step in progress ends before.

        After an error the engine stays paused, for its weights are neither the old nor the new: replace it.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.pause_generation(mode="keep")
        paused = time.monotonic() - PAUSE_SETTLES_S
        await self._llm.start_weight_update()
        for bucket in self._to_load:
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info=bucket))
        await self._llm.finish_weight_update(weight_version=str(version))
        await self._llm.resume_generation()
        return time.monotonic() - paused

    async def sleep(self) -> None:
        """Weights go to the CPU's memory, the KV cache is dropped; on a CPU vLLM holds requests, and frees nothing."""
        await self._llm.sleep(level=1, mode="wait")

    async def wake(self) -> None:
        """Raises SamplerError when a part of the engine did not come back."""
        if not await self._llm.wake_up():
            raise SamplerError("the engine did not wake up whole")

    async def check_health(self) -> None:
        """Raises when the engine's own processes have died."""
        await self._llm.check_health()

    def shutdown(self) -> None:
        self._llm.shutdown()


class PoolingEngine:
    """One vLLM LLM that gives sequences the output of a classification head, without its activation."""

    def __init__(self, model: Path, options: EngineOptions) -> None:
        shared = engine_arguments(model, options)
        from vllm import LLM
        from vllm.config import PoolerConfig

        pooler = PoolerConfig(task="classify", use_activation=False)
        self._llm: Any = LLM(**shared, runner="pooling", convert="classify", pooler_config=pooler)
        self._llm.collective_rpc("larpo_die_with", args=(os.getpid(),))

    def scores(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """The head's first output for each sequence. Raises what vLLM raises; an engine that died does so for ever.

        vLLM's own call would wait for ever where the engine's process dies under it: it runs beside a look at that.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        prompts = [{"prompt_token_ids": list(ids)} for ids in token_ids]
        if not prompts:
            return []
        found: Future[list[float]] = Future()
        threading.Thread(target=self._encode, args=(prompts, found), name="vllm-encode", daemon=True).start()
        while not wait([found], timeout=1.0).done:
            if self._llm.llm_engine.engine_core.resources.engine_dead:
                raise EngineDeadError
        return found.result()

    def _encode(self, prompts: Sequence[Any], found: Future[list[float]]) -> None:
        try:
            outputs = self._llm.encode(prompts, pooling_task="classify", use_tqdm=False)
            found.set_result([float(output.outputs.data[0]) for output in outputs])
        except BaseException as error:
            found.set_exception(error)

    def shutdown(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


def engine_arguments(model: Path, options: EngineOptions) -> dict[str, Any]:
    """vLLM's arguments for any engine of ours; sets the environment, so call it before importing vLLM."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = options.cpu_cores
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm.platforms import current_platform

    if options.enforce_eager and current_platform.is_cpu():
        # Else vLLM compiles its count of likelier tokens all the same: 12 s of a C++ compiler at the first answer.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    return {
        "model": str(model),
        "dtype": options.dtype,
        "trust_remote_code": options.trust_remote_code,
        "tensor_parallel_size": options.tensor_parallel_size,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "gpu_memory_utilization": options.memory_fraction,
        # On a CPU the share would be of all memory, the trainer's too: the size of the cache is given instead.
        "kv_cache_memory_bytes": options.cpu_kv_cache_gib * 2**30 if current_platform.is_cpu() else None,
        # Responses share whole blocks of their prompt. vLLM's own 128 is longer than many a prompt, which would be read
        # anew for each of its k responses.
        "block_size": CPU_BLOCK if current_platform.is_cpu() else None,
        "enforce_eager": options.enforce_eager,
        "enable_sleep_mode": options.sleep and not current_platform.is_cpu(),
        # An actor's GPUs lie on one node, and so do the processes of vLLM's own executor. Ray's executor wants a
        # placement group, and its workers may lie on other nodes, where neither our buckets in shared memory nor the
        # watch over orphans reach.
        "distributed_executor_backend": _executor(options.tensor_parallel_size, on_cpu=current_platform.is_cpu()),
        "worker_extension_cls": EXTENSION,
        "disable_log_stats": True,
    }


def _executor(workers: int, *, on_cpu: bool) -> str | None:
    """By vLLM's name, or our own by its path; None: vLLM's choice, which on one GPU is the engine's own process."""
    if workers > 1:
        return "mp"
    return "actors.cpu_executor.OwnProcessExecutor" if on_cpu else None


def _sample(output: Any) -> Sample:
    token_ids = tuple(output.token_ids)
    log_probs = tuple(step[token].logprob for step, token in zip(output.logprobs, token_ids, strict=True))
    versions = tuple(
        VersionSpan(start=span.start, end=span.end, version=int(span.version)) for span in output.weight_versions or ()
    )
    return Sample(output.text, token_ids, log_probs, output.finish_reason, versions)
