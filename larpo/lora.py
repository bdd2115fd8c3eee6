"""LoRA through peft: small trained matrices beside the linear layers of a frozen base model.

`y = W x + alpha / rank * B A x` (Hu et al. 2021, arXiv 2106.09685, section 4.1): A, [rank, in], and B, [out, rank], are
trained, W is not. peft puts its layers into the model, which keeps its class: whatever takes the base model takes the
adapted one. B begins at zero, so an adapted model begins as its base.

Under DeepSpeed ZeRO-3 a caller gathers the parameters that a function here names before it asks for their values.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from larpo.config import Lora
from larpo.errors import ConfigError
from larpo.model_folder import new_folder
from larpo.rounding import spread_in_cells_
from larpo.types import stable_hash

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
TRAINED = "default"  # the adapter that is trained, by the name that peft gives an only one
KEPT = "reference"  # a second, frozen one: what the trained one was at some time
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def adapted_layers(model: PreTrainedModel, section: Lora, where: str = "policy.lora") -> dict[str, tuple[int, int]]:
    """(in, out) features of each layer that gets an adapter, by its full name.

    `all-linear` is every linear layer of the backbone; output and reward heads are never adapted. `where` is the
    section's place in the recipe.

    Raises:
        ConfigError: a name that no such layer has, or a rank that the smallest of them cannot have.
    """
    there = _linear_layers(model)
    names, everything = section.target_modules, ALL_LINEAR in section.target_modules
    unknown = [] if everything else [name for name in names if not any(_is_called(layer, name) for layer in there)]
    if unknown:
        known = sorted({layer.rpartition(".")[2] for layer in there})
        raise ConfigError(
            f"{where}.target_modules has {unknown}: {type(model).__name__} has no linear layer of that name in its "
            f"backbone; choose from {', '.join(known)}, or {ALL_LINEAR}"
        )
    found = {layer: size for layer, size in there.items() if everything or any(_is_called(layer, n) for n in names)}
    narrowest = min(found, key=lambda layer: min(found[layer]))
    if section.rank > min(found[narrowest]):
        raise ConfigError(
            f"{where}.rank = {section.rank}: {narrowest} has {found[narrowest][0]} inputs and "
            f"{found[narrowest][1]} outputs, so no change of it has a higher rank than {min(found[narrowest])}; lower "
            f"the rank, or leave the layer out of {where}.target_modules"
        )
    return found


def adapter_size(model: PreTrainedModel, section: Lora, where: str = "policy.lora") -> int:
    """Parameters of the adapters that `with_lora` would make; errors as of `adapted_layers`."""
    return sum(section.rank * (inputs + outputs) for inputs, outputs in adapted_layers(model, section, where).values())


def with_lora(model: Any, section: Lora, *, also_trained: Sequence[str] = ()) -> Any:
    """The same model with adapters in it, the only parameters that are trained; without a rank, unchanged.

    Adapters have the base weights' dtype and device; of bfloat16 ones the trainer's optimizer keeps a float32 copy, as
    of all that it trains. torch's generator draws A: seed it alike on every rank.

    Args:
        also_trained: modules beside the adapters that are trained in full, such as a reward head.
    Raises:
        ConfigError: as `adapted_layers`.
    """
    if not section.rank:
        return model
    import peft

    config = peft.LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=sorted(adapted_layers(model, section)),
        task_type="CAUSAL_LM" if model.get_output_embeddings() is not None else None,
        modules_to_save=None,
    )
    peft.inject_adapter_in_model(config, model, TRAINED)
    for name in also_trained:
        model.get_submodule(name).requires_grad_()
    config.modules_to_save = list(also_trained) or None  # for the file: here they are trained where they stand
    return model


def has_lora(model: nn.Module) -> bool:
    return bool(_layers(model))


def add_kept_adapter(model: Any) -> None:
    """Put a second, frozen adapter beside the trained one. Until it is filled it is the base model."""
    import peft

    config = copy.deepcopy(model.peft_config[TRAINED])
    config.inference_mode = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        peft.inject_adapter_in_model(config, model, KEPT)
    for layer in _layers(model).values():
        layer.set_adapter(TRAINED)


@contextmanager
def adapter_in_use(model: nn.Module, name: str | None) -> Iterator[None]:
    """The model under another adapter, or under none (None): for passes in evaluation mode, without gradient."""
    layers, training = _layers(model).values(), model.training
    model.eval()
    for layer in layers:
        layer.enable_adapters(False) if name is None else layer.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
            layer.set_adapter(TRAINED)
        model.train(training)


@dataclass(frozen=True)
class BaseWeight:
    """A parameter of the base model, and the adapted layer that it is the weight of, where it is one's."""

    name: str
    parameter: nn.Parameter
    layer: Any = None

    @property
    def is_trained(self) -> bool:
        """By itself, or by adapters beside it."""
        return self.layer is not None or self.parameter.requires_grad

    @property
    def parts(self) -> list[nn.Parameter]:
        """What `merged` reads."""
        if self.layer is None:
            return [self.parameter]
        return [self.parameter, self.layer.lora_A[TRAINED].weight, self.layer.lora_B[TRAINED].weight]

    @torch.no_grad()
    def merged(self) -> Tensor:
        """`W + alpha / rank * B A`, computed in float32 at least and rounded once, to the dtype of W.

        bfloat16 rounds up or down so that the sum is kept on average, however small the change, and the same way each
        time: `larpo.rounding`.
        """
        if self.layer is None:
            return self.parameter.detach()
        exact = torch.promote_types(self.parameter.dtype, torch.float32)
        weight, a, b = (part.detach().to(exact) for part in self.parts)
        if self.parameter.dtype == torch.bfloat16:
            spread_in_cells_(weight, seed=stable_hash(self.name))
        change = (b @ a) * self.layer.scaling[TRAINED]
        return (weight + (change.T if self.layer.fan_in_fan_out else change)).to(self.parameter.dtype)


