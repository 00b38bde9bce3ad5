"""What Gemma 2 adds to a configuration: capped logits, its own query scale, windows in every other layer.

NeMo keeps the three numbers in ``mcore_customization_config`` and finds its layers by ``name``. Hugging
Face's windows are in the first, third, ... layer. NeMo's code puts them into the second, fourth, ...
instead; that shows only beyond the window, and the weights were trained with the former.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemoalign.config.architecture import GEMMA2, Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.window_rules import Window

Fields = Mapping[str, Any]

_CUSTOM = {
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
}
"""The fields of both sides, and what transformers assumes where config.json has none of that name."""


@dataclass(frozen=True)
class Softcaps:
    """The two caps and the query scale, the same numbers on both sides; null is no cap."""

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return NeMo's customization and the name of its layers."""
        custom = {name: hf.get(name, default) for name, default in _CUSTOM.items()}
        return {"name": GEMMA2, "mcore_customization_config": custom}

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return the three fields."""
        return {name: getattr(arch, name) for name in _CUSTOM}


@dataclass(frozen=True)
class AlternatingWindow:
    """A window in every other layer, beginning with the first; ``default`` is transformers' own."""

    default: int = 4096

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return window_size.

        Raises:
            ContentError: when the layers that have the window are others.
        """
        kinds = hf.get("layer_types")
        if kinds is not None and kinds != _layer_types(int(hf["num_hidden_layers"])):
            raise ContentError(
                "config.json has layer_types other than sliding and full attention in turn, which "
                "a .nemo of this family cannot represent."
            )
        return Window(self.default).to_nemo(hf)

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return the window and what every layer has."""
        return Window().to_hf(arch) | {"layer_types": _layer_types(arch.num_layers)}


def _layer_types(layers: int) -> list[str]:
    return [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]
