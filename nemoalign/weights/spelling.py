"""How rank files spell tensor names: the way back from canonical names to keys on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nemoalign.weights.names import INPUT_NORM, PREFIX, RENAMES, layer_of

HEAD = "output_layer.weight"


@dataclass(frozen=True)
class Spelling:
    """The names of one generation of modules; norms are fused into the linear layer behind or not.

    Transformer Engine's layers hold the norm before them, megatron-core's local ones do not.
    """

    fused_norms: bool = True

    def key(self, name: str, first_layer: int = 0) -> str:
        """Return the key of a canonical tensor in the file of a stage that begins at ``first_layer``."""
        layer = layer_of(name)
        if layer is not None:
            name = name.replace(f"layers.{layer}.", f"layers.{layer - first_layer}.", 1)
        if not self.fused_norms:
            for module, fused in RENAMES:
                name = name.replace(fused, module)
        return f"{PREFIX}{name}"

    @property
    def tied_copy(self) -> str:
        """The key under which a last stage repeats the word embedding it uses as output layer."""
        return self.key(HEAD)


def spelling_of(keys: Iterable[str]) -> Spelling:
    """Return the spelling in which these keys of a rank's file are written."""
    module = INPUT_NORM[0]  # the norm before experts is a module of its own everywhere
    return Spelling(fused_norms=not any(module in key for key in keys))
