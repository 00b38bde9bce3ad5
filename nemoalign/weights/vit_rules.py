"""How the tensors of Hugging Face's ViT become NeMo's and back: exact, and their inverse is exact.

What is not exact (folding scales or biases) is no rule; ``checkpoint.vit_forms`` does it, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nemoalign.config.vit import VitArchitecture
from nemoalign.errors import ContentError
from nemoalign.weights.config_rules import Field
from nemoalign.weights.vit_tensors import vit_pattern, vit_shapes

Array = NDArray[Any]
Shape = tuple[int, ...]


class VitOp(Protocol):
    """One exact operation between Hugging Face tensors and one NeMo tensor of the right shapes."""

    def to_nemo(self, parts: Sequence[Array], arch: VitArchitecture) -> Array:
        """Return the NeMo tensor made of the Hugging Face ``parts``. Inverse of ``to_hf``."""
        ...

    def to_hf(self, array: Array, arch: VitArchitecture) -> tuple[Array, ...]:
        """Return the Hugging Face tensors inside a NeMo tensor. Inverse of ``to_nemo``."""
        ...

    def hf_shapes(self, shape: Shape, arch: VitArchitecture) -> tuple[Shape, ...]:
        """Return the shapes of the Hugging Face parts of a NeMo tensor of ``shape``."""
        ...


@dataclass(frozen=True)
class Same:
    """The same tensor under another name; ``lead`` puts a dimension of 1 before the others."""

    lead: bool = False

    def to_nemo(self, parts: Sequence[Array], arch: VitArchitecture) -> Array:
        """Return the one part."""
        del arch
        (part,) = parts
        return part[0] if self.lead else part

    def to_hf(self, array: Array, arch: VitArchitecture) -> tuple[Array, ...]:
        """Return the tensor itself."""
        del arch
        return (array[None] if self.lead else array,)

    def hf_shapes(self, shape: Shape, arch: VitArchitecture) -> tuple[Shape, ...]:
        """Return the one shape."""
        del arch
        return ((1, *shape) if self.lead else shape,)


@dataclass(frozen=True)
class Patches:
    """A convolution over patches as the linear layer over their values in (row, column, channel)."""

    def to_nemo(self, parts: Sequence[Array], arch: VitArchitecture) -> Array:
        """Return [h, p*p*c] for [h, c, p, p]."""
        del arch
        (part,) = parts
        return part.transpose(0, 2, 3, 1).reshape(len(part), -1)

    def to_hf(self, array: Array, arch: VitArchitecture) -> tuple[Array, ...]:
        """Return [h, c, p, p] for [h, p*p*c]."""
        edge, channels = arch.patch_dim, arch.num_channels
        return (array.reshape(len(array), edge, edge, channels).transpose(0, 3, 1, 2),)

    def hf_shapes(self, shape: Shape, arch: VitArchitecture) -> tuple[Shape, ...]:
        """Return the shape of the convolution."""
        return ((shape[0], arch.num_channels, arch.patch_dim, arch.patch_dim),)


@dataclass(frozen=True)
class PackHeads:
    """Query, key and value projections (weights or biases), packed as [heads, 3, width]."""

    def to_nemo(self, parts: Sequence[Array], arch: VitArchitecture) -> Array:
        """Return (q, k, v) packed into one tensor."""
        heads, rest = arch.num_attention_heads, parts[0].shape[1:]
        views = [part.reshape(heads, 1, arch.head_dim, *rest) for part in parts]
        return np.concatenate(views, axis=1).reshape(3 * arch.attention_width, *rest)

    def to_hf(self, array: Array, arch: VitArchitecture) -> tuple[Array, ...]:
        """Return (q, k, v) unpacked."""
        rest = array.shape[1:]
        packed = array.reshape(arch.num_attention_heads, 3, arch.head_dim, *rest)
        return tuple(packed[:, part].reshape(arch.attention_width, *rest) for part in range(3))

    def hf_shapes(self, shape: Shape, arch: VitArchitecture) -> tuple[Shape, ...]:
        """Return the shapes of q, k and v."""
        return ((arch.attention_width, *shape[1:]),) * 3


@dataclass(frozen=True)
class VitRule:
    """One NeMo tensor, the Hugging Face tensors it is made of, and how; ``{i}`` is the layer."""

    nemo: str
    hf: str | tuple[str, ...]
    op: VitOp = field(default_factory=Same)

    def hf_names(self, layer: str) -> tuple[str, ...]:
        """Return the Hugging Face names for a layer, also when there is only one."""
        names = (self.hf,) if isinstance(self.hf, str) else self.hf
        return tuple(name.replace("{i}", layer) for name in names)


@dataclass(frozen=True, kw_only=True)
class VitFamily:
    """A family of image classifiers: spelled as in ``Family``, over another architecture."""

    name: str
    hf_architecture: str
    hf_model_type: str
    weights: tuple[VitRule, ...]
    config: tuple[Field, ...]


@dataclass(frozen=True)
class VitPlan:
    """How one tensor of one model moves: canonical name, shape, Hugging Face names, operation."""

    name: str
    shape: Shape
    hf_names: tuple[str, ...]
    op: VitOp


def vit_plans(family: VitFamily, arch: VitArchitecture) -> list[VitPlan]:
    """Return one plan for every tensor of a first-generation model, in the order of the model.

    Raises:
        ContentError: when Hugging Face has no counterpart for a tensor of the model.
    """
    rules = {rule.nemo: rule for rule in family.weights}
    plans: list[VitPlan] = []
    for name, shape in vit_shapes(arch).items():
        pattern = vit_pattern(name)
        if pattern not in rules:
            raise ContentError(f'Hugging Face\'s ViT has no tensor for "{name}".')
        layer = name.split(".")[3] if "{i}" in pattern else ""
        rule = rules[pattern]
        plans.append(VitPlan(name, shape, rule.hf_names(layer), rule.op))
    return plans