def base_weights(model: nn.Module) -> dict[str, BaseWeight]:
    """The parameters of the base model by the names that they have without adapters; any model has them."""
    layers = {f"{name}.base_layer.weight": layer for name, layer in _layers(model).items()}
    adapters = {id(p) for layer in layers.values() for part in _matrices(layer) for p in part.parameters()}
    return {
        (own_name := name.replace(".base_layer.", ".")): BaseWeight(own_name, parameter, layers.get(name))
        for name, parameter in model.named_parameters()
        if id(parameter) not in adapters
    }


def merged_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the base model's parameters with the adapters merged in, one at a time; `model` stays as it is.

    What `larpo.model_folder.save_model_folder` writes as a model that needs no peft.
    """
    for name, weight in base_weights(model).items():
        yield name, weight.merged()


def adapter_parameters(model: Any, adapter: str = TRAINED) -> dict[str, nn.Parameter]:
    """An adapter's parameters, and what is trained in full beside it, by the names that they have in peft's files."""
    modules = model.peft_config[TRAINED].modules_to_save or () if adapter == TRAINED else ()
    beside = tuple(f"{name}." for name in modules)
    return {
        f"base_model.model.{name.replace(f'.{adapter}.', '.')}": parameter
        for name, parameter in model.named_parameters()
        if f".lora_A.{adapter}." in name or f".lora_B.{adapter}." in name or (beside and name.startswith(beside))
    }


def adapter_files(model: Any, base: str) -> dict[str, bytes]:
    """An adapter's files by name, as `peft.PeftModel.from_pretrained` reads them; `base` names the base model there."""
    from safetensors.torch import save

    config = copy.copy(model.peft_config[TRAINED])
    config.base_model_name_or_path, config.inference_mode = base, True
    weights = {name: p.detach().cpu().contiguous() for name, p in adapter_parameters(model).items()}
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=sorted)  # sets of names become lists
    return {ADAPTER_CONFIG: f"{text}\n".encode(), ADAPTER_WEIGHTS: save(weights, metadata={"format": "pt"})}


def save_adapter(destination: Path, files: Mapping[str, bytes], card: str) -> None:
    """A folder of `adapter_files` and a model card, whole or not at all; without files, nothing."""
    if not files:
        return
    with new_folder(destination) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        (folder / "README.md").write_text(card, encoding="utf-8")


def drop_frozen_from_state(module: nn.Module) -> None:
    """From now on `module.state_dict()` holds what is trained only: frozen weights are those that were loaded."""

    def drop(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name, parameter in module.named_parameters(remove_duplicate=False):  # a tied weight has two names
            if not parameter.requires_grad:
                state.pop(prefix + name, None)

    module.register_state_dict_post_hook(drop)


def _linear_layers(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(in, out) features of the backbone's linear layers, by full name."""
    from transformers.pytorch_utils import Conv1D

    backbone = model.base_model
    above = next((f"{name}." for name, module in model.named_modules() if name and module is backbone), "")
    layers: dict[str, tuple[int, int]] = {}
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear):
            layers[above + name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            layers[above + name] = (inputs, outputs)
    return layers


def _is_called(layer: str, name: str) -> bool:
    """As peft compares names: the whole, or the end of a dotted one."""
    return layer == name or layer.endswith(f".{name}")


def _layers(model: nn.Module) -> dict[str, Any]:
    if "peft" not in sys.modules:  # which takes seconds to import; who has put an adapter into the model has done so
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _matrices(layer: Any) -> tuple[nn.Module, nn.Module]:
    return layer.lora_A, layer.lora_B
