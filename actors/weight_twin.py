"""New weights for a model that goes on generating: its layers are loaded and packed a second time, beside it, and then
take the place of those in use.

vLLM's own reload empties the model's layers first, so that generation has to stand still from the first tensor to the
last. Here it stands still while pointers change. The price is memory for a second set of weights, for as long as an
update takes; on a GPU, where the KV cache has what the weights leave, weights are loaded in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from vllm.config import ModelConfig
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    _layerwise_process,
    get_layerwise_info,
    initialize_online_processing,
)
from vllm.model_executor.model_loader.reload.meta import SKIP_LOAD_TENSORS, to_meta_tensor
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs

OWN = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")  # what a twin does not share
KNOWN = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)  # they keep all that they make in the layer


def can_have_twin(model: Module) -> bool:
    """Whether every layer of the model can be made a second time: on CPUs, and for weights that are not quantized."""
    return all(_can_have_twin(layer) for layer in model.modules())


def _can_have_twin(layer: Module) -> bool:
    method, (parameters, buffers) = getattr(layer, "quant_method", None), get_layerwise_info(layer).restore_metadata
    held = {*layer._parameters, *layer._buffers} - {"bias"} - SKIP_LOAD_TENSORS
    is_known = method is None or type(method) in KNOWN or is_deferred_attention_layer(layer)
    on_cpu = all(tensor is None or tensor.device.type == "cpu" for tensor in layer.parameters(recurse=False))
    return on_cpu and is_known and held <= {*parameters, *buffers}  # others are views of what would be replaced


class Twin:
    """A model's layers without weights, which share all else with it.

    Its tensors and layers refer to each other: `release` it at the end, or they stay until Python looks for such rings,
    which in an engine is seldom.
    """

    def __init__(self, model: Module) -> None:
        self._pairs = [(layer, _blank(layer)) for layer in model.modules()]
        twins = {id(layer): twin for layer, twin in self._pairs}
        for layer, twin in self._pairs:
            twin._modules = {name: child and twins[id(child)] for name, child in layer._modules.items()}
        for _, twin in self._pairs:
            initialize_online_processing(twin)
        self._model, self._twins = twins[id(model)], twins
        self._live, self._replaced = model, list[Any]()
        self.newest = ""  # name of the tensor that was asked for last

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Tensors by their checkpoint names; a layer that has all of its own is packed at once."""
        self._model.load_weights(self._noted(tensors))  # type: ignore[operator]

    def _noted(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for self.newest, tensor in tensors:
            yield self.newest, tensor

    def close(self) -> None:
        """After the last tensor: pack what waits for padding that is never loaded, and heads tied to an embedding."""
        for _, twin in self._pairs:
            info = get_layerwise_info(twin)
            if info.can_load() and info.load_numel > 0:
                _layerwise_process(twin, info)
        for head, embedding in tied_heads(self._live):
            twin, source = self._twins[id(head)], self._twins[id(embedding)]
            if _is_loaded(source):
                twin.weight = source.weight
                head.quant_method.process_weights_after_loading(twin)  # type: ignore[union-attr, operator]
                get_layerwise_info(twin).reset()

    def take_place(self, model_config: ModelConfig) -> None:
        """In the model, whose layers without new tensors keep what they have.

        What was replaced stays until `release`: to give so much memory back takes longer than all else here.
        """
        for layer, twin in self._pairs:
            if not _is_loaded(twin):
                continue
            for name, new in twin._parameters.items():
                if new is not None:
                    old: Any = layer._parameters[name]
                    self._replaced.append(old.data)
                    old.data = new.data
            layer._buffers.update(
                (n, new) for n, new in twin._buffers.items() if n not in twin._non_persistent_buffers_set
            )
            held = vars(layer)
            made = {name: new for name, new in vars(twin).items() if name not in OWN and new is not held.get(name)}
            self._replaced += [held.get(name) for name in made]
            held.update(made)
        for layer in self._live.modules():
            if is_deferred_attention_layer(layer):
                layer.process_weights_after_loading(model_config.dtype)  # type: ignore[operator]

    def release(self) -> None:
        """Give back the memory of what was replaced, or never came to its place; the twin is of no more use."""
        self._replaced.clear()
        for _, twin in self._pairs:
            get_layerwise_info(twin).reset()
            vars(twin).clear()


def _blank(layer: Module) -> Module:
    """The layer with places for its tensors; of a linear layer's bias vLLM keeps no record: it is copied."""
    twin = type(layer).__new__(type(layer))
    vars(twin).update(vars(layer))
    twin._parameters, twin._buffers = {}, {}
    twin._non_persistent_buffers_set = set(layer._non_persistent_buffers_set)
    known = get_layerwise_info(layer)
    get_layerwise_info(twin).restore_device = known.restore_device
    parameters, buffers = known.restore_metadata
    for name, place in parameters.items():
        twin.register_parameter(name, restore_layer_refs(to_meta_tensor(place), twin))  # type: ignore[arg-type]
    for name, place in buffers.items():
        is_kept = name not in layer._non_persistent_buffers_set
        twin.register_buffer(name, restore_layer_refs(to_meta_tensor(place), twin), persistent=is_kept)
    for name, parameter in layer._parameters.items():
        if name not in twin._parameters:
            twin.register_parameter(name, parameter if name in SKIP_LOAD_TENSORS else _copied(parameter))
    return twin


def _copied(parameter: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
    if parameter is None:
        return None
    copy = parameter.data.clone()
    copy.__class__, copy.__dict__ = parameter.__class__, dict(vars(parameter))
    return copy  # type: ignore[return-value]


def _is_loaded(twin: Module) -> bool:
    return not get_layerwise_info(twin).can_load()


def tied_heads(model: Module) -> Iterator[tuple[Module, Module]]:
    """Output heads that have an embedding's weights, and the embeddings."""
    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    embeddings = {id(layer.weight): layer for layer in layers if not isinstance(layer, ParallelLMHead)}
    for layer in layers:
        if isinstance(layer, ParallelLMHead) and id(layer.weight) in embeddings:
            yield layer, embeddings[id(layer.weight)]
