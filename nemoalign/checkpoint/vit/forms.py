"""Other forms of the same ViT: the plain one that Hugging Face knows, and NeMo's second generation.

Every change that rounds is said in a note. Sums and products are made in float32 at least and
rounded once, to the type the tensor is kept in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from nemoalign.archive.dtypes import Array, cast, dtype
from nemoalign.archive.store import TensorInfo, TensorStore
from nemoalign.checkpoint.sources.stores import Made, MadeStore
from nemoalign.checkpoint.vit.nemo_config import NEMO_VERSIONS
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.errors import ContentError
from nemoalign.weights.vit_rules import Patches
from nemoalign.weights.vit_tensors import CONV, vit_shapes

LINEAR = "backbone.linear_encoder.weight"
BIAS = "backbone.linear_encoder.bias"
POSITIONS = "backbone.position_embeddings.weight"
BARE_POSITIONS = "backbone.position_embeddings"

_SCALED = {
    "self_attention.dense.": "post_attention_layerscale.gamma",
    "mlp.dense_4h_to_h.": "post_mlp_layerscale.gamma",
}
"""Which linear layer's output each scale multiplies."""


@dataclass(frozen=True)
class Form:
    """A model in another form, and what a person should know of the change."""

    source: VitSource
    notes: tuple[str, ...] = ()


def plain_form(source: VitSource) -> Form:
    """Return the model as Hugging Face's ViT is: linear patches with bias, no scales, plain norms.

    Raises:
        ContentError: when a tensor of the model would be lost.
    """
    arch = source.arch
    made: dict[str, Made] = {}
    notes: list[str] = []
    plain = replace(
        arch,
        generation=1,
        layerscale=False,
        normalization="layernorm",
        position_embedding_type="learned_absolute",
    )
    for name, shape in vit_shapes(plain).items():
        made[name] = _plain_tensor(source, name, shape)
    if arch.layerscale:
        notes.append(
            "The scales of layerscale are multiplied into the weights before them; the products "
            "are rounded, so the way back is not bit for bit."
        )
    if arch.normalization == "layernorm1p":
        notes.append(
            "layernorm1p keeps norm weights minus 1; 1 is added to them and rounded, so the way "
            "back is not bit for bit."
        )
    if arch.generation == 2:
        notes.append("The patch projection has no bias; Hugging Face's is written as zeros.")
    return _checked(source, made, replace(source, arch=plain), notes)


def _plain_tensor(source: VitSource, name: str, shape: tuple[int, ...]) -> Made:
    """Return how one tensor of the plain form is made of the source's."""
    store = source.weights
    if name == LINEAR and source.arch.generation == 2:
        return _reshaped(store, shape, lambda conv: Patches().to_nemo([conv], source.arch), CONV)
    if name == BIAS and source.arch.generation == 2:
        kind = store.tensors[CONV].dtype
        return Made(TensorInfo(shape, kind), (), partial(np.zeros, shape, dtype(kind).numpy))
    if name == POSITIONS and source.arch.position_embedding_type == "learned_parameters":
        return _copied(store, shape, BARE_POSITIONS)
    if source.arch.normalization == "layernorm1p" and name.endswith("layernorm.weight"):
        return _computed(store, shape, lambda weight: weight + 1, name)
    scale = _scale_of(name) if source.arch.layerscale else None
    if scale is not None:
        return _computed(store, shape, _scaled, name, scale)
    return _copied(store, shape, name)


def _scale_of(name: str) -> str | None:
    for layer, gamma in _SCALED.items():
        head, found, _ = name.partition(layer)
        if found:
            return head + gamma
    return None


def _scaled(array: Array, gamma: Array) -> Array:
    """Return rows multiplied by their scale."""
    return array * gamma.reshape(-1, *[1] * (array.ndim - 1))


def second_generation(source: VitSource) -> Form:
    """Return the model as NeMo 2.0 and later build it: patches by a convolution without bias.

    The bias moves into the position of every patch, which comes to the same.
    """
    arch = source.arch
    if arch.generation == 2:
        return Form(source)
    later = replace(arch, generation=2)
    store = source.weights
    bare = arch.position_embedding_type == "learned_parameters"
    positions = BARE_POSITIONS if bare else POSITIONS

    def moved(table: Array, bias: Array) -> Array:
        tokens = arch.class_token_length
        return np.concatenate([table[:tokens], table[tokens:] + bias])

    made: dict[str, Made] = {}
    for name, shape in vit_shapes(later).items():
        if name == CONV:
            made[name] = _reshaped(store, shape, lambda a: Patches().to_hf(a, arch)[0], LINEAR)
        elif name == positions:
            made[name] = _computed(store, shape, moved, name, BIAS)
        else:
            made[name] = _copied(store, shape, name)
    note = (
        "NeMo 2.0 and later have no bias in the patch projection; it is added to the positions of "
        "the patches and rounded, so the way back is not bit for bit."
    )
    stored = source.stored_config | {"nemo_version": NEMO_VERSIONS[2]}
    return _checked(source, made, replace(source, arch=later, stored_config=stored), [note])


def _copied(store: TensorStore, shape: tuple[int, ...], *names: str) -> Made:
    """Return a tensor that is the one named."""
    return _reshaped(store, shape, lambda array: array, *names)


def _reshaped(
    store: TensorStore, shape: tuple[int, ...], formula: Callable[..., Array], *names: str
) -> Made:
    """Return a tensor with the very values of another, kept in its element type."""
    info = TensorInfo(shape, store.tensors[names[0]].dtype)
    return Made(info, names, lambda: formula(*(store.read(name) for name in names)))


def _computed(
    store: TensorStore, shape: tuple[int, ...], formula: Callable[..., Array], *names: str
) -> Made:
    """Return a tensor computed of the numbers of others, rounded to the type of the first."""
    kind = store.tensors[names[0]].dtype
    wide = kind if dtype(kind).itemsize >= 4 else "float32"

    def compute() -> Array:
        numbers = [cast(store.read(name), store.tensors[name].dtype, wide) for name in names]
        return cast(formula(*numbers), wide, kind)

    return Made(TensorInfo(shape, kind), names, compute)


def _checked(
    source: VitSource, made: Mapping[str, Made], form: VitSource, notes: list[str]
) -> Form:
    """Return the form, unless a tensor of the source has no place in it."""
    used = {name for tensor in made.values() for name in tensor.sources}
    lost = [name for name in source.weights.tensors if name not in used]
    if lost:
        raise ContentError(
            f'{source.path} holds "{lost[0]}", which has no place in the form that is to be written.'
        )
    return Form(replace(form, weights=MadeStore(made)), tuple(notes))
