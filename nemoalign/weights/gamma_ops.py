"""Norm weights that Hugging Face keeps minus one and NeMo keeps one way or the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemoalign.archive.dtypes import cast
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.ops import Array, Op, Shape


@dataclass(frozen=True)
class CenterGamma(Op):
    """Gamma - 1 in Hugging Face; in NeMo the same with ``layernorm_zero_centered_gamma``, else gamma.

    We always write the first form, so that nothing is rounded. NeMo's own Gemma archives have the
    second: gamma - 1 is exact for every gamma from 0.5 to 256, and rounded outside (``is_exact``).
    """

    def to_megatron(self, parts: Sequence[Array], arch: Architecture) -> Array:
        """Return the weight in the form ``arch`` asks for."""
        (part,) = parts
        return part if arch.layernorm_zero_centered_gamma else _plus(part, 1.0)

    def to_hf(self, array: Array, arch: Architecture, vocab_size: int) -> tuple[Array, ...]:
        """Return gamma - 1, rounded to nearest even where the type cannot hold it."""
        del vocab_size
        return (array if arch.layernorm_zero_centered_gamma else _plus(array, -1.0),)

    def hf_shapes(self, shape: Shape, arch: Architecture, vocab_size: int) -> tuple[Shape, ...]:
        """Return the same shape."""
        del arch, vocab_size
        return (shape,)

    def is_exact(self, array: Array, arch: Architecture) -> bool:
        """True when ``to_hf`` loses nothing of ``array``."""
        again = self.to_megatron(self.to_hf(array, arch, 0), arch)
        return np.array_equal(again, array)


def _plus(array: Array, number: float) -> Array:
    names = {"uint16": "bfloat16", "float16": "float16", "float32": "float32"}
    name = names.get(array.dtype.name)
    if name is None:
        raise ContentError(f"A norm weight of type {array.dtype} is no model's; use fp32 or bf16.")
    moved = cast(array, name, "float32") + np.float32(number)
    return cast(moved, "float32", name)
