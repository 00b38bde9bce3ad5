"""Weights from any store into any layout, and back: every parameter of this rank exactly once.

How a parameter is cut is marked on the parameter itself (megatron-core's ``partition_dim`` and
``partition_stride``), so loading, saving and the optimizer agree by construction.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor, nn

from nemoalign.archive.dtypes import Array
from nemoalign.archive.store import TensorStore
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, ShapeError
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.weights.names import canonical_name, is_adapter, is_value_head
from nemoalign.weights.splits import Split

EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"
_LAYERS = "decoder.layers."
_VIEWS = {
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class LocalTensor:
    """One parameter of this rank under its canonical name, and how it is cut out of the whole."""

    name: str
    parameter: nn.Parameter
    split: Split
    shape: tuple[int, ...]
    """Of the whole tensor; a vocabulary counts padded rows."""
    is_copy: bool = False
    """The second copy of tied embeddings, on a last pipeline stage; stage 0 holds the tensor."""

    @property
    def is_vocabulary(self) -> bool:
        """True when dimension 0 is the padded vocabulary."""
        return self.name in (EMBEDDING, HEAD)


def local_tensors(chunks: Sequence[nn.Module], layout: ParallelLayout) -> Iterator[LocalTensor]:
    """Yield every parameter of this rank's chunks."""
    for chunk in chunks:
        model = get_attr_wrapped_model(chunk, "decoder", return_model_obj=True)
        assert isinstance(model, GPTModel), "build_model makes GPTModels"
        for name, parameter in model.named_parameters():
            yield _local_tensor(_with_global_layer(name, model), parameter, model, layout)


def _local_tensor(
    name: str, parameter: nn.Parameter, model: GPTModel, layout: ParallelLayout
) -> LocalTensor:
    has_experts = bool(model.config.num_moe_experts)
    canonical = name if is_value_head(name) else canonical_name(name, has_experts=has_experts)
    assert canonical is not None, f"{name} is a parameter"
    is_copy = model.share_embeddings_and_output_weights and canonical == HEAD
    split = _split_of(parameter)
    shape = split.whole_shape(parameter.shape, layout.tp)
    return LocalTensor(EMBEDDING if is_copy else canonical, parameter, split, shape, is_copy)


def load_weights(
    chunks: Sequence[nn.Module],
    weights: TensorStore,
    arch: Architecture,
    layout: ParallelLayout,
    vocab_size: int,
) -> None:
    """Copy this rank's part of every tensor of ``weights`` into its parameter.

    Vocabulary rows at and above ``vocab_size`` are zero. Adapters are loaded when ``weights`` holds
    any, else they stay as they start, as a policy's value head always does. At most one tensor is in
    memory at a time.

    Raises:
        ContentError: when a tensor is missing, unknown to this architecture, or misshapen.
    """
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    everything = local_tensors(chunks, layout)
    wanted = [tensor for tensor in everything if not is_value_head(tensor.name)]
    names = {tensor.name for tensor in wanted}
    has_adapters = any(is_adapter(name) for name in weights.tensors)
    _check_names(names, weights, arch, with_adapters=has_adapters)
    for tensor in wanted:
        if has_adapters or not is_adapter(tensor.name):
            with torch.no_grad():
                _fill(tensor, weights, layout.tp, tp_rank, vocab_size)


def _with_global_layer(name: str, model: GPTModel) -> str:
    """Return a parameter's name with its layer counted from the start of the model."""
    if not name.startswith(_LAYERS):
        return name
    local, _, rest = name.removeprefix(_LAYERS).partition(".")
    layers: Any = model.decoder.layers
    return f"{_LAYERS}{layers[int(local)].layer_number - 1}.{rest}"


def _split_of(parameter: Any) -> Split:
    if not getattr(parameter, "tensor_model_parallel", False):
        return Split(None)
    return Split(parameter.partition_dim, runs=parameter.partition_stride)


def _check_names(
    names: set[str], weights: TensorStore, arch: Architecture, *, with_adapters: bool
) -> None:
    """Raise ContentError naming the first tensor that is missing or that nothing here would use."""
    needed = {name for name in names if with_adapters or not is_adapter(name)}
    missing = sorted(needed - set(weights.tensors))
    if missing:
        raise ContentError(
            f"The checkpoint lacks {missing[0]!r}{_and_others(missing)}, which its model_config.yaml "
            f"asks for ({arch.num_layers} layers, activation {arch.activation}, bias {arch.bias})."
        )
    unknown = sorted(set(weights.tensors) - _all_names(needed, arch))
    if unknown:
        raise ContentError(
            f"The checkpoint holds {unknown[0]!r}{_and_others(unknown)}, which the model of its "
            "model_config.yaml has no place for; training would silently drop it."
        )


def _all_names(names: set[str], arch: Architecture) -> set[str]:
    """Return the names of the whole model, from those of one stage: layers are all alike."""
    everywhere = {EMBEDDING, "decoder.final_layernorm.weight"}
    if not arch.share_embeddings_and_output_weights:
        everywhere.add(HEAD)
    if arch.position_embedding_type == "learned_absolute":
        everywhere.add("embedding.position_embeddings.weight")
    if arch.normalization.lower() != "rmsnorm":
        everywhere.add("decoder.final_layernorm.bias")
    if arch.num_attributes:
        everywhere |= {"rm_head.weight", "rm_head.bias"}
    for name in names:
        if name.startswith(_LAYERS):
            rest = name.removeprefix(_LAYERS).partition(".")[2]
            everywhere |= {f"{_LAYERS}{layer}.{rest}" for layer in range(arch.num_layers)}
    return everywhere


def _and_others(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _fill(tensor: LocalTensor, weights: TensorStore, tp: int, tp_rank: int, rows: int) -> None:
    """Copy the shard of ``tp_rank``; of a vocabulary, ``rows`` real rows, and zero for the rest."""
    stored = weights.tensors[tensor.name]
    shape = tensor.shape
    if tensor.is_vocabulary:
        if stored.shape[0] < rows:
            raise ShapeError(
                f"{tensor.name} has {stored.shape[0]} rows, fewer than the vocabulary of {rows}."
            )
        shape = (stored.shape[0], *shape[1:])
    if tuple(stored.shape) != shape:
        raise ShapeError(
            f"{tensor.name} is {list(stored.shape)} in the checkpoint, but its model_config.yaml "
            f"makes it {list(shape)}."
        )
    target = tensor.parameter.data
    if tensor.is_vocabulary:
        start = tp_rank * target.shape[0]
        count = max(0, min(rows - start, target.shape[0]))
        target[count:] = 0
        if count:
            part = weights.read(tensor.name, (slice(start, start + count),))
            target[:count] = _as_torch(part, stored.dtype)
        return
    dim = tensor.split.dim or 0
    offset = 0
    for region in tensor.split.pieces(shape, tp, tp_rank):
        part = _as_torch(weights.read(tensor.name, region), stored.dtype)
        target.narrow(dim, offset, part.shape[dim]).copy_(part)
        offset += part.shape[dim]
    assert offset == target.shape[dim], "the pieces of a shard fill it"


def _as_torch(array: Array, dtype: str) -> Tensor:
    """Return a tensor over the very bytes of ``array``, raw storage of ``dtype``; only to read from."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(_VIEWS[dtype]) if dtype in _VIEWS else tensor
